"""Handle how this process was started and how it is stopped: launcher and signals."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from trapo_lite.core.errors import ConfigError

LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_USE_CPU")  # torchrun sets the first, accelerate launch the second
PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """Stopped is raised after SIGTERM or SIGINT.

    exit_code:       what a shell expects after this signal
    checkpoint_step: the step of the newest checkpoint, 0 without one
    """

    def __init__(self, signum: int, *, checkpoint_step: int = 0) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum
        self.checkpoint_step = checkpoint_step


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


def end_with_launcher() -> None:
    """Make Linux kill this process when its launcher dies, because launchers do not pass on a SIGKILL.

    Raises ConfigError if the launcher is dead already: this process would wait for hours for the others.
    """
    parent = os.getppid()
    if sys.platform != "linux" or not any(name in os.environ for name in LAUNCHED):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent or not any(map(_is_python, _ancestors())):
        raise ConfigError("launch: the launcher that started this process is gone; give the command again")


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
