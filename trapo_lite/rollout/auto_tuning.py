"""What `auto` stands for: measure how fast the engine decodes and reads prompts, simulate a phase, take the shorter.

rollout.schedule: speculative draws up to half as many requests again so as not to wait: worth it where a decode step
costs about the same for more sequences (memory-bound), or where few long answers decide how long a phase lasts.
rollout.merge: an adapter in the base's own weights spares every decode step LoRA's kernels, and costs two passes over
all weights in every publish.
"""

import concurrent.futures
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trapo_lite.core.micro_groups import MicroGroup
from trapo_lite.core.types import Problem, Verdict
from trapo_lite.engines.base import Completion, EngineRestarted, RolloutEngine, SampleRequest, SamplingEngine
from trapo_lite.rollout.sampler import Sampler
from trapo_lite.rollout.settings import SamplingSettings, Schedule

NUM_STEPS = 16  # decode steps that a rate is measured over
SIGMA = 1.0  # of log-normal answer lengths: the long tail that reasoning models have
MEDIAN_SHARE = 1 / 6  # of the response limit
SUCCESS_SHARES = (0.2, 0.5, 0.8)  # of rollouts; early and late in a run


@dataclass(frozen=True)
class Rates:
    """steps: (sequences, seconds of a decode step), two sizes; prompt_tokens: read a second."""

    steps: tuple[tuple[int, float], tuple[int, float]]
    prompt_tokens: float

    def step_seconds(self, num_sequences: int) -> float:
        """On the line through the two measured sizes, never below the smaller one's.

        >>> Rates(((10, 1.0), (20, 1.5)), 100.0).step_seconds(30), Rates(((10, 1.0), (20, 1.5)), 100.0).step_seconds(4)
        (2.0, 1.0)
        """
        (small, fast), (large, slow) = self.steps
        slope = max(0.0, (slow - fast) / (large - small))
        return fast + slope * max(0, num_sequences - small)


@dataclass(frozen=True)
class ScheduleChoice:
    schedule: Schedule
    reason: str


@dataclass(frozen=True)
class MergeChoice:
    is_merged: bool
    reason: str


def choose_merge(
    engine: RolloutEngine,
    problems: Sequence[Problem],
    *,
    micro_groups: Sequence[MicroGroup],
    settings: SamplingSettings,
) -> MergeChoice:
    """Whether phases of about these problems are shorter with the adapter merged, merging included.

    The engine must hold an adapter, and is left serving it un-merged.
    """
    separate = _rates_of_a_phase(engine, problems, micro_groups, settings)
    engine.merge()  # to warm up
    started = time.perf_counter()
    engine.unmerge()
    engine.merge()
    folding = time.perf_counter() - started
    merged = _rates_of_a_phase(engine, problems, micro_groups, settings)
    engine.unmerge()
    without = simulated_seconds(separate, problems, micro_groups=micro_groups, settings=settings)
    within = folding + simulated_seconds(merged, problems, micro_groups=micro_groups, settings=settings)
    (size, slow), (_, fast) = separate.steps[1], merged.steps[1]
    return MergeChoice(
        within < without,
        f"rollout.merge auto: {'in_place' if within < without else 'never'}; publishing and a simulated phase take "
        f"{within:.2g} s merged and {without:.2g} s un-merged (measured: a decode step of {size} sequences "
        f"{1000 * fast:.1f} and {1000 * slow:.1f} ms, merging and restoring {1000 * folding:.1f} ms)",
    )


def choose_schedule(
    engine: SamplingEngine,
    problems: Sequence[Problem],
    *,
    micro_groups: Sequence[MicroGroup],
    settings: SamplingSettings,
) -> ScheduleChoice:
    """Pipelined or speculative for phases of about these problems; `reason` is one line with what was measured."""
    rates = _rates_of_a_phase(engine, problems, micro_groups, settings)
    seconds = {
        schedule: simulated_seconds(
            rates, problems, micro_groups=micro_groups, settings=replace(settings, schedule=schedule)
        )
        for schedule in ("pipelined", "speculative")
    }
    schedule: Schedule = "speculative" if seconds["speculative"] < seconds["pipelined"] else "pipelined"
    (small, fast), (large, slow) = rates.steps
    return ScheduleChoice(
        schedule,
        f"rollout.schedule auto: {schedule}; a simulated phase takes {seconds['pipelined']:.2g} s pipelined and "
        f"{seconds['speculative']:.2g} s speculative (measured: a decode step {1000 * fast:.1f} ms for {small} "
        f"sequences, {1000 * slow:.1f} ms for {large}; {rates.prompt_tokens:.0f} prompt tokens a second)",
    )


