"""Give responses to worker processes, keep the workers warm, and leave none behind."""

import importlib.util
import os
import queue
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from trapo_lite.config.rewards import RewardFunction
from trapo_lite.core.errors import RewardError, VerifierError
from trapo_lite.core.types import Response
from trapo_lite.reward.extraction import MAX_TEXT_CHARS
from trapo_lite.reward.guard import Guard
from trapo_lite.reward.worker_process import Judgement, WorkerProcess

MAX_GOLD_CHARS = 20_000


class WorkerPool:
    """Judge responses in `num_workers` processes, each within `deadline_seconds` after a worker takes it up.

    functions: of `reward.functions`. A worker that passes the deadline is killed and replaced; the judgement is
    timeout. If a worker dies by itself, for example at `memory_limit_bytes`, it is crash. Every method may be called
    from any thread. A pool made before a fork cannot be used after it, so every process builds its own. Workers, and
    what functions of the user's started in them, end with the pool or with this process, whatever signal ends it.
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
        has_own = any(function.type == "function" for function in functions)
        self._pid = os.getpid()
        self._questions: queue.SimpleQueue[tuple[Future[Judgement], int, Response] | None] = queue.SimpleQueue()
        self._submitting = threading.Lock()
        self._is_closed = False
        try:
            self._guard = Guard() if has_own else None  # the other functions start no processes
        except OSError as error:
            raise VerifierError(f"reward: the process that guards the workers cannot be started: {error}") from None
        self._workers = [
            WorkerProcess(
                self.functions,
                deadline_seconds,
                require_box=require_box,
                memory_limit_bytes=memory_limit_bytes,
                guard=self._guard,
            )
            for _ in range(num_workers)
        ]
        # One thread per worker, alive as long as the pool, because a worker dies with the thread that started it.
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), name=f"reward-{i}", daemon=True)
            for i, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, index: int, response: Response) -> "Future[Judgement]":
        """Queue a response for the function of this index.

        The future fails with VerifierError if the pool closes first or no worker starts, with RewardError if a function
        cannot be loaded.
        """
        if os.getpid() != self._pid:
            raise VerifierError("reward: the workers were used after a fork; start some in the new process")
        future: Future[Judgement] = Future()
        with self._submitting:
            if self._is_closed:
                raise VerifierError("reward: the workers are closed; submit responses before that")
            self._questions.put((future, index, response))
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
        if self._guard is not None:
            self._guard.close()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self, worker: WorkerProcess) -> None:
        """Keep one worker warm and give it questions until the pool closes."""
        failure = _start(worker)
        while (item := self._questions.get()) is not None:
            future, index, response = item
            if not future.set_running_or_notify_cancel():
                continue
            if self._is_closed:
                future.set_exception(VerifierError("reward: the workers were closed before this response's turn"))
                continue
            failure = _start(worker) if failure or not worker.is_running else None
            judgement = None
            if not failure:
                question = question_of(response, self.functions[index].type, taken=worker.taken_by_function[index])
                judgement = worker.ask(index, question)
            if judgement is not None:
                future.set_result(judgement)
            else:
                future.set_exception(failure or VerifierError("reward: the workers were closed during this response"))
            if not failure and not worker.is_running and not self._is_closed:
                failure = _start(worker)  # now, so that the next answer need not wait for it
        worker.close()


def question_of(response: Response, kind: str, *, taken: Collection[str]) -> dict[str, Any]:
    """Return what a function of this type takes of a response, as the workers get it."""
    is_math = kind == "math"
    values = {
        "problem": response.problem.text,
        "answer": response.problem.answer[-MAX_GOLD_CHARS:] if is_math else response.problem.answer,
        "response": response.text[-MAX_TEXT_CHARS:] if is_math else response.text,
        "row": response.problem.row,
        "is_truncated": response.is_truncated,
        "num_tokens": response.num_tokens,
        "step": response.step,
    }
    return {name: values[name] for name in taken}


def _start(worker: WorkerProcess) -> VerifierError | RewardError | None:
    try:
        worker.start()
    except (VerifierError, RewardError) as error:
        return error
    except OSError as error:  # no more files, processes or memory; the next response tries again
        return VerifierError(f"reward: a worker process cannot be started: {error}")
    return None
