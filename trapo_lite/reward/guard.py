"""Kill what reward functions have started when the process that started the workers ends, by whatever signal.

A worker dies with the trainer, but the processes that a function started in it would go on. The guard is a process in a
session of its own: this file, run as a script with the trainer's process id. On its standard input it reads a line
+GROUP for each worker that was started and -GROUP for each that was ended. When the input closes, or the trainer is no
longer its parent, it kills the process groups that are left.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys

SECONDS_BETWEEN_LOOKS = 1.0  # at the parent, for a process that keeps a copy of the input open


class Guard:
    """A Guard is the trainer's side: it starts the process and names the groups. Any thread may call its methods."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            bufsize=0,  # a line is written whole or not at all
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the trainer
        )

    def add(self, group: int) -> None:
        self._write(f"+{group}\n")

    def remove(self, group: int) -> None:
        self._write(f"-{group}\n")

    def close(self) -> None:
        """End the process. Nothing is killed, so the groups must have ended before."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has ended or was closed
            if self._process.stdin is not None:
                self._process.stdin.write(line.encode())


def main(parent_pid: int) -> None:
    """Wait for the parent's end, then kill the groups that are left."""
    groups: set[int] = set()
    rest = b""
    while os.getppid() == parent_pid:
        if not select.select([0], [], [], SECONDS_BETWEEN_LOOKS)[0]:
            continue
        received = os.read(0, 4096)
        if not received:
            break
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
