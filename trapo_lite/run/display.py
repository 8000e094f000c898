"""Show a run's progress: a live display on a terminal, plain lines with the time elsewhere."""

import time
from collections.abc import Mapping
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trapo_lite.run.lines import QUIET_SECONDS, Lines

SHOWN = (
    ("own", "reward/own", "{:.2f}"),
    ("guided", "reward/guided", "{:.2f}"),
    ("helped", "rollout/guided", "{:.0%}"),
    ("tokens/s", "speed/sampled_tokens_per_second", "{:.0f}"),
    ("grad", "optim/grad_norm", "{:.2g}"),
    ("seconds", "time/step", "{:.1f}"),
    ("eval", "eval/accuracy", "{:.3f}"),
    ("expert loss", "eval/expert_loss", "{:.3f}"),
)


class Display(Lines):
    """Display the progress of a run, as a context manager. It is silent unless `is_main`.

    From the second step on, a sign of life says when the step is expected to end: it takes as long as the step before,
    evaluations left out.
    """

    def __init__(self, *, title: str, max_steps: int, is_main: bool, quiet_seconds: float = QUIET_SECONDS) -> None:
        super().__init__(is_main=is_main, quiet_seconds=quiet_seconds)
        self._title, self._max_steps = title, max_steps
        self._rollouts_done = 0
        self._step: int | None = None  # the step in progress
        self._step_began = 0.0
        self._before: Mapping[str, float | int | None] | None = None  # the metrics of the step before
        self._progress: Progress | None = None
        if is_main and not self.is_plain:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=self.console,
            )

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._progress is not None:
            self._progress.stop()

    def begin(self, first_step: int) -> None:
        """Show the bars on a terminal; `first_step` steps are done already."""
        if self._progress is not None:
            self._steps = self._progress.add_task(self._title, total=self._max_steps, completed=first_step, status="")
            self._rollouts = self._progress.add_task("rollouts", total=None, status="", visible=False)

    def step_phase(self, step: int, text: str) -> None:
        """Note what the run does from now on in this step, such as "sampling"."""
        if step != self._step:
            self._step, self._step_began = step, time.monotonic()
        self.phase(f"step {step}/{self._max_steps}: {text}")

    def rollouts(self, done: int, expected: int) -> None:
        self.count(done, expected, "rollouts")
        if self._progress is not None:
            if done < self._rollouts_done:  # a new phase, which has its own clock
                self._progress.reset(self._rollouts)
            self._rollouts_done = done
            self._progress.update(self._rollouts, completed=done, total=expected, visible=done < expected)

    def step(self, row: Mapping[str, float | int | None]) -> None:
        """Print a step's metrics as a permanent line."""
        shown = [f"{label} {fmt.format(row[name])}" for label, name, fmt in SHOWN if row.get(name) is not None]
        self.message(f"step {row['step']}/{self._max_steps}  " + "  ".join(shown))
        self._before = row
        if self._progress is not None:
            self._progress.update(self._steps, completed=row["step"])

    def outlook(self) -> str:
        """Return how fast the step before sampled, and when this step is expected to end."""
        if self._before is None or self._before["step"] == self._step:
            return ""
        step, tokens = self._before["step"], self._before.get("speed/sampled_tokens_per_second")
        text = "" if tokens is None else f"; step {step} sampled {tokens:.0f} tokens/s"
        seconds = (self._before["time/step"] or 0.0) - (self._before.get("time/eval") or 0.0)
        left = self._step_began + seconds - time.monotonic()
        if left < 0:
            return f"{text}; step {step} took {seconds:.0f} s"
        end = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
        return f"{text}; expected to end at {end}, as step {step} took {seconds:.0f} s"
