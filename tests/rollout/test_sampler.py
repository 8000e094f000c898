"""Rollouts through a scripted engine and verifier: the rule of METHOD 3, whatever finishes first."""

import math
import random
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from scripted import STOP_ID, ScriptedEngine, ScriptedVerifier, decode, draw_by_seed, is_boundary

from trapo_lite.config.algorithm import AlgorithmSection
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.micro_groups import PRESETS, MicroGroup, cut_prefix
from trapo_lite.core.types import Problem, Rollout, Verdict
from trapo_lite.engines.base import SampleRequest
from trapo_lite.rollout.phase import request_seed
from trapo_lite.rollout.sampler import sample_groups
from trapo_lite.rollout.settings import SamplingSettings

SCHEDULES = ("barrier", "pipelined", "speculative")
MODES = [(schedule, deterministic) for schedule in SCHEDULES for deterministic in (False, True)]
SETTINGS = SamplingSettings(seed=5, max_response_tokens=40, stop_ids=(STOP_ID,))
CODE = PRESETS["reference_code"]


def problem(name: str = "a", traces: Sequence[int] = (20, 20)) -> Problem:
    """Prompt of three tokens; expert traces of the given lengths, ids 100 and 200 onward, without blank lines."""
    expert = tuple(tuple(4 + 10 * (10 * t + index) for index in range(n)) for t, n in enumerate(traces, start=1))
    return Problem(id=name, prompt_ids=(1, 2, ord(name[0])), answer=f"gold of {name}", expert_ids=expert)


def settings(**changes: object) -> SamplingSettings:
    return SamplingSettings(**{**vars(SETTINGS), **changes})  # type: ignore[arg-type]


def sample(
    problems: Sequence[Problem],
    *,
    micro_groups: Sequence[MicroGroup] | Callable[[Problem], Sequence[MicroGroup]] = CODE,
    judge: Callable[[str, str], bool] = lambda text, gold: False,
    engine: ScriptedEngine | None = None,
    step: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    show: Callable[[Problem, Sequence[int]], tuple[int, ...]] | None = None,
    **changes: object,
) -> tuple[list[list[Rollout]], ScriptedEngine]:
    engine = engine or ScriptedEngine()
    with ScriptedVerifier(judge) as verifier:
        sampler = partial(
            sample_groups,
            engine,
            verifier,
            micro_groups=micro_groups,
            settings=settings(**changes),
            decode=decode,
            is_boundary=is_boundary,
            on_progress=on_progress,
            show=show,
        )
        return sampler(problems, step=step)[0], engine


# ----- the same rollouts from every mode, and those of the rule written down plainly


def one_by_one(
    item: Problem, micro_groups: Sequence[MicroGroup], judge: Callable[[str, str], float | None], limit: int
) -> list[Rollout]:
    """METHOD 3 for one problem, with nothing in flight. Traces are fixed by the schedule."""
    rollouts: list[Rollout] = []
    for micro_group in micro_groups:
        solved = [rollout.reward or 0.0 for rollout in rollouts]
        wants_help = micro_group.help_below is None or (
            bool(solved) and sum(solved) / len(solved) < micro_group.help_below
        )
        prefix, trace = (), None
        if wants_help and item.expert_ids:
            assert micro_group.trace is not None
            at = micro_group.trace if micro_group.trace < len(item.expert_ids) else 0
            prefix = item.expert_ids[at][: cut_prefix(item.expert_ids[at], micro_group.prefix_ratio, is_boundary)]
            trace = at if prefix else None
        for place in range(micro_group.num_rollouts):
            slot, is_whole = len(rollouts), bool(prefix) and prefix == item.expert_ids[trace or 0]
            seed = request_seed(5, 1, item.id, slot, bool(prefix))
            request = SampleRequest("", item.prompt_ids + prefix, seed, limit - len(prefix), stop_ids=(STOP_ID,))
            tokens = () if is_whole or request.max_tokens <= 0 else draw_by_seed(request)
            rng = random.Random(seed)
            text = decode(prefix + tokens)
            reward = judge(text, item.answer)
            kind = "unjudged" if reward is None else "correct" if reward >= 1 else "wrong"
            num_trained = micro_group.num_rollouts if micro_group.num_trained is None else micro_group.num_trained
            reason = "expert" if is_whole else "stop" if tokens and tokens[-1] == STOP_ID else "length"
            rollouts.append(
                Rollout(
                    problem_id=item.id,
                    slot=slot,
                    prompt_ids=item.prompt_ids,
                    prefix_ids=prefix,
                    completion_ids=tokens,
                    completion_logprobs=tuple(-3 * rng.random() for _ in tokens),
                    finish_reason=reason,
                    trace=trace,
                    prefix_ratio=micro_group.prefix_ratio if prefix else 0.0,
                    train_prefix=bool(prefix) and micro_group.num_rollouts - place <= num_trained,
                    adapter_version=1 if tokens else None,
                    verdict=Verdict(kind, text),
                    reward=None if reward is None else float(reward),
                )
            )
    return rollouts


