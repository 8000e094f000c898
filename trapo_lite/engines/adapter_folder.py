"""Manage a folder, in memory if there is room, in which each published adapter version gets its own path."""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from trapo_lite.core.errors import EngineError
from trapo_lite.model.adapter_config import CONFIG, AdapterConfig, AdapterError, read_config
from trapo_lite.model.saved_adapter import WEIGHTS, read_shapes

logger = logging.getLogger(__name__)

IN_MEMORY = Path("/dev/shm")
MIB = 2**20
TEMPORARY_FILES = 256 * MIB  # of one engine's process, whose TMPDIR is its adapter folder
PREFIX = "trapo_lite-adapters-"
ADAPTER_FILES = (CONFIG, WEIGHTS)


class AdapterFolder:
    """Own a folder for one engine, as long as this process lives and holds the folder's lock.

    The lock ends with the process in every case. So the next process finds and removes the folders of a killed run.
    """

    def __init__(
        self, parent: Path | None = None, *, room: int = 0, notify: Callable[[str], None] = logger.info
    ) -> None:
        """Make the folder. parent: where; None: `choose_parent` for `room` bytes."""
        for parent_folder in (IN_MEMORY, Path(tempfile.gettempdir())) if parent is None else (parent,):
            remove_stale_folders(parent_folder)
        is_shared, parent = parent is not None, parent or choose_parent(room, notify=notify)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        if is_shared:
            self.path.chmod(parent.stat().st_mode & 0o777)  # servers may run as another user
        self._lock = os.open(self.path / "lock.new", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(self.path / "lock.new", self.path / "lock")  # others see the file only when its lock is held

    def add(self, adapter_dir: Path, version: int) -> tuple[Path, int]:
        """Add a PEFT adapter under its version. Return (its new path, its bytes). It is never visible half written.

        This costs nothing if the adapter lies in this folder already, such as in `scratch`; otherwise it is copied.
        """
        read_servable(adapter_dir)
        target = self.path / f"version-{version:09d}"
        partial = self.path / f"partial-{version:09d}"
        num_bytes = sum((adapter_dir / name).stat().st_size for name in ADAPTER_FILES)
        try:
            self.remove(target)  # left by an engine that died
            partial.mkdir()
            for name in ADAPTER_FILES:
                take_file(adapter_dir / name, partial / name, is_own=adapter_dir.is_relative_to(self.path))
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise EngineError(
                f"{target}: cannot write an adapter of {num_bytes / MIB:.1f} MiB there: {error.strerror} "
                f"({free_bytes(self.path) / MIB:.1f} MiB are free); make room in {self.path.parent} and start the same "
                "command again"
            ) from error
        return target, num_bytes

    @property
    def scratch(self) -> Path:
        """Return the folder in which to write an adapter so that `add` takes it without a copy."""
        return self.path / "scratch"

    @property
    def temporary(self) -> Path:
        """Return the folder for the temporary files of the engine's process."""
        return self.path / "temporary"

    def remove(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def take_file(source: Path, target: Path, *, is_own: bool) -> None:
    """Link a file of this project, which costs nothing. Copy it if the file system has no hard links.

    A user's file is always copied: the copy has the permissions of a new file, and does not change with the original.
    """
    if is_own:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def choose_parent(room: int, *, notify: Callable[[str], None] = logger.info) -> Path:
    """Return the folder in memory if `room` bytes are free in it, else the folder for temporary files, with a notice.

    A container's /dev/shm often holds 64 MiB, which is less than one adapter of a 7B model.
    """
    if IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK):
        free = free_bytes(IN_MEMORY)
        if free >= room:
            return IN_MEMORY
        reason = f"{IN_MEMORY} has {free / MIB:,.0f} MiB free, adapters may need {room / MIB:,.0f} MiB"
    else:
        reason = f"{IN_MEMORY} is no folder that can be written"
    notify(f"{reason}: they are passed to vLLM through {tempfile.gettempdir()}")
    return Path(tempfile.gettempdir())


def room_for(adapter_bytes: int, *, num_engines: int) -> int:
    """Return the bytes that `num_engines` engines need: the old adapter, the new one and one spare."""
    return num_engines * (3 * adapter_bytes + TEMPORARY_FILES)


def free_bytes(folder: Path) -> int:
    statistics = os.statvfs(folder)
    return statistics.f_bavail * statistics.f_frsize


def read_servable(adapter_dir: Path) -> AdapterConfig:
    """Return the configuration of an adapter to publish. Raise EngineError unless it is a plain LoRA adapter."""
    try:
        config = read_config(adapter_dir, option="publish")
        read_shapes(config)
    except AdapterError as error:
        raise EngineError(f"not a PEFT adapter that can be served: {error}") from None
    return config


def remove_stale_folders(parent: Path) -> list[Path]:
    """Remove and return folders whose owner is gone (the lock is free). Folders of other users stay."""
    removed = []
    for folder in parent.glob(PREFIX + "*"):
        try:
            lock = os.open(folder / "lock", os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
        finally:
            os.close(lock)
    return removed
