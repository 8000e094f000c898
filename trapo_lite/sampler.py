"""Rollouts of a step: micro-groups decided per problem, each rollout graded the moment it ends (METHOD 3, DESIGN 7).

    micro-group -> requests -> engine -> completion -> verifier -> verdict -> next micro-group of that problem

`pipelined` moves each problem on as soon as its own verdicts are in; `barrier` waits for every problem's micro-group
before any starts its next, as the official code does. Seeds belong to rollouts, so both give the same rollouts.
"""

import concurrent.futures
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from trapo_lite.engines.base import Completion, RolloutEngine, SampleRequest
from trapo_lite.schedule import cut_prefix, prefix_ratio
from trapo_lite.types import FinishReason, MicroGroup, Problem, Rollout, Verdict

IDLE_WAIT_SECONDS = 0.5


class Verifier(Protocol):
    def submit(self, answer_text: str, gold: str) -> "concurrent.futures.Future[Verdict]": ...


@dataclass(frozen=True)
class SamplingSettings:
    """Everything that decides which tokens are drawn, besides the weights and the problems."""

    seed: int
    max_response_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    barrier: bool = False
    deterministic: bool = False


@dataclass(frozen=True)
class SamplingTimes:
    """Seconds of a rollout phase: in the engine, and waiting for verdicts with nothing left to decode."""

    engine: float = 0.0
    verdicts: float = 0.0


@dataclass
class _GroupInProgress:
    """One problem on its way through the micro-groups; `waiting_for` are the slots whose verdicts are not in."""

    problem: Problem
    next_micro_group: int = 0
    rollouts: list[Rollout] = field(default_factory=list)
    waiting_for: set[int] = field(default_factory=set)


def request_seed(run_seed: int, step: int, problem_id: str, slot: int, is_guided: bool) -> int:
    """A rollout's own seed: whatever else is sampled, and in which order, its tokens are the same.

    >>> request_seed(0, 1, "a", 0, False) != request_seed(0, 1, "a", 0, True)
    True
    """
    return _digest(run_seed, step, problem_id, slot, is_guided) % 2**53


class Sampler:
    """Draws the groups of a step. Holds no state between steps; engine and verifier belong to the caller.

    `decode` turns response token ids into the text the verifier reads. `engine` may be None where the schedule never
    samples (SFT).
    """

    def __init__(
        self,
        engine: RolloutEngine | None,
        verifier: Verifier,
        *,
        micro_groups: Sequence[MicroGroup],
        settings: SamplingSettings,
        decode: Callable[[Sequence[int]], str],
        is_boundary: Callable[[int], bool],
    ) -> None:
        self.engine, self.verifier = engine, verifier
        self.micro_groups, self.settings = tuple(micro_groups), settings
        self.decode, self.is_boundary = decode, is_boundary

    def sample(
        self, problems: Sequence[Problem], *, step: int, on_progress: Callable[[int, int], None] | None = None
    ) -> tuple[list[list[Rollout]], SamplingTimes]:
        """One group of rollouts per problem, in the order of `problems`; a group is in slot order.

        `on_progress(done, expected)` is called as verdicts come in.
        """
        phase = _RolloutPhase(self, [_GroupInProgress(problem) for problem in problems], step)
        if self.engine is not None and self.settings.deterministic:
            self.engine.reset_prefix_cache()
        expected = len(problems) * sum(group.num_rollouts for group in self.micro_groups)
        phase.advance()
        while not phase.is_done():
            phase.engine_step()
            phase.collect_verdicts()
            phase.advance()
            if on_progress is not None:
                on_progress(phase.num_graded, expected)
        return [group.rollouts for group in phase.groups], phase.times