def random_problem(rng: random.Random, name: str) -> Problem:
    traces = [
        tuple(rng.randrange(1, 60) for _ in range(rng.choice([0, 1, 3, 8, 30]))) for _ in range(rng.randint(0, 2))
    ]
    return Problem(id=name, prompt_ids=(1, 2, int(name)), answer=f"gold {name}", expert_ids=tuple(traces))


def random_schedule(rng: random.Random) -> tuple[MicroGroup, ...]:
    if rng.random() < 0.5:
        return CODE
    return tuple(
        MicroGroup(
            num_rollouts=(num := rng.randint(1, 3)),
            prefix_ratio=rng.choice([0.0, 0.25, 0.5, 0.9, 1.0]),
            help_below=rng.choice([None, 0.0, 0.3, 0.5, 1.0]),
            trace=rng.choice([0, 1]),
            num_trained=rng.choice([None, 0, num]),
        )
        for _ in range(rng.randint(1, 4))
    )


BOUNDS = {"0 or 1": (0.0, 1.0), "-1 to 2": (-1.0, 2.0), "any number": (-math.inf, math.inf)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rewards", "threaded"),
    [
        pytest.param("0 or 1", False, id="verdicts-at-once", marks=pytest.mark.long),
        pytest.param("0 or 1", True, id="verdicts-from-a-thread"),
        pytest.param("-1 to 2", True, id="bounded-rewards-or-none"),
        pytest.param("any number", True, id="any-rewards-or-none"),
    ],
)
def test_every_mode_gives_the_rollouts_of_the_rule(rewards: str, threaded: bool) -> None:
    """1000 random verdict patterns, schedules and traces; in each the engine and the verifier finish as they like."""
    guided_patterns = set()
    for case in range(1000):
        rng = random.Random(case)
        problems = [random_problem(rng, str(number)) for number in range(rng.randint(1, 3))]
        micro_groups, limit, share = random_schedule(rng), rng.choice([6, 20, 60]), rng.choice([0.2, 0.5, 0.8])

        def judge(text: str, gold: str, case: int = case, share: float = share) -> float | None:
            own = random.Random(f"{case}/{text}/{gold}")
            if rewards == "0 or 1":
                return own.random() < share
            largest = 2.0 if rewards == "-1 to 2" else 50.0
            return own.choice([None, 0.0, 1.0, -largest / 2, largest, own.uniform(-largest / 2, largest)])

        expected = [one_by_one(item, micro_groups, judge, limit) for item in problems]
        guided_patterns |= {tuple(rollout.is_guided for rollout in group) for group in expected}
        modes = MODES if not threaded else [MODES[case % len(MODES)]]
        for number, (schedule, deterministic) in enumerate(modes):
            engine = ScriptedEngine(order_seed=len(MODES) * case + number)
            with ScriptedVerifier(judge, threaded=threaded, order_seed=case, pause_s=1e-4) as verifier:
                sampler = partial(
                    sample_groups,
                    engine,
                    verifier,
                    micro_groups=micro_groups,
                    settings=settings(
                        max_response_tokens=limit,
                        start_order=schedule,
                        deterministic=deterministic,
                        reward_bounds=BOUNDS[rewards],
                    ),
                    decode=decode,
                    is_boundary=is_boundary,
                )
                groups, _ = sampler(problems, step=1)
            assert groups == expected, (case, schedule, deterministic)
    assert len(guided_patterns) > 20  # the cases did differ


