"""Find the leftovers of a killed run: processes, shared memory, a lock. Part of benchmarks/kill_resume.py."""

import fcntl
import os
import time
from pathlib import Path

MARK = "TRAPO_LITE_KILL_TEST"


def left_behind(mark: str, folder: Path, shared_before: set[str]) -> list[str]:
    """Return what is still there ten seconds after the kill. The time is for a worker that was starting."""
    deadline = time.monotonic() + 10.0
    while True:
        found = [f"process {pid}: {command_line(pid)}" for pid in processes_with(mark)]
        found += [name for name in sorted(shared_memory() - shared_before) if not is_held(name)]
        found += ["lock"] if folder.exists() and is_locked(folder) else []
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def processes_with(mark: str) -> list[int]:
    """Return the processes, at any depth below the run, that inherited its mark. This process does not have it."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # it has ended meanwhile
                continue
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:  # it has ended meanwhile
        return "ended"


def shared_memory() -> set[str]:
    return {str(path) for path in Path("/dev/shm").iterdir()}


def is_held(name: str) -> bool:
    """Return whether a living process, such as another run, was given it, or has a part of it open or mapped."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if name.encode() in (folder / "cmdline").read_bytes():
                    return True
                opened = [os.readlink(link) for link in (folder / "fd").iterdir()]
                if any(target.startswith(name) for target in opened) or name in (folder / "maps").read_text():
                    return True
            except OSError:  # it has ended meanwhile
                continue
    return False


def is_locked(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
