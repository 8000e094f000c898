"""Send each step's metrics and some of its rollouts to the trackers of run.trackers, besides metrics.jsonl.

The trackers are Accelerate's classes (`accelerate.tracking`). They need the process state that `Ranks` makes.
"""

import contextlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trapo_lite.config import Config
from trapo_lite.core.errors import ConfigError
from trapo_lite.run.files import naming, write_whole

Row = Mapping[str, float | int | None]
Rollouts = Sequence[Mapping[str, Any]]

ROLLOUTS_SHOWN = 8  # of each step; rollouts/ holds all of them
COLUMNS = ("step", "problem_id", "prompt", "prefix", "completion", "reward", "verdict", "advantage")
MAX_SHOWN = 2000  # characters of a text in a table


class Logger(Protocol):
    def store(self, settings: Mapping[str, Any]) -> None:
        """Store the configuration as the hyper-parameters of the run."""
        ...

    def log(self, row: Row, rollouts: Rollouts, step: int) -> None:
        """Log the metrics that have a value, and the first of the rollouts."""
        ...

    def flush(self) -> None:
        """Return after everything logged so far is on disk or sent."""
        ...

    def close(self) -> None: ...


class TensorBoardLogger:
    """Write events under `folder`. Events of an interrupted run after `first_step` are hidden.

    TensorBoard writes in a thread of its own, and raises that thread's error again in the next call here, so the
    thread's traceback is not printed. Each method raises OSError, naming the folder, if the system refuses to write.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from accelerate.tracking import TensorBoardTracker

        self._folder = folder
        threading.excepthook = _without_refused_writes
        self._tracker = TensorBoardTracker(folder.name, folder.parent, purge_step=first_step)
        with naming(folder):
            self._tracker.start()

    def store(self, settings: Mapping[str, Any]) -> None:
        """Store the configuration, unless an earlier start of the run has stored one."""
        if not any(self._folder.glob("*/hparams.yml")):
            with naming(self._folder):
                self._tracker.store_init_configuration(dict(settings))

    def log(self, row: Row, rollouts: Rollouts, step: int) -> None:
        """Log the metrics as scalars and the rollouts as one text."""
        texts = {"rollouts": _as_markdown(_table(rollouts, step))} if rollouts else {}
        with naming(self._folder):
            self._tracker.log({**_values(row), **texts}, step=step)

    def flush(self) -> None:
        with naming(self._folder):
            self._tracker.tracker.flush()

    def close(self) -> None:
        with naming(self._folder):
            self._tracker.finish()


def _without_refused_writes(error: threading.ExceptHookArgs) -> None:
    """Print a thread's traceback as Python does, unless the system refused a write."""
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


class ServiceLogger:
    """Log to one run of Weights & Biases or of Trackio per run folder. A restarted run becomes a new one there.

    RUN/wandb.json and RUN/trackio.json hold the id there and the last step that was sent. Steps that a resumed run
    repeats are not sent again, because neither service replaces a step. A tracker that fails after the start gets
    nothing more from this process: the run continues with a warning, and metrics.jsonl is complete. Trackio turns most
    of its errors into warnings of its own, after which this class counts the step as sent.
    """

    def __init__(self, name: str, config: Config, *, notify: Callable[[str], None]) -> None:
        self._name, self._notify = name, notify
        self._file = config.run.folder / f"{name}.json"
        self._id, self._last_step = _read_record(self._file)
        self._write_record()
        self._errors: tuple[type[Exception], ...] = (OSError, ValueError)
        self._tracker: Any = None
        try:
            self._tracker = self._start_wandb(config) if name == "wandb" else self._start_trackio(config)
        except (ImportError, *self._errors) as error:
            advice = "log in (`wandb login`), set WANDB_MODE=offline" if name == "wandb" else "correct that"
            raise ConfigError(
                f"run.trackers: {name} could not be started ({_in_one_line(error)}); {advice}, or remove it"
            ) from None

    def store(self, settings: Mapping[str, Any]) -> None:
        with self._dropped_if_it_fails():
            self._tracker.store_init_configuration(dict(settings))

    def log(self, row: Row, rollouts: Rollouts, step: int) -> None:
        """Log the metrics, and the rollouts as a table, unless an earlier start has sent this step."""
        if self._tracker is None or step <= self._last_step:
            return
        columns: list[str] = list(COLUMNS)
        data = _table(rollouts, step)
        with self._dropped_if_it_fails():
            if self._name == "wandb":
                self._tracker.log(_values(row), step=step)
                self._tracker.log_table("rollouts", columns=columns, data=data, step=step)
            else:
                from trackio import Table  # pyright: ignore[reportMissingImports]

                self._tracker.log({**_values(row), "rollouts": Table(columns=columns, data=data)}, step=step)
            self._last_step = step
        self._write_record()

    def flush(self) -> None:
        """Do nothing, because both services send by themselves."""

    def close(self) -> None:
        if self._tracker is not None:
            with self._dropped_if_it_fails():
                self._tracker.finish()

    def _start_wandb(self, config: Config) -> Any:
        import wandb  # pyright: ignore[reportMissingImports]
        from accelerate.tracking import WandBTracker

        self._errors = (*self._errors, wandb.Error)
        tracker = WandBTracker(
            config.run.project, name=config.run.name, id=self._id, resume="allow", dir=str(config.run.folder)
        )
        tracker.start()
        return tracker

    def _start_trackio(self, config: Config) -> Any:
        from accelerate.tracking import TrackioTracker

        # Trackio finds the run to resume by its name.
        tracker = TrackioTracker(config.run.project, name=f"{config.run.name}-{self._id}", resume="allow")
        tracker.start()
        return tracker

    @contextlib.contextmanager
    def _dropped_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            self._tracker = None
            self._notify(
                f"warning: run.trackers: {self._name} failed after step {self._last_step} ({_in_one_line(error)}) and "
                "gets nothing more of this run until it is resumed; metrics.jsonl has every step"
            )

    def _write_record(self) -> None:
        with naming(self._file):
            write_whole(self._file, json.dumps({"id": self._id, "last_step": self._last_step}) + "\n")