def test_a_batch_changes_nothing_for_a_problem_in_it() -> None:
    """Seeds belong to rollouts: alone, in company, in another order, the same tokens."""
    names = "abcd"
    together = sample([problem(name) for name in names])[0]
    reversed_order = sample([problem(name) for name in reversed(names)], engine=ScriptedEngine(order_seed=9))[0]
    assert reversed_order == together[::-1]
    assert [sample([problem(name)])[0][0] for name in names] == together


# ----- who gets which prefix


def test_a_failing_problem_climbs_the_schedule() -> None:
    """reference_code: 4 free, 2 from a quarter of trace 0, 1 from half of it, 1 the whole of trace 1."""
    item = problem()
    (group,), _ = sample([item])
    first, second = item.expert_ids
    assert [rollout.prefix_ids for rollout in group] == [()] * 4 + [first[:5]] * 2 + [first[:10], second]
    assert [rollout.trace for rollout in group] == [None] * 4 + [0, 0, 0, 1]
    assert [rollout.train_prefix for rollout in group] == [False] * 4 + [False, True, True, True]
    assert [rollout.slot for rollout in group] == list(range(8))
    assert (group[7].completion_ids, group[7].finish_reason, group[7].adapter_version) == ((), "expert", None)
    assert group[7].completion_logprobs == ()


def test_a_solved_problem_gets_no_help() -> None:
    (group,), engine = sample([problem()], judge=lambda text, gold: True)
    assert not any(rollout.is_guided or rollout.train_prefix for rollout in group)
    assert all(rollout.trace is None for rollout in group)
    assert len(engine.requests) == 8


def test_the_prefix_is_cut_prefix_of_the_trace() -> None:
    blank_lines = Problem("a", (1,), "", (tuple(3 if index in (8, 15) else 5 for index in range(20)),))
    (group,), _ = sample([blank_lines])
    lengths = [len(rollout.prefix_ids) for rollout in group]
    assert lengths == [0] * 4 + [9, 9, 16, 20]
    for rollout, ratio in zip(group[4:], (0.25, 0.25, 0.5, 1.0), strict=True):
        trace = blank_lines.expert_ids[0]
        assert rollout.prefix_ids == trace[: cut_prefix(trace, ratio, is_boundary)]


def test_the_whole_expert_text_is_graded_and_counts() -> None:
    item = problem()
    is_expert = decode(item.expert_ids[1])
    (group,), _ = sample([item], judge=lambda text, gold: text == is_expert)
    assert [rollout.reward for rollout in group] == [0.0] * 7 + [1.0]
    assert group[7].verdict == Verdict("correct", is_expert)


def test_the_verifier_reads_prefix_and_completion_with_the_problems_answer() -> None:
    seen = []
    item = problem()
    (group,), _ = sample([item], judge=lambda text, gold: bool(seen.append((text, gold))))
    assert sorted(seen) == sorted((decode(rollout.response_ids), "gold of a") for rollout in group)


@pytest.mark.parametrize(("num_trained", "carries"), [(None, "111"), (0, "000"), (1, "001"), (2, "011"), (3, "111")])
def test_the_last_num_trained_guided_rollouts_carry_the_prefix_loss(num_trained: int | None, carries: str) -> None:
    micro_groups = [MicroGroup(3, 0.5, None, num_trained=num_trained)]
    (group,), _ = sample([problem()], micro_groups=micro_groups)
    assert "".join(str(int(rollout.train_prefix)) for rollout in group) == carries


def test_one_trace_only_falls_back_to_it() -> None:
    item = problem(traces=[20])
    (group,), _ = sample([item])
    assert (group[7].prefix_ids, group[7].trace) == (item.expert_ids[0], 0)


