"""Run one rollout phase: it knows what engine and verifier work on, and which branches to start or to drop.

branch -> request -> engine -> completion -> verifier -> verdict -> which branches of that problem are needed now
"""

import concurrent.futures
import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from trapo_lite.core.types import Response, Rollout, Score
from trapo_lite.engines.base import Completion, SampleRequest, SamplingEngine
from trapo_lite.rollout.group_in_progress import Branch, Drawn, GroupInProgress
from trapo_lite.rollout.settings import SamplingSettings

IDLE_WAIT_SECONDS = 0.5


class Scorer(Protocol):
    """A Scorer scores responses in other processes."""

    def submit(self, response: Response) -> "concurrent.futures.Future[Score]": ...


@dataclass(frozen=True)
class PhaseReport:
    """A PhaseReport holds the cost of a rollout phase."""

    engine_seconds: float = 0.0
    verdict_seconds: float = 0.0
    """Time of waiting for verdicts while nothing is sampled."""
    first_poll_seconds: float = 0.0
    """Time of the engine's first step, which reads the prompts and samples one token for each."""
    num_requests: int = 0
    num_prompt_tokens: int = 0
    """Tokens of prompts and prefixes in the finished requests."""
    num_cached_tokens: int = 0
    """How many of these tokens were in the engine's prefix cache."""
    num_discarded: int = 0
    """Requests that verdicts made unnecessary."""
    replaced: tuple[list[Rollout], ...] = ()
    """Groups of problems that others replaced."""


def request_seed(run_seed: int, step: int, problem_id: str, slot: int, is_guided: bool) -> int:
    """Return a rollout's own seed, so that its tokens do not depend on what else is sampled or on the order.

    >>> request_seed(0, 1, "a", 0, False) != request_seed(0, 1, "a", 0, True)
    True
    """
    return _digest(run_seed, step, problem_id, slot, is_guided) % 2**53


def random_choice(run_seed: int, step: int, problem_id: str, micro_group: int, what: Drawn, num_choices: int) -> int:
    """Return what a micro-group of this step has drawn for this problem, as an index below `num_choices`."""
    return random.Random(_digest(run_seed, step, problem_id, micro_group, what)).randrange(num_choices)


def scored(rollout: Rollout, score: Score, *, truncated: Literal["graded", "zero", "masked"]) -> Rollout:
    """Return the rollout with its score. truncated: what becomes of a completion that was cut at the limit."""
    is_cut = rollout.finish_reason == "length" and bool(rollout.completion_ids)
    return replace(
        rollout,
        verdict=score.verdict,
        reward=0.0 if is_cut and truncated == "zero" else score.reward,
        parts=score.parts,
        is_masked=is_cut and truncated == "masked",
    )


