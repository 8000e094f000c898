"""A RAM-backed folder in which each published adapter version gets a path of its own."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from trapo_lite.engines.base import EngineError
from trapo_lite.files import naming

PREFIX = "trapo_lite-adapters-"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class AdapterFolder:
    """Owned by one engine, as long as this process lives and holds the lock in it.

    The lock goes with the process, however it ends, so the next one to start finds and removes what a killed run left.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or default_parent()
        remove_stale_folders(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self._lock = os.open(self.path / "lock.new", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(self.path / "lock.new", self.path / "lock")  # only ever seen by others when it is held

    def add(self, adapter_dir: Path, version: int) -> tuple[Path, int]:
        """Copy a PEFT adapter in under its version: (its new path, bytes copied). Never seen half written."""
        missing = [name for name in ADAPTER_FILES if not (adapter_dir / name).is_file()]
        if missing:
            raise EngineError(f"{adapter_dir}: not a PEFT adapter, {missing[0]} is missing; publish what PEFT saved")
        target = self.path / f"version-{version:09d}"
        partial = self.path / f"partial-{version:09d}"
        partial.mkdir()
        for name in ADAPTER_FILES:
            with naming(partial / name):
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
