"""`rollout.schedule: auto` chooses by what the engine's steps cost."""

import pytest
from scripted import STOP_ID, ScriptedEngine

from trapo_lite import schedule_choice
from trapo_lite.config import ConfigError, load_config
from trapo_lite.config.presets import PRESETS
from trapo_lite.sampler import SamplingSettings, Schedule
from trapo_lite.schedule_choice import Rates, choose_schedule, measure_rates, simulated_seconds
from trapo_lite.types import Problem

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
    monkeypatch.setattr(schedule_choice, "measure_rates", lambda *_args, **_options: rates)
    settings = SamplingSettings(seed=0, max_response_tokens=480, stop_ids=(STOP_ID,))
    choice = choose_schedule(ScriptedEngine(), PROBLEMS, micro_groups=PRESETS["reference_code"], settings=settings)
    assert choice.schedule == expected


def test_auto_is_refused_where_bits_are_promised() -> None:
    with pytest.raises(ConfigError, match=r"rollout.schedule: auto measures.*name a schedule"):
        load_config(overrides=["rollout.schedule=auto", "run.deterministic=true", "run.num_threads=1"])
