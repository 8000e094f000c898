"""Run worker processes: kill one that passes the deadline, replace it by a warm one, leave none behind."""

import contextlib
import importlib.util
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from trapo_lite.config.rewards import RewardFunction
from trapo_lite.core.errors import RewardError, VerifierError
from trapo_lite.core.types import Response, VerdictKind
from trapo_lite.reward.extraction import MAX_TEXT_CHARS
from trapo_lite.reward.worker import read_frame, write_frame

START_SECONDS = 120.0
MAX_GOLD_CHARS = 20_000
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


class WorkerPool:
    """Judge responses in `num_workers` processes, each within `deadline_seconds` after a worker takes it up.

    functions: of `reward.functions`. A worker that passes the deadline is killed and replaced; the judgement is
    timeout. If a worker dies by itself, for example at `memory_limit_bytes`, it is crash. Every method may be called
    from any thread. A pool made before a fork cannot be used after it, so every process builds its own. Workers end
    with the pool or with this process, whatever signal ends it.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        num_workers: int = 2,
        deadline_seconds: float = 5.0,
        *,
        require_box: bool = False,
        memory_limit_bytes: int = 2 << 30,
    ) -> None:
        if num_workers < 1 or deadline_seconds <= 0:
            raise ValueError(
                f"WorkerPool: num_workers={num_workers}, deadline_seconds={deadline_seconds}; both must be positive"
            )
        if memory_limit_bytes < 256 << 20:
            raise ValueError(
                f"WorkerPool: memory_limit_bytes={memory_limit_bytes}; a worker needs 256 MiB (268435456) to start"
            )
        if importlib.util.find_spec("math_verify") is None:
            raise VerifierError("reward: math-verify is not installed; pip install 'math-verify[antlr4_13_2]'")
        self.functions = tuple(functions)
        options = json.dumps([{**function.model_dump(), "require_box": require_box} for function in functions])
        self._pid = os.getpid()
        self._questions: queue.SimpleQueue[tuple[Future[Judgement], list] | None] = queue.SimpleQueue()
        self._submitting = threading.Lock()
        self._is_closed = False
        self._workers = [_Worker(options, deadline_seconds, memory_limit_bytes) for _ in range(num_workers)]
        # One thread per worker, alive as long as the pool, because a worker dies with the thread that started it.
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), name=f"reward-{i}", daemon=True)
            for i, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, number: int, response: Response) -> "Future[Judgement]":
        """Queue a response for function `number`.

        The future fails with VerifierError if the pool closes first or no worker starts, with RewardError if a function
        cannot be loaded.
        """
        if os.getpid() != self._pid:
            raise VerifierError("reward: the workers were used after a fork; start some in the new process")
        future: Future[Judgement] = Future()
        question = [number, question_of(response, self.functions[number].type)]
        with self._submitting:
            if self._is_closed:
                raise VerifierError("reward: the workers are closed; submit responses before that")
            self._questions.put((future, question))
        return future

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers alive now, for monitoring."""
        return [pid for worker in self._workers if (pid := worker.pid()) is not None]

    def close(self) -> None:
        """Kill the workers and fail every response without a judgement. May be called twice, and from any thread."""
        if os.getpid() != self._pid:
            return
        with self._submitting:
            self._is_closed = True
            for _ in self._threads:
                self._questions.put(None)
        for worker in self._workers:
            worker.close()
        for thread in self._threads:
            if thread is not threading.current_thread():  # a future's callback may close the verifier
                thread.join(timeout=10.0)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self, worker: "_Worker") -> None:
        """Keep one worker warm and give it questions until the pool closes."""
        failure = _start(worker)
        while (item := self._questions.get()) is not None:
            future, question = item
            if not future.set_running_or_notify_cancel():
                continue
            if self._is_closed:
                future.set_exception(VerifierError("reward: the workers were closed before this response's turn"))
                continue
            failure = _start(worker) if failure or not worker.is_running else None
            judgement = None if failure else worker.ask(question)
            if judgement is not None:
                future.set_result(judgement)
            else:
                future.set_exception(failure or VerifierError("reward: the workers were closed during this response"))
            if not failure and not worker.is_running and not self._is_closed:
                failure = _start(worker)  # now, so that the next answer need not wait for it
        worker.close()