class _RolloutPhase:
    """What is in flight while one step's rollouts are drawn."""

    def __init__(self, sampler: Sampler, groups: list[_GroupInProgress], step: int) -> None:
        self.sampler, self.groups, self.step = sampler, groups, step
        self.in_engine: dict[str, tuple[int, int]] = {}  # request id -> group index, slot
        self.in_verifier: dict[concurrent.futures.Future[Verdict], tuple[int, int]] = {}
        self.num_graded = 0
        self.times = SamplingTimes()

    def is_done(self) -> bool:
        num_micro_groups = len(self.sampler.micro_groups)
        return all(not g.waiting_for and g.next_micro_group == num_micro_groups for g in self.groups)

    def advance(self) -> None:
        """Start the next micro-group of every problem that is ready for it, in problem order."""
        settings, last = self.sampler.settings, len(self.sampler.micro_groups)
        if settings.barrier and any(group.waiting_for for group in self.groups):
            return
        for index, group in enumerate(self.groups):
            if not group.waiting_for and group.next_micro_group < last:
                self._start_micro_group(index)

    def engine_step(self) -> None:
        if not self.in_engine:
            return
        started = time.perf_counter()
        assert self.sampler.engine is not None
        completions = self.sampler.engine.poll()
        for completion in sorted(completions, key=lambda completion: self.in_engine[completion.request_id]):
            self._finish(*self.in_engine.pop(completion.request_id), completion)
        self.times = replace(self.times, engine=self.times.engine + time.perf_counter() - started)

    def collect_verdicts(self) -> None:
        """Take the verdicts that are in; wait for all of them in deterministic mode, for one if nothing is decoding."""
        if not self.in_verifier:
            return
        started = time.perf_counter()
        if self.sampler.settings.deterministic:
            concurrent.futures.wait(self.in_verifier)
        elif not self.in_engine:
            concurrent.futures.wait(
                self.in_verifier, timeout=IDLE_WAIT_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
            )
        for ticket in [ticket for ticket in self.in_verifier if ticket.done()]:
            index, slot = self.in_verifier.pop(ticket)
            group, verdict = self.groups[index], ticket.result()
            group.rollouts[slot] = replace(group.rollouts[slot], verdict=verdict, reward=float(verdict.is_correct))
            group.waiting_for.discard(slot)
            self.num_graded += 1
        self.times = replace(self.times, verdicts=self.times.verdicts + time.perf_counter() - started)

    def _start_micro_group(self, index: int) -> None:
        group, settings = self.groups[index], self.sampler.settings
        number, micro_group = group.next_micro_group, self.sampler.micro_groups[group.next_micro_group]
        trace, prefix_ids = self._prefix(group, number, micro_group)
        group.next_micro_group += 1
        first_trained = micro_group.num_rollouts - (
            micro_group.num_rollouts if micro_group.num_trained is None else micro_group.num_trained
        )
        for place in range(micro_group.num_rollouts):
            slot = len(group.rollouts)
            is_whole_trace = bool(prefix_ids) and len(prefix_ids) == len(group.problem.expert_ids[trace or 0])
            room = settings.max_response_tokens - len(prefix_ids)
            reason: FinishReason = "expert" if is_whole_trace else "length"
            group.rollouts.append(
                Rollout(
                    problem_id=group.problem.id,
                    slot=slot,
                    prompt_ids=group.problem.prompt_ids,
                    prefix_ids=prefix_ids,
                    completion_ids=(),
                    completion_logprobs=(),
                    finish_reason=reason,
                    trace=trace,
                    train_prefix=bool(prefix_ids) and place >= first_trained,
                    adapter_version=None,
                    verdict=Verdict("no_answer"),
                    reward=0.0,
                )
            )
            group.waiting_for.add(slot)
            if is_whole_trace or room <= 0:
                self._grade(index, slot)
            else:
                self._submit(index, slot, room)

    def _prefix(
        self, group: _GroupInProgress, number: int, micro_group: MicroGroup
    ) -> tuple[int | None, tuple[int, ...]]:
        """The expert trace this micro-group starts from and how much of it; (None, ()) where it gets no help."""
        ratio = prefix_ratio(micro_group, [rollout.reward for rollout in group.rollouts])
        traces = group.problem.expert_ids
        if ratio == 0.0 or not traces:
            return None, ()
        trace = micro_group.trace
        if trace is None:
            draw = _digest(self.sampler.settings.seed, self.step, group.problem.id, number, "trace")
            trace = random.Random(draw).randrange(len(traces))
        elif trace >= len(traces):
            trace = 0
        keep = cut_prefix(traces[trace], ratio, self.sampler.is_boundary)
        return (trace, traces[trace][:keep]) if keep else (None, ())

    def _submit(self, index: int, slot: int, room: int) -> None:
        rollout, settings = self.groups[index].rollouts[slot], self.sampler.settings
        if self.sampler.engine is None:
            raise RuntimeError(f"sampler: problem {rollout.problem_id} must be sampled but there is no engine")
        request = SampleRequest(
            request_id=f"{self.step}/{index}/{slot}",
            token_ids=rollout.prompt_ids + rollout.prefix_ids,
            seed=request_seed(settings.seed, self.step, rollout.problem_id, slot, rollout.is_guided),
            max_tokens=room,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            stop_ids=settings.stop_ids,
        )
        self.in_engine[request.request_id] = (index, slot)
        self.sampler.engine.submit(request)

    def _finish(self, index: int, slot: int, completion: Completion) -> None:
        group = self.groups[index]
        group.rollouts[slot] = replace(
            group.rollouts[slot],
            completion_ids=completion.token_ids,
            completion_logprobs=completion.logprobs,
            finish_reason=completion.finish_reason,
            adapter_version=completion.adapter_version,
        )
        self._grade(index, slot)

    def _grade(self, index: int, slot: int) -> None:
        group = self.groups[index]
        text = self.sampler.decode(group.rollouts[slot].response_ids)
        self.in_verifier[self.sampler.verifier.submit(text, group.problem.answer)] = (index, slot)


def _digest(*parts: object) -> int:
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