@pytest.mark.parametrize("traces", [[], [0], [0, 0]], ids=["none", "empty", "two-empty"])
def test_without_a_trace_there_is_no_help(traces: list[int]) -> None:
    (group,), engine = sample([problem(traces=traces)])
    assert not any(rollout.is_guided or rollout.train_prefix for rollout in group)
    assert len(engine.requests) == 8


def test_a_trace_too_short_to_cut_gives_no_help_until_it_is_given_whole() -> None:
    (group,), _ = sample([problem(traces=[3])])
    assert [len(rollout.prefix_ids) for rollout in group] == [0, 0, 0, 0, 0, 0, 1, 3]  # int(3 / 4), int(3 / 2), 3
    assert [rollout.trace for rollout in group] == [None] * 6 + [0, 0]
    assert [rollout.prefix_ratio for rollout in group] == [0.0] * 6 + [0.5, 1.0]


def test_a_random_trace_is_a_function_of_seed_step_problem_and_micro_group() -> None:
    items = [problem(name, traces=(20, 30)) for name in "abcdefgh"]

    def traces(**changes: object) -> list[list[int | None]]:
        groups, _ = sample(items, micro_groups=PRESETS["paper"], engine=ScriptedEngine(order_seed=3), **changes)
        return [[rollout.trace for rollout in group] for group in groups]

    chosen = traces()
    assert chosen == traces() == traces(start_order="barrier") == traces(deterministic=True)
    assert chosen != traces(seed=6)
    assert chosen != traces(step=2)
    assert all(group[4] == group[5] for group in chosen)  # one draw a micro-group
    for slot in (4, 6, 7):
        assert {group[slot] for group in chosen} == {0, 1}
    assert len({tuple(group[4:]) for group in chosen}) > 2  # the micro-groups draw independently


def test_a_ratio_is_drawn_from_a_list_for_each_micro_group_and_problem() -> None:
    ratios = (0.2, 0.4, 0.6, 0.8)
    drawing = MicroGroup(3, 0.8, None, drawn_from=ratios)
    items = [problem(name, traces=(20,)) for name in "abcdefgh"]

    def drawn(**changes: object) -> list[list[float]]:
        micro_groups = [MicroGroup(2, 0.0, 0.0), drawing, drawing]
        groups, _ = sample(items, micro_groups=micro_groups, engine=ScriptedEngine(order_seed=3), **changes)
        for group in groups:
            assert [len(r.prefix_ids) for r in group] == [int(20 * r.prefix_ratio) for r in group]
            assert len({r.prefix_ratio for r in group[2:5]}) == len({r.prefix_ratio for r in group[5:]}) == 1
        return [[rollout.prefix_ratio for rollout in group] for group in groups]

    chosen = drawn()
    assert chosen == drawn() == drawn(start_order="barrier") == drawn(deterministic=True)
    assert chosen != drawn(seed=6) and chosen != drawn(step=2)
    assert {group[2] for group in chosen} == set(ratios) and all(group[:2] == [0.0, 0.0] for group in chosen)
    assert any(group[2] != group[5] for group in chosen)  # the micro-groups draw independently


# ----- requests


def test_requests_carry_what_decides_the_draw() -> None:
    item = problem()
    (group,), engine = sample([item], temperature=0.7, top_p=0.9, top_k=4, step=11)
    assert len(engine.requests) == 7  # none for the expert's own
    for request, rollout in zip(engine.requests, group[:7], strict=True):
        assert request.token_ids == rollout.prompt_ids + rollout.prefix_ids
        assert request.max_tokens == 40 - len(rollout.prefix_ids)
        assert request.seed == request_seed(5, 11, "a", rollout.slot, rollout.is_guided)
        assert (request.temperature, request.top_p, request.top_k, request.stop_ids) == (0.7, 0.9, 4, (STOP_ID,))
    assert len({request.request_id for request in engine.requests}) == 7