def question_of(response: Response, kind: str) -> dict[str, Any]:
    """Return the response as the workers get it, for a function of this type: only the user's own see the row."""
    is_math, is_own = kind == "math", kind == "function"
    return {
        "problem": response.problem.text if is_own else "",
        "answer": response.problem.answer[-MAX_GOLD_CHARS:] if is_math else response.problem.answer,
        "response": response.text[-MAX_TEXT_CHARS:] if is_math else response.text,
        "row": response.problem.row if is_own else {},
        "is_truncated": response.is_truncated,
        "num_tokens": response.num_tokens,
        "step": response.step,
    }


def _start(worker: "_Worker") -> VerifierError | RewardError | None:
    try:
        worker.start()
    except (VerifierError, RewardError) as error:
        return error
    except OSError as error:  # no more files, processes or memory; the next response tries again
        return VerifierError(f"reward: a worker process cannot be started: {error}")
    return None


class _Worker:
    """A _Worker is one process and the socket to it. Only one thread may call `start` and `ask`."""

    def __init__(self, functions: str, deadline_seconds: float, memory_limit_bytes: int) -> None:
        self._functions = functions
        self._deadline_seconds = deadline_seconds
        self._memory_limit_bytes = memory_limit_bytes
        self._lock = threading.Lock()  # over (_process, _is_closed)
        self._is_closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    @property
    def is_running(self) -> bool:
        return self._connection is not None

    @property
    def _late(self) -> str:
        return f"it took more than reward.deadline_seconds ({self._deadline_seconds:g} s)"

    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start a process and wait until it can judge.

        Raise RewardError if a function cannot be loaded, VerifierError with its last output if it fails otherwise.
        """
        ours, theirs = socket.socketpair()
        options = [str(os.getpid()), str(self._deadline_seconds), str(self._memory_limit_bytes), self._functions]
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
            theirs.close()
            self._connection = ours
            unless_started.pop_all()
            ours.settimeout(START_SECONDS)
            try:
                state, *why = read_frame(ours)
            except (EOFError, OSError):  # TimeoutError and ConnectionError are OSErrors
                self._stop()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"]
                raise VerifierError(f"reward: a worker process did not start: {lines[-1]}") from None
            if state == "refused":
                self._stop()
                raise RewardError(f"reward.functions: {why[0]}")

    def ask(self, question: list) -> Judgement | None:
        """Return the judgement on one question within the deadline, or None if the pool was closed meanwhile."""
        connection, process = self._connection, self._process
        if connection is None or process is None:
            raise ValueError("_Worker.ask: not started")
        expiry = time.monotonic() + self._deadline_seconds
        try:
            # Each socket call may take the whole deadline. In practice a worker reads at once and writes one frame.
            connection.settimeout(self._deadline_seconds)
            write_frame(connection, question)
            connection.settimeout(max(expiry - time.monotonic(), 0.001))
            return Judgement(*read_frame(connection))
        except TimeoutError:
            self._stop()
            return Judgement("timeout", None, self._late)
        except (EOFError, OSError):
            self._stop()
            if self._is_closed:
                return None
            if process.returncode == -signal.SIGALRM:
                return Judgement("timeout", None, self._late)
            logger.info("a reward worker ended by itself, exit status %s", process.returncode)
            how = f"its process ended by itself with exit status {process.returncode}"
            return Judgement("crash", None, f"{how}; perhaps it took more than reward.memory_mb")

    def close(self) -> None:
        """Kill the process. `ask` and `start` return at once, and no other process is started."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                _kill_group(self._process)

    def _stop(self) -> None:
        if self._process is not None:
            _kill_group(self._process)
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill a worker and the processes that a function started in it; its group exists as long as one of them does."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
