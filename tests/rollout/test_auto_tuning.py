"""`rollout.schedule: auto` and `rollout.merge: auto` choose by what the engine's steps cost."""

import time

import pytest
from scripted import STOP_ID, ScriptedEngine

from trapo_lite.config import load_config
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.micro_groups import PRESETS
from trapo_lite.core.types import Problem
from trapo_lite.rollout import auto_tuning as rollout_choices
from trapo_lite.rollout.auto_tuning import Rates, choose_merge, choose_schedule, measure_rates, simulated_seconds
from trapo_lite.rollout.settings import SamplingSettings, Schedule
from trapo_lite.training.rollouts import most_sequences

PROBLEMS = [Problem(f"p{n}", (1, 2, n), "x", (tuple(range(4, 64)),)) for n in range(16)]


def seconds(rates: Rates, schedule: Schedule) -> float:
    settings = SamplingSettings(seed=0, max_response_tokens=480, stop_ids=(STOP_ID,), schedule=schedule)
    return simulated_seconds(rates, PROBLEMS, micro_groups=PRESETS["reference_code"], settings=settings)


def test_speculation_pays_where_more_sequences_cost_nothing_and_not_where_they_cost_all() -> None:
    flat = Rates(((16, 1e-3), (256, 1e-3)), prompt_tokens=1e6)  # memory-bound: a step is a step
    steep = Rates(((1, 1e-3), (256, 0.256)), prompt_tokens=1e6)  # compute-bound: a sequence is a sequence
    assert seconds(flat, "speculative") < seconds(flat, "pipelined") < seconds(flat, "barrier")
    assert seconds(steep, "speculative") > seconds(steep, "pipelined")


def test_the_choice_is_made_from_the_engine_and_says_why() -> None:
    settings = SamplingSettings(seed=0, max_response_tokens=100, stop_ids=(STOP_ID,))
    engine = ScriptedEngine(draw=lambda request: (5,) * request.max_tokens, delay=lambda request: request.max_tokens)
    choice = choose_schedule(engine, PROBLEMS[:2], micro_groups=PRESETS["reference_code"], settings=settings)
    assert choice.reason.startswith(f"rollout.schedule auto: {choice.schedule}; ")
    assert {request.max_tokens for request in engine.requests} == {1, 17}
    rates = measure_rates(engine, PROBLEMS[:2], sizes=(2, 8), max_response_tokens=100)
    assert [size for size, _ in rates.steps] == [2, 8] and rates.prompt_tokens > 0


@pytest.mark.parametrize(("slow", "expected"), [(1e-3, "speculative"), (0.256, "pipelined")])
def test_the_shorter_one_is_chosen(monkeypatch: pytest.MonkeyPatch, slow: float, expected: str) -> None:
    rates = Rates(((1, 1e-3), (256, slow)), prompt_tokens=1e6)
    monkeypatch.setattr(rollout_choices, "measure_rates", lambda *_args, **_options: rates)
    settings = SamplingSettings(seed=0, max_response_tokens=480, stop_ids=(STOP_ID,))
    choice = choose_schedule(ScriptedEngine(), PROBLEMS, micro_groups=PRESETS["reference_code"], settings=settings)
    assert choice.schedule == expected


class MergingEngine(ScriptedEngine):
    """Reads prompts and draws tokens as the wall clock goes; `separate_s` and `merged_s` are the seconds of a poll."""

    def __init__(self, *, separate_s: float, merged_s: float, merging_s: float = 0.0) -> None:
        super().__init__(draw=lambda request: (5,) * request.max_tokens, delay=lambda request: request.max_tokens)
        self.seconds, self.merging_s, self.is_merged = (separate_s, merged_s), merging_s, False

    def poll(self):
        time.sleep(self.seconds[self.is_merged])
        return super().poll()

    def merge(self) -> float:
        time.sleep(self.merging_s)
        self.is_merged = True
        return 1.0

    def unmerge(self) -> None:
        self.is_merged = False


@pytest.mark.parametrize(
    ("engine", "is_merged"),
    [
        (MergingEngine(separate_s=0.02, merged_s=0.002), True),
        (MergingEngine(separate_s=0.002, merged_s=0.02), False),
        (MergingEngine(separate_s=0.004, merged_s=0.002, merging_s=3.0), False),  # it costs more than it saves
    ],
)
def test_merging_is_chosen_where_it_is_faster_with_what_it_costs(engine: MergingEngine, is_merged: bool) -> None:
    settings = SamplingSettings(seed=0, max_response_tokens=100, stop_ids=(STOP_ID,))
    choice = choose_merge(engine, PROBLEMS[:2], micro_groups=PRESETS["reference_code"], settings=settings)
    assert choice.is_merged == is_merged
    assert choice.reason.startswith(f"rollout.merge auto: {'in_place' if is_merged else 'never'}; ")
    assert not engine.is_merged, "left as it was found"


@pytest.mark.parametrize(("key", "cure"), [("schedule", "name a schedule"), ("merge", "take never or in_place")])
def test_auto_is_refused_where_bits_are_promised(key: str, cure: str) -> None:
    with pytest.raises(ConfigError, match=rf"rollout.{key}: auto measures.*{cure}"):
        load_config(overrides=[f"rollout.{key}=auto", "run.deterministic=true", "run.num_threads=1"])


@pytest.mark.parametrize(
    ("overrides", "num_ranks", "num_eval_problems", "expected"),
    [
        ([], 8, 0, 4 * 8),  # 32 problems over 8 ranks, 8 rollouts each
        ([], 5, 0, 7 * 8),
        (["rollout.schedule=speculative"], 8, 0, 2 * 4 * 8),
        (["rollout.merge=auto"], 8, 0, 2 * 4 * 8),
        (["eval.num_samples=4"], 8, 100, 13 * 4),
    ],
)
def test_an_engine_is_made_for_the_sequences_that_can_occur(overrides, num_ranks, num_eval_problems, expected) -> None:
    config = load_config(["configs/8xA100_lora.yaml"], overrides)
    groups = config.algorithm.micro_groups
    found = most_sequences(config, groups, num_eval_problems=num_eval_problems, num_ranks=num_ranks)
    assert found == expected
