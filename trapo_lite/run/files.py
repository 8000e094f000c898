"""Write files of results in one rename, raise one error if the system refuses, and write files of tensors."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trapo_lite.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor


def replace_text(path: Path, text: str, *, option: str = "--out") -> None:
    """Write the file, which `option` named, in one rename."""
    with errors_named(path, option=option):
        write_whole(path, text)


def write_whole(path: Path, text: str) -> None:
    """Write a file in one rename. Raises OSError where the system refuses; the file is then as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def append_bytes(path: Path, content: bytes, *, option: str = "--out") -> int:
    """Append to the file, which `option` named, in one write. Return the file's new length."""
    with errors_named(path, option=option), path.open("ab") as file:
        file.write(content)
        return file.tell()


def move_into_place(new: Path, folder: Path) -> None:
    """Replace one folder by another. The old folder is deleted only after that."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make every OSError inside name this path, because a failed write names no file and a copy names its source."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def errors_named(path: Path, *, option: str = "--out") -> Iterator[None]:
    """Turn the system's refusals inside into one DataError that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{option} {path}: cannot be written: {reason}; make room and give the same command again, or choose "
            "another place"
        ) from None


def make_folder(out: Path) -> None:
    """Make the folder. Raise ConfigError if `--out` is a file, DataError if the system refuses."""
    if out.is_file():
        raise ConfigError(f"--out {out}: is a file; give a folder for the results")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be made: {error.strerror}; give a folder you may write to") from None


def save_tensors(tensors: "Mapping[str, Tensor]", file: Path) -> None:
    """Write a safetensors file with the permissions of any new file. Raise OSError if that is impossible.

    safetensors writes a temporary file, which only its owner may read, and renames it.
    """
    file.touch()
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    mode = file.stat().st_mode
    try:
        save_file(dict(tensors), file, metadata={"format": "pt"})
    except SafetensorError as error:  # safetensors reports a full disk like this
        code = errno.ENOSPC if "No space left" in str(error) else errno.EIO
        raise OSError(code, os.strerror(code), str(file)) from error
    file.chmod(mode)


@contextlib.contextmanager
def lock(folder: Path, *, option: str) -> Iterator[None]:
    """Lock the folder, which `option` named, against other processes. Raise ConfigError if one has locked it."""
    descriptor = try_lock(folder)
    if descriptor is None:
        raise ConfigError(f"{option}: another process is writing to {folder}; wait for it, stop it, or choose another")
    try:
        yield
    finally:
        os.close(descriptor)


def try_lock(folder: Path) -> int | None:
    """Lock the folder in the kernel. Return the descriptor that holds the lock, or None if another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def free_bytes(folder: Path) -> float | None:
    """Return the free bytes for the folder, which need not exist yet. Return None if it cannot be made or written."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            return None
        return float(shutil.disk_usage(folder).free)
    except OSError:
        return None
