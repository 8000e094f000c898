"""Write a step's results: a line of metrics, its rollouts, the trackers, the terminal, and warnings."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from trapo_lite.config import Config
from trapo_lite.core.types import Mean
from trapo_lite.run import metrics as metric_table
from trapo_lite.run.display import Display
from trapo_lite.run.early_warnings import early_warnings
from trapo_lite.run.folder import RunFolder
from trapo_lite.run.loggers import open_loggers
from trapo_lite.run.outlook import outlook_line
from trapo_lite.run.trend_warnings import TrendWarnings


class LogBook:
    """Write the logs of the main process and own the loggers, as a context manager."""

    def __init__(
        self, config: Config, folder: RunFolder, display: Display, *, first_step: int, checkpoint_bytes: float
    ) -> None:
        self._config, self._folder, self._display = config, folder, display
        self._first_step, self._checkpoint_bytes = first_step, checkpoint_bytes
        self._loggers = open_loggers(config, first_step=first_step, notify=display.message)
        self._trends = TrendWarnings(folder.metrics())

    def write(
        self,
        step: int,
        metrics: Mapping[str, Mean | float | int],
        rollouts: Sequence[Mapping[str, Any]],
        *,
        seconds: float,
    ) -> None:
        """Write `metrics` of all ranks, `rollouts` as lines of rollouts/step-N.jsonl, and the step's `seconds`."""
        stages = metric_table.to_row({name: metrics[name] for name in metric_table.STAGE_TIMES if name in metrics})
        idle = seconds - sum(value or 0.0 for value in stages.values())
        row = metric_table.to_row(
            {**metrics, "step": step, "time/idle": idle, "time/step": seconds, "time/unix": time.time()}
        )
        rollout_bytes = self._folder.write_rollouts(step, rollouts)
        self._folder.append_metrics(row)
        logged = {name: value for name, value in row.items() if name != "time/unix"}  # loggers keep their own clock
        for logger in self._loggers:
            logger.log(logged, rollouts, step)
        self._display.step(row)
        max_steps = self._config.train.max_steps
        begins_stage = step == 1 + self._config.algorithm.steps_of_stage(step - 1, max_steps=max_steps).start
        if (step == self._first_step or begins_stage) and step < max_steps:
            sizes = {"rollout_bytes": rollout_bytes, "checkpoint_bytes": self._checkpoint_bytes}
            self._display.message(outlook_line(row, self._config, **sizes))
        early = early_warnings(row, self._config) if begins_stage else []
        for warning in [*self._warnings(row), *early, *self._trends.after(row)]:
            self._display.message(f"warning: step {step}: {warning}")

    def flush(self) -> None:
        """Flush the loggers, before a checkpoint is written."""
        for logger in self._loggers:
            logger.flush()

    def __enter__(self) -> "LogBook":
        return self

    def __exit__(self, *_: object) -> None:
        for logger in self._loggers:
            logger.close()

    def _warnings(self, row: Mapping[str, float | int | None]) -> list[str]:
        warnings = []
        if self._config.run.deterministic and (row["verdict/timeout"] or row.get("eval/timeout")):
            warnings.append("a verdict timed out: this run may not be repeatable bit for bit")
        mismatch, alarm = row.get("mismatch/abs") or 0.0, self._config.rollout.mismatch_alarm
        if mismatch > alarm:
            warnings.append(
                f"sampler and trainer differ by {mismatch:.3g} nats a token (alarm at {alarm:g}); compare "
                "dtype and quantisation of both, or set algorithm.tis_cap"
            )
        return warnings
