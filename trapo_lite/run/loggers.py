"""Send metrics to TensorBoard and to Weights & Biases, besides metrics.jsonl."""

import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trapo_lite.config import Config
from trapo_lite.core.errors import ConfigError
from trapo_lite.run.files import naming


class Logger(Protocol):
    def log(self, row: Mapping[str, float | int | None], step: int) -> None: ...

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
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        threading.excepthook = _without_refused_writes
        with naming(folder):
            self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def log(self, row: Mapping[str, float | int | None], step: int) -> None:
        with naming(self._folder):
            for name, value in row.items():
                if value is not None and name != "step":
                    self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        with naming(self._folder):
            self._writer.flush()

    def close(self) -> None:
        with naming(self._folder):
            self._writer.close()


def _without_refused_writes(error: threading.ExceptHookArgs) -> None:
    """Print a thread's traceback as Python does, unless the system refused a write."""
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


class WandbLogger:
    """Log to one wandb run per run folder. A resumed run keeps its id, a restarted one gets a new id."""

    def __init__(self, config: Config) -> None:
        wandb = _import_wandb()
        settings: dict[str, Any] = config.model_dump(mode="json")
        id_file = config.run.folder / "wandb-id"
        if not id_file.exists():
            with naming(id_file):
                id_file.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            project=config.run.wandb_project,
            name=config.run.name,
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            config=settings,
        )

    def log(self, row: Mapping[str, float | int | None], step: int) -> None:
        self._run.log({name: value for name, value in row.items() if value is not None}, step=step)

    def flush(self) -> None:
        """Do nothing, because wandb sends by itself."""

    def close(self) -> None:
        self._run.finish()


def check_loggers(config: Config) -> None:
    """Raise ConfigError if a configured logger is not installed, before any model is loaded."""
    if config.run.wandb_project is not None:
        _import_wandb()


def open_loggers(config: Config, *, first_step: int) -> list[Logger]:
    loggers: list[Logger] = []
    if config.run.tensorboard:
        loggers.append(TensorBoardLogger(config.run.folder / "tensorboard", first_step=first_step))
    if config.run.wandb_project is not None:
        loggers.append(WandbLogger(config))
    return loggers


def _import_wandb() -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "run.wandb_project: wandb is not installed; run `pip install wandb`, or set it to null"
        ) from None
    return wandb
