"""Score responses by the functions of `reward.functions`: the parts, their weighted sum, and what failed."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

from trapo_lite.config import RewardSection
from trapo_lite.config.rewards import RewardFunction
from trapo_lite.core.errors import RewardError
from trapo_lite.core.types import Problem, Response, Score, Verdict
from trapo_lite.reward.pool import WorkerPool
from trapo_lite.reward.worker_process import Judgement

Result = TypeVar("Result")
FAILURES = ("failed", "timeout", "crash")
MOST_FAILURES_AT_FIRST = 64  # of a function that has not succeeded yet


class Failures(NamedTuple):
    """Failures count, by function, the responses that it judged and failed on, and hold its first failure."""

    num_judged: "Counter[str]"
    num_failed: "Counter[str]"
    first: dict[str, str]


class Scorer:
    """Score responses in worker processes, by several functions side by side.

        with Scorer(config.reward) as scorer:
            scores = scorer.score([response, ...])     # in order
            ticket = scorer.submit(response)           # a Future of the same Score

    A function that returned None is left out of the sum. If one of the user's functions failed, or none returned a
    number, there is no reward; math that ran out of time has found nothing equal and counts as 0. If a function that
    counts fails on each of its first 64 responses, their futures fail with RewardError from then on.

    notify: told once about each function that fails, with its first failure and the problem's id
    """

    def __init__(self, section: RewardSection, *, notify: Callable[[str], None] = lambda line: None) -> None:
        self._functions = section.functions
        self._notify = notify
        self._pool = WorkerPool(
            section.functions,
            section.num_workers,
            section.deadline_seconds,
            require_box=section.require_box,
            memory_limit_bytes=section.memory_mb << 20,
        )
        self._counting = threading.Lock()
        self._num_judged: Counter[str] = Counter()
        self._num_failed: Counter[str] = Counter()
        self._first_failures: dict[str, str] = {}
        self._has_succeeded: set[str] = set()

    @property
    def decides(self) -> str:
        """Return the name of the function that decides what is correct, the first one."""
        return self._functions[0].label

    def submit(self, response: Response) -> "Future[Score]":
        """Queue one response. The future fails with VerifierError or RewardError if it cannot be judged."""
        tickets = [self._pool.submit(index, response) for index in range(len(self._functions))]
        return combined(tickets, lambda judgements: self._score(response.problem, judgements))

    def score(self, responses: Sequence[Response]) -> list[Score]:
        """Return the scores of the responses, in order, after the last one has arrived."""
        return [future.result() for future in [self.submit(response) for response in responses]]

    def judge(self, response: Response) -> dict[str, Judgement]:
        """Return each function's judgement of one response, by the function's name. Nothing is counted."""
        tickets = [self._pool.submit(index, response) for index in range(len(self._functions))]
        return {function.label: ticket.result() for function, ticket in zip(self._functions, tickets, strict=True)}

    def take_failures(self) -> "Failures":
        """Return what was counted since the last call, and begin to count again."""
        with self._counting:
            taken = Failures(self._num_judged, self._num_failed, dict(self._first_failures))
            self._num_judged, self._num_failed = Counter(), Counter()
        return taken

    def require_success(self, failures: "Sequence[Failures] | None" = None) -> None:
        """Raise RewardError if a function that counts has failed on every response since the last call.

        failures: of all processes, where there are several; they then all raise it
        """
        parts = [self.take_failures()] if failures is None else failures
        for function in self._functions:
            name = function.label
            num_judged = sum(part.num_judged[name] for part in parts)
            num_failed = sum(part.num_failed[name] for part in parts)
            if num_judged and num_failed == num_judged and function.weight > 0:
                raise _always_fails(name, num_judged, next(part.first[name] for part in parts if name in part.first))

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _score(self, problem: Problem, judgements: Sequence[Judgement]) -> Score:
        reward, has_failed, parts = 0.0, False, []
        for function, judgement in zip(self._functions, judgements, strict=True):
            value = judgement.value
            has_failed_now = judgement.kind in FAILURES and function.type == "function"
            if has_failed_now:
                has_failed = has_failed or function.weight > 0
            elif judgement.kind in FAILURES:
                value = 0.0
            self._count(function, problem, judgement, has_failed=has_failed_now)
            parts.append((function.label, value))
            reward += function.weight * (value or 0.0)
        has_value = any(value is not None for _, value in parts)
        return Score(verdict_of(judgements[0]), None if has_failed or not has_value else reward, tuple(parts))

    def _count(self, function: RewardFunction, problem: Problem, judgement: Judgement, *, has_failed: bool) -> None:
        """Count a judgement. Raise RewardError if the function has only failed so far, and too often."""
        name = function.label
        with self._counting:
            self._num_judged[name] += 1
            num_judged = self._num_judged[name]
            if not has_failed:
                self._has_succeeded.add(name)
                return
            self._num_failed[name] += 1
            is_first = name not in self._first_failures
            first = self._first_failures.setdefault(name, f"for problem {problem.id}: {judgement.detail}")
            has_always_failed = name not in self._has_succeeded
        if is_first:
            effect = "Such a rollout gets no advantage; the metric reward/none counts them."
            if function.weight == 0:
                effect = "Its weight is 0, so that the reward is the same without it."
            self._notify(f"warning: the reward function {name} failed {first}\n{effect} Later failures are not shown.")
        if has_always_failed and num_judged >= MOST_FAILURES_AT_FIRST and function.weight > 0:
            raise _always_fails(name, num_judged, first)


def _always_fails(name: str, num_judged: int, first: str) -> RewardError:
    return RewardError(
        f"reward.functions: {name} failed on all of {num_judged} responses, so that nothing could be learned; correct "
        f"it. The first time: {first}"
    )


def verdict_of(judgement: Judgement) -> Verdict:
    """Return the judgement as a verdict; the detail is the text that was judged only if there is a value."""
    return Verdict(judgement.kind, judgement.detail if judgement.value is not None else None)


def combined(tickets: Sequence["Future[Judgement]"], combine: Callable[[list[Judgement]], Result]) -> "Future[Result]":
    """Return a future of `combine` of all results. If it is cancelled, so are they; if one fails, it fails too."""
    whole: Future[Result] = Future()
    num_missing = len(tickets)
    counting = threading.Lock()

    def count_result(_: "Future[Judgement]") -> None:
        nonlocal num_missing
        with counting:
            num_missing -= 1
            is_last = num_missing == 0
        if not is_last or not whole.set_running_or_notify_cancel():
            return
        try:
            whole.set_result(combine([ticket.result() for ticket in tickets]))
        except BaseException as error:
            whole.set_exception(error)

    def cancel_all(whole: "Future[Result]") -> None:
        if whole.cancelled():
            for ticket in tickets:
                ticket.cancel()

    whole.add_done_callback(cancel_all)
    for ticket in tickets:
        ticket.add_done_callback(count_result)
    return whole
