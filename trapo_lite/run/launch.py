"""Handle how this process was started and how it is stopped: launcher, threads, signals."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import yaml

from trapo_lite.config import Config
from trapo_lite.core.errors import ConfigError

ACCELERATE_DEFAULT = (
    Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "accelerate/default_config.yaml"
)
LAUNCHERS = ("launch", "accelerate.commands.launch")
PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """Stopped is raised after SIGTERM or SIGINT. `exit_code` is what a shell expects after this signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class StopSignals:
    """Turn the first SIGTERM or SIGINT into a Stopped at the next `check`, so that no update is cut in half.

    A second signal has its default effect at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous = {signum: signal.signal(signum, self._receive) for signum in (signal.SIGTERM, signal.SIGINT)}

    def check(self) -> None:
        if self.received is not None:
            raise Stopped(self.received)

    def restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        self.received = signum
        self.restore()


def check_world_size(world_size: int) -> None:
    """Raise ConfigError if fewer processes run than the launcher was asked for.

    `accelerate launch --cpu --num_processes 2` starts one process without a warning.
    """
    asked = _asked_processes()
    if asked is not None and asked != world_size:
        raise ConfigError(
            f"launch: {asked} processes were asked for but {world_size} started; on the CPU use "
            f"`torchrun --nproc_per_node {asked} scripts/train.py ...`"
        )


def end_with_launcher() -> None:
    """Make Linux kill this process when its launcher dies, because launchers do not pass on a SIGKILL.

    Raises ConfigError if the launcher is dead already: this process would wait for hours for the others.
    """
    parent = os.getppid()
    is_elastic = "TORCHELASTIC_RUN_ID" in os.environ
    if sys.platform != "linux" or not (is_elastic or _launcher_place(_arguments(parent)) is not None):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent or (is_elastic and not any(map(_is_python, _ancestors()))):
        raise ConfigError("launch: the launcher that started this process is gone; give the command again")


def set_threads(config: Config) -> None:
    import torch

    if config.run.num_threads is not None:
        torch.set_num_threads(config.run.num_threads)


def _asked_processes(arguments: Sequence[str] | None = None) -> int | None:
    """Return the number of processes that the `accelerate launch` above this process was asked for.

    The number is from --num_processes or its configuration file; None if there is no such launcher or number.
    """
    arguments = _arguments(os.getppid()) if arguments is None else arguments
    launcher = _launcher_place(arguments)
    if launcher is None:
        return None
    asked = _option(arguments[launcher + 1 :], "--num_processes", "--num-processes", "-n")
    if asked is None:
        file = _option(arguments[launcher + 1 :], "--config_file", "--config-file")
        asked = _configured_processes(Path(file) if file else ACCELERATE_DEFAULT)
    return int(asked) if asked and asked.isdigit() else None


def _option(arguments: Sequence[str], *names: str) -> str | None:
    """Return the value of the first of these options before the launched script."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            return value if equals else (*arguments[index + 1 : index + 2], None)[0]
        if argument.endswith(".py"):
            break
    return None


def _configured_processes(file: Path) -> str | None:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None  # accelerate itself reports what is wrong with it
    return str(content["num_processes"]) if isinstance(content, dict) and "num_processes" in content else None


def _launcher_place(arguments: Sequence[str]) -> int | None:
    return next((index for index, argument in enumerate(arguments) if argument in LAUNCHERS), None)


def _ancestors() -> Iterator[int]:
    """Yield the processes above this one, the nearest first. A shell may be between a launcher and its rank."""
    pid = os.getppid()
    while pid > 0:
        yield pid
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return
        pid = int(stat.rpartition(")")[2].split()[1])  # the process's name comes first and may hold any character


def _is_python(pid: int) -> bool:
    """Return whether a process is Python, as torch's launchers are and a process that adopts orphans is not."""
    try:
        return "python" in Path(os.readlink(f"/proc/{pid}/exe")).name
    except PermissionError:  # another user's process, such as one that adopts orphans
        return False
    except OSError:
        return True


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
