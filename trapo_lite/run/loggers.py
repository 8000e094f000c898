"""Send each step's metrics and some of its rollouts to the trackers of run.trackers, besides metrics.jsonl.

The trackers are Accelerate's classes (`accelerate.tracking`). They need the process state that `Ranks` makes.
"""

import contextlib
import json
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

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


class ServiceLogger(ABC):
    """Log to one run of Weights & Biases or of Trackio per run folder. A restarted run becomes a new one there.

    RUN/wandb.json and RUN/trackio.json hold the id there and the last step that was sent. Steps that a resumed run
    repeats are not sent again, because neither service replaces a step. A tracker that fails after the start gets
    nothing more from this process: the run continues with a warning, and metrics.jsonl is complete.
    """

    name: ClassVar[str]
    cure: ClassVar[str]  # of a start that failed
    errors: tuple[type[Exception], ...] = (OSError, ValueError)

    def __init__(self, config: Config, *, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._file = config.run.folder / f"{self.name}.json"
        self._id, self._last_step = _read_record(self._file)
        self._write_record()
        self._tracker: Any = None
        try:
            self._tracker = self.make_tracker(config, self._id)
            self._tracker.start()
        except (ImportError, *self.errors) as error:
            raise ConfigError(
                f"run.trackers: {self.name} could not be started ({_in_one_line(error)}); {self.cure}, or remove it"
            ) from None

    @abstractmethod
    def make_tracker(self, config: Config, run_id: str) -> Any:
        """Return Accelerate's tracker, not started, which resumes the run of this id if there is one."""

    @abstractmethod
    def send(self, tracker: Any, values: dict[str, Any], table: list[list[Any]], step: int) -> None:
        """Send the metrics of a step, and its rollouts as a table with COLUMNS."""

    def store(self, settings: Mapping[str, Any]) -> None:
        with self._dropped_if_it_fails():
            self._tracker.store_init_configuration(dict(settings))

    def log(self, row: Row, rollouts: Rollouts, step: int) -> None:
        """Log the metrics, and the rollouts as a table, unless an earlier start has sent this step."""
        if self._tracker is None or step <= self._last_step:
            return
        with self._dropped_if_it_fails():
            self.send(self._tracker, _values(row), _table(rollouts, step), step)
            self._last_step = step
        self._write_record()

    def flush(self) -> None:  # noqa: B027
        """Do nothing, because both services send by themselves."""

    def close(self) -> None:
        if self._tracker is not None:
            with self._dropped_if_it_fails():
                self._tracker.finish()

    @contextlib.contextmanager
    def _dropped_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except self.errors as error:
            self._tracker = None
            self._notify(
                f"warning: run.trackers: {self.name} failed after step {self._last_step} ({_in_one_line(error)}) and "
                "gets nothing more of this run until it is resumed; metrics.jsonl has every step"
            )

    def _write_record(self) -> None:
        with naming(self._file):
            write_whole(self._file, json.dumps({"id": self._id, "last_step": self._last_step}) + "\n")


class WandbLogger(ServiceLogger):
    """Log to Weights & Biases."""

    name = "wandb"
    cure = "log in (`wandb login`), set WANDB_MODE=offline"

    def make_tracker(self, config: Config, run_id: str) -> Any:
        import wandb  # pyright: ignore[reportMissingImports]
        from accelerate.tracking import WandBTracker

        self.errors = (*self.errors, wandb.Error)
        return WandBTracker(
            config.run.project, name=config.run.name, id=run_id, resume="allow", dir=str(config.run.folder)
        )

    def send(self, tracker: Any, values: dict[str, Any], table: list[list[Any]], step: int) -> None:
        tracker.log(values, step=step)
        tracker.log_table("rollouts", columns=list(COLUMNS), data=table, step=step)


class TrackioLogger(ServiceLogger):
    """Log to Trackio, which turns most of its errors into warnings of its own; the step then counts as sent."""

    name = "trackio"
    cure = "correct that"

    def make_tracker(self, config: Config, run_id: str) -> Any:
        from accelerate.tracking import TrackioTracker

        # Trackio finds the run to resume by its name.
        return TrackioTracker(config.run.project, name=f"{config.run.name}-{run_id}", resume="allow")

    def send(self, tracker: Any, values: dict[str, Any], table: list[list[Any]], step: int) -> None:
        from trackio import Table  # pyright: ignore[reportMissingImports]

        tracker.log({**values, "rollouts": Table(columns=list(COLUMNS), data=table)}, step=step)


SERVICES: dict[str, type[ServiceLogger]] = {service.name: service for service in (WandbLogger, TrackioLogger)}


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
                logger = SERVICES[name](config, notify=notify)
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