def test_every_part_of_a_seed_counts_and_fits_a_float() -> None:
    base = (0, 1, "a", 2, False)
    others = [(9, 1, "a", 2, False), (0, 9, "a", 2, False), (0, 1, "b", 2, False), (0, 1, "a", 9, False)]
    seeds = [request_seed(*parts) for parts in [base, *others, (0, 1, "a", 2, True)]]
    assert len(set(seeds)) == len(seeds)
    assert request_seed(*base) == request_seed(*base)
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert request_seed(1, 11, "a", 2, False) != request_seed(11, 1, "a", 2, False)  # parts do not run together


@pytest.mark.parametrize(("limit", "room"), [(10, 0), (9, -1), (11, 1)])
def test_a_prefix_that_leaves_no_room_is_a_completion_of_no_tokens(limit: int, room: int) -> None:
    micro_groups = [MicroGroup(1, 0.5, None)]
    (group,), engine = sample([problem()], micro_groups=micro_groups, max_response_tokens=limit)
    assert [request.max_tokens for request in engine.requests] == ([room] if room > 0 else [])
    assert len(group[0].completion_ids) == max(room, 0)
    assert group[0].finish_reason == ("stop" if group[0].completion_ids == (STOP_ID,) else "length")
    assert group[0].verdict.kind == "wrong"  # graded all the same
    assert group[0].train_prefix


def test_sft_asks_no_engine() -> None:
    item = problem()
    with ScriptedVerifier(lambda text, gold: True) as verifier:
        sampler = partial(
            sample_groups,
            None,
            verifier,
            micro_groups=[MicroGroup(1, 1.0, None)],
            settings=settings(deterministic=True),
            decode=decode,
            is_boundary=is_boundary,
        )
        ((rollout,),), _ = sampler([item], step=1)
        assert (rollout.prefix_ids, rollout.completion_ids, rollout.reward) == (item.expert_ids[0], (), 1.0)
        with pytest.raises(RuntimeError, match="problem b must be sampled but there is no engine"):
            sampler([problem("b", traces=[])], step=1)


# ----- order in time


def submitted(engine: ScriptedEngine) -> list[str]:
    return [request.request_id for request in engine.requests]


def slow_first_problem(request: SampleRequest) -> int:
    return 50 if request.request_id.startswith("1/0/") else 1


def test_pipelined_a_slow_problem_holds_back_no_other() -> None:
    engine = ScriptedEngine(delay=slow_first_problem)
    sample([problem("a"), problem("b")], engine=engine)
    order = submitted(engine)
    assert order.index("1/1/6g") < order.index("1/0/4g")  # b's third micro-group before a's second
    polls_before = [kind for kind, _ in engine.events[: engine.events.index(("submit", "1/1/6g"))]].count("poll")
    assert polls_before < 50


def test_barrier_waits_for_the_slowest_problem() -> None:
    engine = ScriptedEngine(delay=slow_first_problem)
    sample([problem("a"), problem("b")], engine=engine, start_order="barrier")
    assert submitted(engine) == [
        *[f"1/{item}/{slot}" for item in (0, 1) for slot in (0, 1, 2, 3)],
        *[f"1/{item}/{slot}g" for item in (0, 1) for slot in (4, 5)],
        *[f"1/{item}/{slot}g" for item in (0, 1) for slot in (6,)],
    ]


def fixed_delay(request: SampleRequest) -> int:
    """Longer for later slots and for guided rollouts; a function of the request alone."""
    return 10 + 3 * int(request.request_id.rstrip("g").rsplit("/", 1)[1]) + (5 if request.request_id[-1] == "g" else 0)


def num_polls(engine: ScriptedEngine) -> int:
    return [kind for kind, _ in engine.events].count("poll")


