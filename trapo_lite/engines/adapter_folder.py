"""A RAM-backed folder in which each published adapter version gets a path of its own."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from trapo_lite.adapter import CONFIG, WEIGHTS, AdapterConfig, AdapterError, read_config, read_shapes
from trapo_lite.engines.base import EngineError

PREFIX = "trapo_lite-adapters-"
ADAPTER_FILES = (CONFIG, WEIGHTS)


class AdapterFolder:
    """Owned by one engine, as long as this process lives and holds the lock in it.

    The lock goes with the process, however it ends, so the next one to start finds and removes what a killed run left.
    """

    def __init__(self, parent: Path | None = None) -> None:
        is_shared, parent = parent is not None, parent or default_parent()
        remove_stale_folders(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        if is_shared:
            self.path.chmod(parent.stat().st_mode & 0o777)  # servers may run as another user
        self._lock = os.open(self.path / "lock.new", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(self.path / "lock.new", self.path / "lock")  # only ever seen by others when it is held

    def add(self, adapter_dir: Path, version: int) -> tuple[Path, int]:
        """Copy a PEFT adapter in under its version: (its new path, bytes copied). Never seen half written."""
        read_servable(adapter_dir)
        target = self.path / f"version-{version:09d}"
        partial = self.path / f"partial-{version:09d}"
        partial.mkdir()
        for name in ADAPTER_FILES:
            shutil.copyfile(adapter_dir / name, partial / name)
        partial.rename(target)
        return target, sum((target / name).stat().st_size for name in ADAPTER_FILES)

    def remove(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def read_servable(adapter_dir: Path) -> AdapterConfig:
    """The configuration of an adapter that is to be published; EngineError unless it is a plain LoRA adapter."""
    try:
        config = read_config(adapter_dir, option="publish")
        read_shapes(config)
    except AdapterError as error:
        raise EngineError(f"not a PEFT adapter that can be served: {error}") from None
    return config


def default_parent() -> Path:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def remove_stale_folders(parent: Path) -> list[Path]:
    """Remove folders whose owner is gone (its lock is free); return them. Those of other users stay."""
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
