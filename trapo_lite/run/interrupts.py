"""End a command by Ctrl-C with one line and exit code 130, also while Python still imports packages.

Only the standard library is imported, so that this can be the first thing that a command does.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 130
STOPPED = "stopped by SIGINT"
IMPORT_MACHINERY = "importlib._bootstrap"


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Make SIGINT end the process at once inside. Nothing is done if SIGINT is ignored, or handled by others."""
    if not end_at_once():
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_at_once() -> bool:
    """Make SIGINT end the process at once from now on. Return False if that is not for this process to decide."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    try:
        signal.signal(signal.SIGINT, _end)
    except ValueError:  # not the main thread, which alone may do this
        return False
    return True


@contextlib.contextmanager
def raising_on_interrupt() -> Iterator[None]:
    """Make SIGINT raise KeyboardInterrupt inside, for code that has something to save or to close.

    It still ends the process at once during an import, because libraries turn the exception into an ImportError.
    """
    if signal.getsignal(signal.SIGINT) is not _end:
        yield
        return
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)


def _end(_signum: int, _frame: FrameType | None) -> None:
    with contextlib.suppress(Exception):  # the interrupted code may be writing to it
        sys.stdout.flush()
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(EXIT_CODE)


def _raise(signum: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        _end(signum, frame)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").endswith(IMPORT_MACHINERY):
            return True
        frame = frame.f_back
    return False