def test_speculative_draws_at_most_eleven_and_lasts_as_long_as_its_longest_rollout() -> None:
    """4 alone, then 2 + 1 with and without help, and 1 without: the whole trace needs no engine. All fail."""
    engine = ScriptedEngine(delay=fixed_delay)
    groups, _ = sample([problem()], engine=engine, start_order="speculative")
    assert sorted(submitted(engine)) == sorted(
        [*(f"1/0/{slot}" for slot in range(8)), *(f"1/0/{slot}g" for slot in (4, 5, 6))]
    )
    needed = [engine_delay for request in engine.requests if (engine_delay := fixed_delay(request)) <= 33]
    assert num_polls(engine) == max(needed) == fixed_delay(next(r for r in engine.requests if r.request_id == "1/0/6g"))
    barrier = ScriptedEngine(delay=fixed_delay)
    assert sample([problem()], engine=barrier, start_order="barrier")[0] == groups
    assert num_polls(barrier) == 19 + 30 + 33  # the longest of each micro-group, one after the other


def test_a_branch_is_aborted_as_soon_as_the_verdicts_rule_it_out() -> None:
    """Two of the first four succeed: micro-group 2 stays alone whatever the others do, though one is still decoding."""

    def slow_fourth(request: SampleRequest) -> int:
        return {"1/0/0": 1, "1/0/1": 2, "1/0/2": 3, "1/0/3": 40}.get(request.request_id, 60)

    aborted: list[tuple[str, int]] = []

    class Watched(ScriptedEngine):
        def abort(self, request_id: str) -> None:
            aborted.append((request_id, num_polls(self)))
            super().abort(request_id)

    engine = Watched(delay=slow_fourth, draw=lambda request: (int(request.seed % 40) + 2, STOP_ID))
    item, texts = problem(), {}

    def first_two(text: str, gold: str) -> bool:
        return text != decode(item.expert_ids[1]) and texts.setdefault(text, len(texts)) < 2

    sample([item], engine=engine, start_order="speculative", judge=first_two)
    assert [(request_id, polls) for request_id, polls in aborted if polls <= 2] == [("1/0/4g", 2), ("1/0/5g", 2)]


def test_pipelined_starts_what_is_certain_before_the_last_verdict_is_in() -> None:
    """One failure among the first four makes it certain that the last rollout is the expert's: threshold 1."""
    engine = ScriptedEngine(delay=lambda request: 50 if request.request_id == "1/0/3" else 1)
    graded: list[str] = []
    item = problem()
    sample([item], engine=engine, judge=lambda text, gold: bool(graded.append(text)))
    assert graded.index(decode(item.expert_ids[1])) < 4


def test_a_rollout_is_graded_while_others_still_decode() -> None:
    """The first completion's text reaches the verifier before the second completion exists."""
    log: list[str] = []

    def draw(request: SampleRequest) -> tuple[int, ...]:
        log.append("drawn")
        return (int(request.request_id[-1]) + 1,)

    engine = ScriptedEngine(draw=draw, delay=lambda request: 1 + int(request.request_id[-1]))
    sample(
        [problem()], micro_groups=[MicroGroup(2, 0.0, 0.0)], judge=lambda *_: bool(log.append("graded")), engine=engine
    )
    assert log == ["drawn", "graded", "drawn", "graded"]


def calls(*, pause_s: float, order_seed: int) -> tuple[list[tuple[str, str]], list[str]]:
    """What a deterministic step asks of the engine and of the verifier, when both finish in an order of their own."""
    engine = ScriptedEngine(delay=lambda request: 1 + request.seed % 4, order_seed=order_seed)

    def judge(text: str, gold: str) -> bool:
        return sum(map(ord, text)) % 3 == 0

    with ScriptedVerifier(judge, threaded=True, order_seed=order_seed, pause_s=pause_s) as verifier:
        sampler = partial(
            sample_groups,
            engine,
            verifier,
            micro_groups=CODE,
            settings=settings(deterministic=True),
            decode=decode,
            is_boundary=is_boundary,
        )
        sampler([problem(name) for name in "abcde"], step=1)
    return engine.events, verifier.texts


