"""Start a worker process, ask it, and kill it when it passes a deadline: the parent's side of `worker`."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from trapo_lite.config.rewards import Function, RewardFunction
from trapo_lite.core.errors import RewardError, VerifierError
from trapo_lite.core.types import VerdictKind
from trapo_lite.reward.guard import Guard
from trapo_lite.reward.worker import read_frame, write_frame

START_SECONDS = 120.0  # for the start of the interpreter, and again for each function
# The child has this interpreter's sys.path. It does not import the user's script, so no `__main__` guard is needed.
BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[5:]; from trapo_lite.reward.worker import main; "
    "main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """A Judgement is what one function makes of one response.

    value:  None if it returned no number
    detail: the text that was judged, a traceback, or what ended the process
    """

    kind: VerdictKind
    value: float | None
    detail: str | None = None


class WorkerProcess:
    """A WorkerProcess is one process and the socket to it. Only one thread may call `start` and `ask`.

    taken_by_function: what each function takes of a response, known when the process has started
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        deadline_seconds: float,
        *,
        require_box: bool,
        memory_limit_bytes: int,
        guard: Guard | None,
    ) -> None:
        self.taken_by_function: list[list[str]] = []
        self._functions = functions
        self._options = json.dumps([{**function.model_dump(), "require_box": require_box} for function in functions])
        self._deadline_seconds = deadline_seconds
        self._memory_limit_bytes = memory_limit_bytes
        self._guard = guard
        self._num_asked = 0
        self._lock = threading.Lock()  # over (_process, _is_closed)
        self._is_closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    @property
    def is_running(self) -> bool:
        return self._connection is not None

    @property
    def _late(self) -> str:
        return f"it took more than reward.deadline_seconds ({self._deadline_seconds:g} s), which you may raise"

    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start a process and wait until it can judge.

        Raise RewardError if a function of the user's cannot be loaded, VerifierError if it fails otherwise.
        """
        ours, theirs = socket.socketpair()
        options = [str(os.getpid()), str(self._deadline_seconds), str(self._memory_limit_bytes), self._options]
        paths = [os.path.abspath(path) for path in sys.path]
        with contextlib.ExitStack() as unless_started, theirs, tempfile.TemporaryFile() as errors:
            unless_started.callback(ours.close)
            with self._lock:
                if self._is_closed:
                    raise VerifierError("reward: the workers were closed while one was starting")
                self._process = subprocess.Popen(
                    [sys.executable, "-c", BOOTSTRAP, *options, *paths],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    process_group=0,  # with what a function starts
                )
                if self._guard is not None:
                    self._guard.add(self._process.pid)
            theirs.close()
            self._connection = ours
            unless_started.pop_all()
            ours.settimeout(START_SECONDS)
            self._load_functions(ours, self._process, errors)

    def _load_functions(self, connection: socket.socket, process: "subprocess.Popen[bytes]", errors: IO[bytes]) -> None:
        """Read frames until all functions are loaded. errors: the file that the process writes errors to."""
        loading: RewardFunction | None = None
        is_late = False
        try:
            state, *values = read_frame(connection)
            while state == "loading":
                loading = self._functions[values[0]]
                state, *values = read_frame(connection)
        except (EOFError, OSError, ValueError) as error:  # TimeoutError and ConnectionError are OSErrors
            is_late = isinstance(error, TimeoutError)
            self._stop()
            if self._is_closed:
                raise VerifierError("reward: the workers were closed while one was starting") from None
            raise start_error(loading, None if is_late else process.returncode, _last_line(errors)) from None
        if state == "refused":
            self._stop()
            raise RewardError(f"reward.functions: {values[0]}")
        self.taken_by_function = values[0]

    def ask(self, index: int, question: dict[str, Any]) -> Judgement | None:
        """Return the judgement of one function within the deadline, or None if the pool was closed meanwhile."""
        connection, process = self._connection, self._process
        if connection is None or process is None:
            raise ValueError("WorkerProcess.ask: not started")
        self._num_asked += 1
        expiry = time.monotonic() + self._deadline_seconds
        try:
            # Each socket call may take the whole deadline. In practice a worker reads at once and writes one frame.
            connection.settimeout(self._deadline_seconds)
            write_frame(connection, [self._num_asked, index, question])
            connection.settimeout(max(expiry - time.monotonic(), 0.001))
            answer = read_frame(connection)
        except TimeoutError:
            self._stop()
            return Judgement("timeout", None, self._late)
        except (ValueError, RecursionError):
            answer = None  # no JSON
        except (EOFError, OSError):
            self._stop()
            if self._is_closed:
                return None
            if process.returncode == -signal.SIGALRM:
                return Judgement("timeout", None, self._late)
            logger.info("a reward worker ended by itself, exit status %s", process.returncode)
            how = f"its process ended by itself {ending(process.returncode)}"
            return Judgement("crash", None, f"{how}; perhaps it took more than reward.memory_mb")
        match answer:
            case [question_id, kind, value, detail] if question_id == self._num_asked:
                return Judgement(kind, value, detail)
        self._stop()
        return Judgement("crash", None, "its process was killed, because something else wrote into the worker's socket")

    def close(self) -> None:
        """Kill the process. `ask` and `start` return at once, and no other process is started."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                _kill_group(self._process)

    def _stop(self) -> None:
        """Kill the process and what a function started in it. A process that had ended before keeps its exit status."""
        if self._process is not None:
            _kill_group(self._process)
            if self._guard is not None:
                self._guard.remove(self._process.pid)
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def start_error(loading: RewardFunction | None, status: int | None, last_line: str) -> RewardError | VerifierError:
    """Return the error of a process that did not start.

    loading: the function that was being loaded
    status:  exit status of the process; None: it was killed because it took too long
    last_line: a sentence on what it printed
    """
    if not isinstance(loading, Function):
        how = f"took more than {START_SECONDS:g} s" if status is None else f"ended {ending(status)}"
        return VerifierError(f"reward: a worker process did not start: it {how}. {last_line}")
    where, _, name = loading.path.rpartition(":")
    if status is None:
        how = f"took more than {START_SECONDS:g} s, so its process was killed; let it do less, or later, in {name}"
    elif status == -signal.SIGKILL:
        how = (
            "was ended by signal SIGKILL, which the system sends when memory runs out (reward.memory_mb does not limit "
            "imports); let it take less memory, or set reward.num_workers lower"
        )
    else:
        how = f"ended the process {ending(status)}; correct it. {last_line}"
    return RewardError(f"reward.functions: {loading.label}: importing {where} {how}")


def ending(status: int) -> str:
    """Return how a process ended, by its exit status.

    >>> ending(3), ending(-9), ending(-35)
    ('with exit status 3', 'by signal SIGKILL', 'by signal 35')
    """
    if status >= 0:
        return f"with exit status {status}"
    known = {int(known): known.name for known in signal.Signals}
    return f"by signal {known.get(-status, -status)}"  # a real-time signal has no name


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f"The last line that it printed: {lines[-1]}" if lines else "It printed nothing"


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill a worker and the processes that a function started in it; its group exists as long as one of them does."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
