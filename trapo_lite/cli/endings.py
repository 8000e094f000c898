"""End a command as a user and a shell expect. A user's mistake gives one message and exit code 2, no traceback."""

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from trapo_lite.core.errors import TrapoLiteError
from trapo_lite.run.interrupts import EXIT_CODE, STOPPED, raising_on_interrupt

FULL = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room and run the same command again to resume")
NOT_WRITABLE = (errno.ENOTDIR, errno.EACCES, errno.EROFS, errno.EPERM)
DISK_ERRORS = FULL | dict.fromkeys(NOT_WRITABLE, "choose a folder you may write to (run.dir=...)")


@contextlib.contextmanager
def exit_when_interrupted(can_resume: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """End with one line and exit code 130 on Ctrl-C inside. can_resume: whether the same command would resume now."""
    try:
        with raising_on_interrupt():
            yield
    except KeyboardInterrupt:
        hint = "; run the same command again to resume" if can_resume() else ""
        print(f"{STOPPED}{hint}", file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None


@contextlib.contextmanager
def exit_when_stopped(run_folder: Path | None = None) -> Iterator[None]:
    """End the process as a shell expects, after a SIGTERM or SIGINT that the trainer handled inside."""
    from trapo_lite.run.folder import step_folders
    from trapo_lite.run.launch import Stopped

    def has_checkpoint() -> bool:
        return run_folder is not None and bool(step_folders(run_folder / "checkpoints"))

    try:
        with exit_when_interrupted(has_checkpoint):  # before the loop began, or the second signal
            yield
    except Stopped as stopped:
        if stopped.checkpoint_step:
            text = f"{stopped}; run the same command again to resume after step {stopped.checkpoint_step}"
        else:
            text = f"{stopped} before the first step was done; run the same command again to begin at step 1"
        print(text, file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn the project's own errors inside into one message on stderr and exit code 2."""
    try:
        yield
    except TrapoLiteError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        written = error.filename2 or error.filename or "the run folder"  # filename2 is the target of a copy
        print(f"error: {written}: {error.strerror}; {DISK_ERRORS[error.errno]}", file=sys.stderr)
        raise SystemExit(2) from None