def test_deterministic_calls_do_not_depend_on_what_finishes_first() -> None:
    """Every engine batch has the same composition, so its float sums have the same bits."""
    events, texts = calls(pause_s=0.0, order_seed=0)
    assert events[0] == ("reset", "")
    assert [kind for kind, _ in events].count("reset") == 1
    assert calls(pause_s=2e-3, order_seed=1) == (events, texts)
    assert calls(pause_s=1e-3, order_seed=2) == (events, texts)


def test_progress_counts_verdicts_up_to_all_of_them() -> None:
    seen: list[tuple[int, int]] = []
    with ScriptedVerifier(lambda text, gold: False) as verifier:
        sampler = partial(
            sample_groups,
            ScriptedEngine(),
            verifier,
            micro_groups=CODE,
            settings=SETTINGS,
            decode=decode,
            is_boundary=is_boundary,
        )
        _, report = sampler([problem("a"), problem("b")], step=1, on_progress=lambda *x: seen.append(x))
    assert seen[-1] == (16, 16)
    assert seen == sorted(seen)
    assert report.engine_seconds > 0 and report.verdict_seconds >= 0


def test_no_problems_is_no_work() -> None:
    groups, engine = sample([])
    assert groups == [] and engine.requests == []


def test_a_verifier_that_fails_stops_the_step() -> None:
    def judge(text: str, gold: str) -> bool:
        raise RuntimeError("the verifier is gone")

    with pytest.raises(RuntimeError, match="the verifier is gone"):
        sample([problem()], judge=judge)


# ----- completions that were cut


@pytest.mark.parametrize("truncated", ["graded", "zero", "masked"])
def test_what_becomes_of_completions_that_were_cut(truncated: str) -> None:
    """Two rollouts stop and two are cut, of each kind one with reward 1; the fifth is a whole expert trace."""
    drawn = {0: (9, STOP_ID), 1: (8, STOP_ID), 2: (9, 9, 9, 9), 3: (8, 8, 8, 8)}
    engine = ScriptedEngine(draw=lambda request: drawn[int(request.request_id.rsplit("/", 1)[1].rstrip("g"))])
    schedule = [MicroGroup(4, 0.0, 0.0), MicroGroup(1, 1.0, None)]
    [[*own, expert]], _ = sample(
        [problem()],
        micro_groups=schedule,
        judge=lambda text, gold: "9" in text.split(),
        engine=engine,
        max_response_tokens=4,
        truncated=truncated,
    )
    assert [rollout.finish_reason for rollout in own] == ["stop", "stop", "length", "length"]
    assert [rollout.reward for rollout in own] == [1.0, 0.0, 0.0 if truncated == "zero" else 1.0, 0.0]
    assert [rollout.verdict.kind for rollout in own] == ["correct", "wrong", "correct", "wrong"]
    assert [rollout.is_masked for rollout in (*own, expert)] == [False, False, *[truncated == "masked"] * 2, False]
    group = make_group(AlgorithmSection().build(), own)
    mean = 0.25 if truncated == "zero" else 0.5
    expected = [rollout.reward - mean for rollout in own if rollout.reward is not None]
    if truncated == "masked":
        expected[2:] = [0.0, 0.0]
    assert list(group.advantages) == pytest.approx(expected)


HPT = (MicroGroup(3, 0.0, 0.0), MicroGroup(1, 1.0, 0.5, otherwise="skip", replaces_rl=True))


@pytest.mark.parametrize(("schedule", "deterministic"), MODES)
def test_a_micro_group_that_skips_draws_nothing_where_it_does_not_help(schedule: str, deterministic: bool) -> None:
    """Problem s is solved, f is not, and n has no expert solution."""
    problems = [problem("s"), problem("f"), problem("n", traces=[])]
    progress: list[tuple[int, int]] = []

    groups, engine = sample(
        problems,
        micro_groups=HPT,
        judge=lambda text, gold: gold == "gold of s",
        start_order=schedule,
        deterministic=deterministic,
        on_progress=lambda done, expected: progress.append((done, expected)),
    )
    assert [rollout.reward for rollout in groups[0]] == [1.0] * 3
    assert [rollout.finish_reason for rollout in groups[1]][3:] == ["expert"]
    assert [rollout.is_guided for rollout in groups[2]] == [False] * 3
    assert len(engine.requests) == 9
    assert progress[-1][0] == progress[-1][1]