class RolloutPhase:
    """A RolloutPhase owns the requests and the gradings of one step's rollouts.

    groups: one for each problem; the other arguments as for `sample_groups`
    """

    def __init__(
        self,
        engine: SamplingEngine | None,
        scorer: Scorer,
        groups: Sequence[GroupInProgress],
        *,
        step: int,
        settings: SamplingSettings,
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self.engine, self.scorer, self.groups = engine, scorer, list(groups)
        self.step, self.settings, self.decode = step, settings, decode
        self.num_rollouts = sum(len(group.candidates) for group in self.groups)
        self.settled = [group.num_settled for group in self.groups]
        self.complete: list[int] = []  # problems completed since the last call of `newly_complete`
        self.changed = set(range(len(self.groups)))  # problems with new verdicts since `start_branches`
        self.in_engine: dict[str, tuple[int, Branch]] = {}  # maps a request id to (problem's index, branch)
        self.in_scorer: dict[concurrent.futures.Future[Score], tuple[int, Branch]] = {}
        self.report = PhaseReport()

    @property
    def num_settled(self) -> int:
        return sum(self.settled)

    @property
    def is_done(self) -> bool:
        return self.num_settled == self.num_rollouts

    def group(self, index: int) -> list[Rollout]:
        """Return the rollouts of a problem; all its slots must be decided."""
        return [left[0].rollout for left in self.groups[index].candidates if not left[0].is_skipped]

    def newly_complete(self) -> list[int]:
        """Return the indices of the problems that were completed since the last call."""
        complete, self.complete = self.complete, []
        return complete

    def add(self, group: GroupInProgress) -> None:
        """Take another problem into the phase, with the next index."""
        self.changed.add(len(self.groups))
        self.groups.append(group)
        self.settled.append(group.num_settled)
        self.num_rollouts += len(group.candidates)

    def start_branches(self) -> None:
        """Drop the branches that the newest verdicts exclude, then start those that the schedule wants."""
        for index in sorted(self.changed):
            for branch in self.groups[index].rule_out():
                self._drop(index, branch)
            before, self.settled[index] = self.settled[index], self.groups[index].num_settled
            if before < self.settled[index] == len(self.groups[index].candidates):
                self.complete.append(index)
        wanted = [(is_certain, branch.micro_group, index, branch) for is_certain, index, branch in self._startable()]
        self.changed.clear()
        # Branches that are certainly needed come first, then earlier micro-groups; the sort keeps the order of slots.
        for _, _, index, branch in sorted(wanted, key=lambda item: (not item[0], item[1], item[2])):
            self._start(index, branch)

    def engine_step(self) -> None:
        """Let the engine sample, and send what it finished to the scorer."""
        if not self.in_engine:
            return
        started = time.perf_counter()
        assert self.engine is not None
        completions = self.engine.poll()
        for completion in sorted(completions, key=self._sort_key):
            index, branch = self.in_engine.pop(completion.request_id)
            branch.rollout = replace(
                branch.rollout,
                completion_ids=completion.token_ids,
                completion_logprobs=completion.logprobs,
                finish_reason=completion.finish_reason,
                adapter_version=completion.adapter_version,
            )
            if completion.num_cached_tokens is not None:
                num_given = len(branch.rollout.prompt_ids) + len(branch.rollout.prefix_ids)
                self._count(num_prompt_tokens=num_given, num_cached_tokens=completion.num_cached_tokens)
            self._grade(index, branch)
        seconds = time.perf_counter() - started
        is_first = self.report.engine_seconds == 0.0
        self._count(engine_seconds=seconds, first_poll_seconds=seconds if is_first else 0.0)

    def collect_verdicts(self) -> None:
        """Take the finished verdicts.

        Deterministic mode waits for all of them. Otherwise this waits for one only while nothing is sampled.
        """
        if not self.in_scorer:
            return
        started = time.perf_counter()
        if self.settings.deterministic:
            concurrent.futures.wait(self.in_scorer)
        elif not self.in_engine:
            concurrent.futures.wait(
                self.in_scorer, timeout=IDLE_WAIT_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
            )
        for ticket in [ticket for ticket in self.in_scorer if ticket.done()]:
            index, branch = self.in_scorer.pop(ticket)
            score = ticket.result()
            branch.rollout = scored(branch.rollout, score, truncated=self.settings.truncated)
            branch.state = "graded"
            self.changed.add(index)
        self._count(verdict_seconds=time.perf_counter() - started)

    def _startable(self) -> Iterator[tuple[bool, int, Branch]]:
        """Yield (is certainly needed, problem's index, branch) for every branch that is started now."""
        order = self.settings.start_order
        if order == "barrier":
            if self.in_engine or self.in_scorer:
                return
            current = min((group.current_micro_group for group in self.groups), default=0)
            self.changed = set(range(len(self.groups)))
        for index in sorted(self.changed):
            for left in self.groups[index].candidates:
                for branch in left:
                    if branch.state != "planned" or (len(left) > 1 and order != "speculative"):
                        continue
                    if order != "barrier" or branch.micro_group == current:
                        yield len(left) == 1, index, branch

    def _start(self, index: int, branch: Branch) -> None:
        if branch.room == 0:
            self._grade(index, branch)
            return
        branch.state = "sampling"
        self._submit(index, branch)
        self._count(num_requests=1)

    def submit_again(self) -> None:
        """Submit all unfinished requests to an engine that was restarted."""
        for index, branch in list(self.in_engine.values()):
            self._submit(index, branch)

    def forget_verdicts(self) -> None:
        """Cancel the gradings that are not finished."""
        for ticket in self.in_scorer:
            ticket.cancel()

    def _submit(self, index: int, branch: Branch) -> None:
        rollout, settings = branch.rollout, self.settings
        if self.engine is None:
            raise RuntimeError(f"sampler: problem {rollout.problem_id} must be sampled but there is no engine")
        request = SampleRequest(
            request_id=self._request_id(index, branch),
            token_ids=rollout.prompt_ids + rollout.prefix_ids,
            seed=request_seed(settings.seed, self.step, rollout.problem_id, rollout.slot, rollout.is_guided),
            max_tokens=branch.room,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            stop_ids=settings.stop_ids,
        )
        self.in_engine[request.request_id] = (index, branch)
        self.engine.submit(request)

    def _drop(self, index: int, branch: Branch) -> None:
        request_id = self._request_id(index, branch)
        if self.in_engine.pop(request_id, None) is not None:
            assert self.engine is not None
            self.engine.abort(request_id)
            self._count(num_discarded=1)
        elif branch.rollout.completion_ids:
            self._count(num_discarded=1)
        for ticket in [ticket for ticket, (_, graded) in self.in_scorer.items() if graded is branch]:
            ticket.cancel()
            del self.in_scorer[ticket]

    def _grade(self, index: int, branch: Branch) -> None:
        branch.state = "grading"
        rollout = branch.rollout
        response = Response(
            self.groups[index].problem,
            text=self.decode(rollout.response_ids),
            is_truncated=rollout.finish_reason == "length",
            num_tokens=len(rollout.response_ids),
            step=self.step,
        )
        ticket = self.scorer.submit(response)
        self.in_scorer[ticket] = (index, branch)

    def _request_id(self, index: int, branch: Branch) -> str:
        return f"{self.step}/{index}/{branch.rollout.slot}{'g' if branch.rollout.is_guided else ''}"

    def _sort_key(self, completion: Completion) -> tuple[int, int, bool]:
        index, branch = self.in_engine[completion.request_id]
        return index, branch.rollout.slot, branch.rollout.is_guided

    def _count(self, **more: float) -> None:
        self.report = replace(self.report, **{name: getattr(self.report, name) + n for name, n in more.items()})


def _digest(*parts: object) -> int:
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