def check_loggers(config: Config) -> None:
    """Raise ConfigError if a tracker is not installed, before any model is loaded."""
    if not config.run.trackers:
        return
    from accelerate.tracking import get_available_trackers

    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in config.run.trackers:
        if name not in installed:
            raise ConfigError(
                f"run.trackers: {name} is not installed; run `pip install {name}`, or remove it from the list"
            )


def open_loggers(config: Config, *, first_step: int, notify: Callable[[str], None]) -> list[Logger]:
    """Start the trackers of run.trackers, and store the configuration in each. notify: told of one that fails later."""
    loggers: list[Logger] = []
    with contextlib.ExitStack() as opened:
        for name in config.run.trackers:
            logger: Logger
            if name == "tensorboard":
                logger = TensorBoardLogger(config.run.folder / "tensorboard", first_step=first_step)
            else:
                logger = ServiceLogger(name, config, notify=notify)
            opened.callback(logger.close)
            logger.store(_settings(config))
            loggers.append(logger)
        opened.pop_all()  # the caller closes them
    return loggers


def _read_record(file: Path) -> tuple[str, int]:
    """Return the id of the run at the service and the last step sent. A missing or damaged file begins a new run."""
    older = file.with_name(f"{file.stem}-id")  # what runs of older versions left; without steps
    try:
        if older.exists() and not file.exists():
            return older.read_text(encoding="utf-8"), 0
        record = json.loads(file.read_text(encoding="utf-8"))
        return str(record["id"]), int(record["last_step"])
    except (OSError, ValueError, TypeError, KeyError):
        return secrets.token_hex(4), 0


def _settings(config: Config) -> dict[str, bool | int | float | str | None]:
    """Return every option by its name in an override. What is no scalar becomes text."""
    return {
        f"{section}.{key}": value if isinstance(value, bool | int | float | str | None) else json.dumps(value)
        for section, values in config.model_dump(mode="json").items()
        for key, value in values.items()
    }


def _values(row: Row) -> dict[str, float | int]:
    return {name: value for name, value in row.items() if value is not None and name != "step"}


def _table(rollouts: Rollouts, step: int) -> list[list[Any]]:
    """Return the first rollouts as rows with COLUMNS."""
    return [
        [_shortened(value) for value in ({"step": step, **rollout}[name] for name in COLUMNS)]
        for rollout in rollouts[:ROLLOUTS_SHOWN]
    ]


def _shortened(value: Any) -> Any:
    """Return a long text without its middle, because an answer's beginning and end say most."""
    if not isinstance(value, str) or len(value) <= MAX_SHOWN:
        return value
    return f"{value[: MAX_SHOWN // 2]} [...] {value[-MAX_SHOWN // 2 :]}"


def _as_markdown(table: Sequence[Sequence[Any]]) -> str:
    """Return the rows for TensorBoard's page of texts; indented blocks take any text as it is."""
    blocks = []
    for row in table:
        problem_id, prompt, prefix, completion, reward, verdict, advantage = row[1:]
        blocks.append(f"{problem_id}: {verdict}, reward {reward}, advantage {advantage}")
        blocks += [
            f"{name}:\n\n" + "\n".join(f"    {line}" for line in text.splitlines())
            for name, text in (("prompt", prompt), ("prefix", prefix), ("completion", completion))
            if text
        ]
    return "\n\n".join(blocks)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