def test_help_is_withheld_at_random_in_every_mode_alike() -> None:
    """A third of the failing problems gets help in the micro-group, by the seed of problem and step."""
    problems = [problem(chr(97 + index)) for index in range(60)]
    schedule = (MicroGroup(2, 0.0, 0.0), MicroGroup(2, 0.5, 0.5, help_probability=1 / 3))
    helped = []
    for mode, deterministic in MODES:
        groups, _ = sample(problems, micro_groups=schedule, start_order=mode, deterministic=deterministic)
        helped.append([[rollout.is_guided for rollout in group] for group in groups])
    assert all(other == helped[0] for other in helped[1:])
    assert {tuple(flags) for flags in helped[0]} == {(False,) * 4, (False, False, True, True)}  # both or neither
    assert 10 <= sum(flags[2] for flags in helped[0]) <= 30  # 20, with a standard deviation of 3.7
    later, _ = sample(problems, micro_groups=schedule, step=2)
    assert [[rollout.is_guided for rollout in group] for group in later] != helped[0]


def test_each_problem_may_have_its_own_schedule() -> None:
    def schedule(item: Problem) -> tuple[MicroGroup, ...]:
        return (MicroGroup(1, 0.0, 0.0), MicroGroup(1, 0.5, 0.5, prefix_weight=0.5 if item.id == "a" else 1.0))

    groups, _ = sample([problem("a"), problem("b")], micro_groups=schedule)
    assert [[rollout.prefix_weight for rollout in group] for group in groups] == [[1.0, 0.5], [1.0, 1.0]]


def test_a_prefix_in_the_prompt_is_no_part_of_the_answer() -> None:
    """The prompt of three tokens becomes ten longer; so many tokens fewer are left for the answer."""
    item = problem("a", traces=[20])
    read: list[str] = []

    def show(shown: Problem, prefix: Sequence[int]) -> tuple[int, ...]:
        assert shown is item
        return (1, 2, 7, 7, *prefix, 8)

    def judge(text: str, gold: str) -> bool:
        read.append(text)
        return False

    schedule = (MicroGroup(2, 0.0, 0.0), MicroGroup(2, 0.5, None, prefix_in="prompt"))
    [group], engine = sample([item], micro_groups=schedule, judge=judge, show=show, max_response_tokens=40)
    alone, shown = group[:2], group[2:]
    assert [rollout.prompt_ids for rollout in alone] == [item.prompt_ids] * 2
    expected = (1, 2, 7, 7, *item.expert_ids[0][:10], 8)
    for rollout in shown:
        assert (rollout.prompt_ids, rollout.prefix_ids, rollout.num_shown) == (expected, (), 10)
        assert rollout.is_guided and not rollout.train_prefix and rollout.completion_ids
        assert decode(rollout.completion_ids) in read
    assert {len(request.token_ids): request.max_tokens for request in engine.requests} == {3: 40, 15: 40 - 12}


def test_shown_prefixes_are_compared_with_each_other() -> None:
    algorithm = AlgorithmSection(
        schedule=[  # type: ignore[arg-type]
            {"num_rollouts": 2},
            {"num_rollouts": 2, "prefix_ratio": 0.5, "help_below": None, "prefix_in": "prompt"},
        ],
        prefix_loss="none",  # type: ignore[arg-type]
        baseline="micro_group",  # type: ignore[arg-type]
    ).build(max_response_tokens=8)
    rewards = iter([True, True, True, False])
    [group], _ = sample(
        [problem("a", traces=[20])],
        micro_groups=algorithm.micro_groups,
        judge=lambda text, gold: next(rewards),
        show=lambda item, prefix: (*item.prompt_ids, *prefix),
        engine=ScriptedEngine(delay=lambda request: 1),
        start_order="barrier",
    )
    assert sorted(make_group(algorithm, group).advantages) == [-0.5, 0.0, 0.0, 0.5]
