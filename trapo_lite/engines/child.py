"""Run a Python child process that answers calls over a socket and never outlives its parent."""

import atexit
import collections
import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from trapo_lite.engines.base import EngineDied

logger = logging.getLogger(__name__)

WAIT_INTERVAL_S = 5.0
SEND_LIMIT_S = 60  # a child that reads its calls takes one at once
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
LAUNCHER_PREFIXES = ("MASTER_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "OMPI_", "PMI_")


def environment_without_launcher() -> dict[str, str]:
    """Return this process's environment without the variables of torchrun and accelerate.

    With them an engine would act as a rank of the trainer's group and wait for the other ranks.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHER_VARIABLES and not name.startswith(LAUNCHER_PREFIXES)
    }


class ChildProcess:
    """Run `python -m module FD PARENT_PID ...`, and talk to it by `send` and `call`. Its output goes to `log_path`.

    A child that fails dies with its traceback in the log. The caller gets an EngineDied with the last lines. A child
    that is silent beyond a deadline, or does not read its messages, is killed.
    """

    def __init__(self, module: str, *arguments: str, environment: dict[str, str], log_path: Path) -> None:
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        with theirs, log_path.open("ab") as log:
            # A session of its own, because Ctrl-C is for the parent, which ends the child by closing the socket.
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", module, str(theirs.fileno()), str(os.getpid()), *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self.connection = Connection(ours.detach())
        self.limit_sending(SEND_LIMIT_S)

    @property
    def is_closed(self) -> bool:
        return self.connection.closed

    def limit_sending(self, seconds: int) -> None:
        """Set how long a call may wait until the child reads it."""
        self._send_limit_s = seconds
        with socket.socket(fileno=os.dup(self.connection.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))

    def send(self, method: str, *arguments: Any) -> None:
        if self.is_closed:
            raise EngineDied("rollout engine: it was closed or has died; start a new one")
        try:
            self.connection.send((method, arguments))
        except BlockingIOError:
            raise self._has_hung(f"it did not read {method!r} within {self._send_limit_s} s") from None
        except OSError:
            raise self._has_died() from None

    def call(self, method: str, *arguments: Any, limit_s: float) -> Any:
        """Return the child's answer to one method. Raise EngineDied if it dies, or is silent for `limit_s` seconds."""
        self.send(method, *arguments)
        return self.receive(limit_s=limit_s, waiting_for=method)

    def receive(
        self,
        *,
        limit_s: float,
        waiting_for: str,
        on_wait: Callable[[float], None] | None = None,
        restarts_with_log: bool = False,
    ) -> Any:
        """Return the child's next message. `on_wait(seconds so far)` is called every few seconds.

        restarts_with_log: restart `limit_s` whenever the child has written to its log
        """
        start = last_sign = time.monotonic()
        log_size = self._log_size()
        while (waited := time.monotonic() - last_sign) < limit_s:
            try:
                if self.connection.poll(min(WAIT_INTERVAL_S, limit_s - waited)):
                    return self.connection.recv()
            except (EOFError, OSError):
                raise self._has_died() from None
            if on_wait is not None:
                on_wait(time.monotonic() - start)
            if restarts_with_log and (size := self._log_size()) != log_size:
                log_size, last_sign = size, time.monotonic()
        silence = " in which its log did not grow" if restarts_with_log else ""
        raise self._has_hung(f"no answer to {waiting_for!r} within {limit_s:.0f} s{silence}")

    def close(self) -> None:
        """End the child. It leaves when the socket closes, and is killed if it does not within 5 seconds."""
        self.connection.close()
        try:
            self.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # processes that it started and, when killed, could not end

    def _has_hung(self, how: str) -> EngineDied:
        self.process.kill()  # before the socket closes, because a living child would then remove its folder
        self.close()
        return EngineDied(
            f"rollout engine: {how}, so its process was killed.\nThe whole log is in {self.log_path}, its last lines:\n"
            f"{self._log_tail()}"
        )

    def _has_died(self) -> EngineDied:
        self.close()
        status = self.process.returncode
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        if status == -signal.SIGKILL:
            how += " (the system kills processes when memory runs out)"
        return EngineDied(
            f"rollout engine: its process ended {how}.\nThe whole log is in {self.log_path}, its last lines:\n"
            f"{self._log_tail()}"
        )

    def _log_size(self) -> int:
        """Return the bytes of the log, or 0 if somebody removed it, which must not end a run."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def _log_tail(self, num_lines: int = 25) -> str:
        if not self.log_path.exists():
            return "(it was removed)"
        with self.log_path.open(encoding="utf-8", errors="replace") as log:
            return "".join(collections.deque(log, maxlen=num_lines))


def die_with_parent(fd: int, parent_pid: int, *folders: Path) -> None:
    """Start a thread, first thing in the child, that removes the folders and ends the process when the parent is gone.

    The parent is gone if it closed its end of the socket, or if this process has another parent. The second test is for
    a sibling forked by the parent that keeps a copy of the socket open. PR_SET_PDEATHSIG is not enough: it fires when
    the THREAD that started the child ends, and it leaves the folders behind.
    """

    def is_parent_gone(*, within_ms: int) -> bool:
        poller = select.poll()
        poller.register(fd, 0)  # asks for no event, because a hang-up or a closed descriptor wakes it anyway
        has_hung_up = any(event & select.POLLHUP for _, event in poller.poll(within_ms))
        return has_hung_up or os.getppid() != parent_pid

    def watch() -> None:
        while not is_parent_gone(within_ms=1000):
            pass
        with contextlib.suppress(OSError):  # a full disk must not keep the engine alive
            os.write(1, b"the trainer closed this engine or ended\n")
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)  # ends also the compilers that vLLM has started
        os._exit(0)

    def let_the_watch_finish() -> None:
        """Wait for the watching thread, because the end of the main thread would stop it early."""
        if is_parent_gone(within_ms=0):
            watcher.join()

    watcher = threading.Thread(target=watch, name="die-with-parent", daemon=True)
    watcher.start()
    atexit.register(let_the_watch_finish)