def _rates_of_a_phase(
    engine: SamplingEngine,
    problems: Sequence[Problem],
    micro_groups: Sequence[MicroGroup],
    settings: SamplingSettings,
) -> Rates:
    """Between the fewest and the most sequences that a phase of these problems decodes together."""
    group_size = sum(group.num_rollouts for group in micro_groups)
    sizes = (len(problems), 2 * group_size * len(problems))
    return measure_rates(engine, problems, sizes=sizes, max_response_tokens=settings.max_response_tokens)


def measure_rates(
    engine: SamplingEngine, problems: Sequence[Problem], *, sizes: tuple[int, int], max_response_tokens: int
) -> Rates:
    """Draws a few tokens to the problems' prompts, in batches of two sizes."""
    steps, prompt_tokens = [], 0.0
    num_steps = max(1, min(NUM_STEPS, max_response_tokens - 1))
    for size in sizes:
        prompts = [problems[number % len(problems)].prompt_ids for number in range(size)]
        _timed_draw(engine, prompts, num_tokens=1)  # to warm up
        reading = _timed_draw(engine, prompts, num_tokens=1)
        drawing = _timed_draw(engine, prompts, num_tokens=1 + num_steps)
        steps.append((size, max(drawing - reading, 1e-6) / num_steps))
        prompt_tokens = sum(map(len, set(prompts))) / max(reading, 1e-6)
    return Rates((steps[0], steps[1]), prompt_tokens)


def _timed_draw(engine: SamplingEngine, prompts: Sequence[tuple[int, ...]], *, num_tokens: int) -> float:
    while True:
        engine.reset_prefix_cache()
        started = time.perf_counter()
        for number, prompt in enumerate(prompts):
            engine.submit(SampleRequest(f"rate/{number}", prompt, seed=number, max_tokens=num_tokens))
        try:
            left = len(prompts)
            while left:
                left -= len(engine.poll())
        except EngineRestarted:
            continue
        return time.perf_counter() - started


def simulated_seconds(
    rates: Rates, problems: Sequence[Problem], *, micro_groups: Sequence[MicroGroup], settings: SamplingSettings
) -> float:
    """Mean length of a phase by `settings.schedule`, over shares of success: the real sampler on a clock of its own."""
    total = 0.0
    for share in SUCCESS_SHARES:
        engine = _SimulatedEngine(rates, median=settings.max_response_tokens * MEDIAN_SHARE)
        sampler = Sampler(
            engine,
            _DrawnVerdicts(share),
            micro_groups=micro_groups,
            settings=settings,
            decode=lambda token_ids: str(hash(tuple(token_ids))),
            is_boundary=lambda token_id: False,
        )
        sampler.sample(problems, step=0)
        total += engine.seconds
    return total / len(SUCCESS_SHARES)


class _SimulatedEngine:
    """Follows `rates` on a clock of its own; a request's length is log-normal, a function of its seed."""

    def __init__(self, rates: Rates, *, median: float) -> None:
        self.rates, self.median, self.seconds = rates, median, 0.0
        self._left: dict[str, int] = {}
        self._requests: dict[str, SampleRequest] = {}

    def submit(self, request: SampleRequest) -> None:
        length = int(self.median * random.Random(request.seed).lognormvariate(0.0, SIGMA))
        self._left[request.request_id] = max(1, min(length, request.max_tokens))
        self._requests[request.request_id] = request
        self.seconds += len(request.token_ids) / self.rates.prompt_tokens

    def abort(self, request_id: str) -> None:
        self._left.pop(request_id, None)

    def poll(self) -> list[Completion]:
        """On to the next request that ends."""
        num_steps = min(self._left.values())
        self.seconds += num_steps * self.rates.step_seconds(len(self._left))
        self._left = {request_id: left - num_steps for request_id, left in self._left.items()}
        done = [self._requests[request_id] for request_id, left in self._left.items() if left == 0]
        for request in done:
            del self._left[request.request_id]
        return [Completion(request.request_id, (request.seed,), (0.0,), "stop", None) for request in done]

    def reset_prefix_cache(self) -> None: ...


class _DrawnVerdicts:
    """At once; `share` of the answers are correct."""

    def __init__(self, share: float) -> None:
        self.share = share

    def submit(self, answer_text: str, gold: str) -> "concurrent.futures.Future[Verdict]":
        ticket: concurrent.futures.Future[Verdict] = concurrent.futures.Future()
        ticket.set_result(Verdict("correct" if random.Random(answer_text).random() < self.share else "wrong"))
        return ticket
