"""Run grading processes: kill one that passes the deadline, replace it by a warm one, leave none behind."""

import contextlib
import hashlib
import importlib.util
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
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from trapo_lite.config import RewardSection
from trapo_lite.core.errors import VerifierError
from trapo_lite.core.types import Verdict
from trapo_lite.reward.extraction import MAX_TEXT_CHARS
from trapo_lite.reward.worker import read_frame, write_frame

START_SECONDS = 120.0
MAX_GOLD_CHARS = 20_000
# The child has this interpreter's sys.path. It does not import the user's script, so no `__main__` guard is needed.
BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[4:]; from trapo_lite.reward.worker import main; "
    "main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))"
)

logger = logging.getLogger(__name__)


class MathVerifier:
    """Grade answers in `num_workers` processes, each within `deadline_seconds` after a worker takes it up.

        with MathVerifier(num_workers=2, deadline_seconds=5.0) as verifier:
            verdicts = verifier.grade([(answer_text, gold), ...])      # in order
            ticket = verifier.submit(answer_text, gold)                # a Future of the same verdict

    A worker that passes the deadline is killed and replaced; the verdict is timeout. If a worker dies by itself, for
    example at `memory_limit_bytes`, the verdict is crash. Every method may be called from any thread. A verifier made
    before a fork cannot be used after it, so every process builds its own. Workers end with the verifier or with this
    process, whatever signal ends it. `require_box`: an answer without a complete box is no_answer.
    """

    def __init__(
        self,
        num_workers: int = 2,
        deadline_seconds: float = 5.0,
        *,
        require_box: bool = False,
        memory_limit_bytes: int = 2 << 30,
    ) -> None:
        if num_workers < 1 or deadline_seconds <= 0:
            raise ValueError(
                f"MathVerifier: num_workers={num_workers}, deadline_seconds={deadline_seconds}; both must be positive"
            )
        if memory_limit_bytes < 256 << 20:
            raise ValueError(
                f"MathVerifier: memory_limit_bytes={memory_limit_bytes}; a worker needs 256 MiB (268435456) to start"
            )
        if importlib.util.find_spec("math_verify") is None:
            raise VerifierError("MathVerifier: math-verify is not installed; pip install 'math-verify[antlr4_13_2]'")
        self._require_box = require_box
        self._pid = os.getpid()
        self._questions: queue.SimpleQueue[tuple[Future[Verdict], list] | None] = queue.SimpleQueue()
        self._submitting = threading.Lock()
        self._is_closed = False
        self._workers = [_Worker(deadline_seconds, memory_limit_bytes) for _ in range(num_workers)]
        # One thread per worker, alive as long as the pool, because a worker dies with the thread that started it.
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), name=f"verifier-{i}", daemon=True)
            for i, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def from_config(cls, section: RewardSection) -> "MathVerifier":
        return cls(
            section.num_workers,
            section.deadline_seconds,
            require_box=section.require_box,
            memory_limit_bytes=section.memory_mb << 20,
        )

    def submit(self, answer_text: str, gold: str) -> "Future[Verdict]":
        """Queue one answer. The future fails with VerifierError if the verifier closes first or cannot start."""
        if os.getpid() != self._pid:
            raise VerifierError("MathVerifier: used after a fork; build one in the new process")
        future: Future[Verdict] = Future()
        question = [answer_text[-MAX_TEXT_CHARS:], gold[-MAX_GOLD_CHARS:], self._require_box]
        with self._submitting:
            if self._is_closed:
                raise VerifierError("MathVerifier: closed; submit answers inside its `with` block")
            self._questions.put((future, question))
        return future

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return the verdicts on (answer text, gold) pairs, in order, after the last one has arrived."""
        return [future.result() for future in [self.submit(text, gold) for text, gold in pairs]]

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers alive now, for monitoring."""
        return [pid for worker in self._workers if (pid := worker.pid()) is not None]

    def close(self) -> None:
        """Kill the workers and fail every answer without a verdict. May be called twice, and from any thread."""
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

    def __enter__(self) -> "MathVerifier":
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
                future.set_exception(VerifierError("MathVerifier: closed before this answer was graded"))
                continue
            failure = _start(worker) if failure or not worker.is_running else None
            verdict = None if failure else worker.ask(question)
            if verdict is not None:
                future.set_result(verdict)
            else:
                future.set_exception(failure or VerifierError("MathVerifier: closed while this answer was graded"))
            if not failure and not worker.is_running and not self._is_closed:
                failure = _start(worker)  # now, so that the next answer need not wait for it
        worker.close()


def _start(worker: "_Worker") -> VerifierError | None:
    try:
        worker.start()
    except VerifierError as error:
        return error
    except OSError as error:  # no more files, processes or memory; the next answer tries again
        return VerifierError(f"MathVerifier: a worker process cannot be started: {error}")
    return None


class _Worker:
    """A _Worker is one grading process and the socket to it. Only one thread may call `start` and `ask`."""

    def __init__(self, deadline_seconds: float, memory_limit_bytes: int) -> None:
        self._deadline_seconds = deadline_seconds
        self._memory_limit_bytes = memory_limit_bytes
        self._lock = threading.Lock()  # over (_process, _is_closed)
        self._is_closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    @property
    def is_running(self) -> bool:
        return self._connection is not None

    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start a process and wait until it can grade. Raise VerifierError with its last output if it fails."""
        ours, theirs = socket.socketpair()
        options = [str(os.getpid()), str(self._deadline_seconds), str(self._memory_limit_bytes)]
        paths = [os.path.abspath(path) for path in sys.path]
        with contextlib.ExitStack() as unless_started, theirs, tempfile.TemporaryFile() as errors:
            unless_started.callback(ours.close)
            with self._lock:
                if self._is_closed:
                    raise VerifierError("MathVerifier: closed while a worker was starting")
                self._process = subprocess.Popen(
                    [sys.executable, "-c", BOOTSTRAP, *options, *paths],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            theirs.close()
            self._connection = ours
            unless_started.pop_all()
            ours.settimeout(START_SECONDS)
            try:
                read_frame(ours)
            except (EOFError, OSError):  # TimeoutError and ConnectionError are OSErrors
                self._stop()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"]
                raise VerifierError(f"MathVerifier: a worker process did not start: {lines[-1]}") from None

    def ask(self, question: list) -> Verdict | None:
        """Return the verdict on one question within the deadline, or None if the pool was closed meanwhile."""
        connection, process = self._connection, self._process
        if connection is None or process is None:
            raise ValueError("_Worker.ask: not started")
        expiry = time.monotonic() + self._deadline_seconds
        try:
            # Each socket call may take the whole deadline. In practice a worker reads at once and writes one frame.
            connection.settimeout(self._deadline_seconds)
            write_frame(connection, question)
            connection.settimeout(max(expiry - time.monotonic(), 0.001))
            kind, graded = read_frame(connection)
            return Verdict(kind, graded)
        except TimeoutError:
            self._stop()
            return Verdict("timeout")
        except (EOFError, OSError):
            self._stop()
            if self._is_closed:
                return None
            if process.returncode == -signal.SIGALRM:
                return Verdict("timeout")
            logger.info("a verifier worker ended by itself, exit status %s", process.returncode)
            return Verdict("crash")

    def close(self) -> None:
        """Kill the process. `ask` and `start` return at once, and no other process is started."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def verifier_fingerprint() -> str:
    """Return math-verify's version and a hash of trapo_lite.reward, which identify the grading rules."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return f"math-verify {version('math-verify')}, rules {digest.hexdigest()[:12]}"
