"""The three schedules draw the same rollouts from a real engine, in float32, with the real verifier."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import VLLM_DTYPE, VLLM_ROUNDING

from trapo_lite.config import Config, RewardSection, load_config
from trapo_lite.core.types import Rollout, Verdict
from trapo_lite.data.tokens import is_boundary_fn, text_of
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.engines.start import start_engine
from trapo_lite.model.policy import Policy
from trapo_lite.reward import Scorer
from trapo_lite.rollout.phase import PhaseReport
from trapo_lite.rollout.sampler import sample_groups
from trapo_lite.rollout.settings import sampling_settings
from trapo_lite.training.inputs import read_inputs

pytestmark = pytest.mark.slow

NUM_PROBLEMS = 6
ROUNDING = VLLM_ROUNDING / 10  # of a log-prob, between two batch compositions


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.long)])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutEngine]:
    config = config_for(request.param)
    engine = start_engine(config, max_model_len=192, log_path=tmp_path_factory.mktemp("logs") / "engine.log")
    policy = Policy.load(config.model, config.lora, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.add_(0.003 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("adapter")
    policy.adapter.save(folder)
    engine.publish(folder, 1)
    yield engine
    engine.close()


def config_for(name: str, schedule: str = "barrier") -> Config:
    overrides = [f"rollout.engine={name}", f"rollout.schedule={schedule}", "run.deterministic=false"]
    if name == "vllm":
        overrides.append(f"model.dtype={VLLM_DTYPE}")
    return load_config([Path("configs/tiny_cpu.yaml")], overrides)


def draw(engine: RolloutEngine, schedule: str) -> tuple[list[list[Rollout]], PhaseReport]:
    """The groups, and what they cost."""
    config = config_for("transformers", schedule)
    inputs = read_inputs(config)
    engine.reset_prefix_cache()
    with Scorer(RewardSection(num_workers=2, deadline_seconds=5.0)) as verifier:
        sampler = partial(
            sample_groups,
            engine,
            verifier,
            micro_groups=config.algorithm.micro_groups,
            settings=sampling_settings(config, inputs.tokenizer),
            decode=lambda token_ids: text_of(inputs.tokenizer, token_ids),
            is_boundary=is_boundary_fn(inputs.tokenizer),
        )
        return sampler(inputs.problems[:NUM_PROBLEMS], step=3)


def compare(left: list[Rollout], right: list[Rollout]) -> None:
    """AssertionError unless a group is the same: tokens exactly, log-probs but for rounding."""
    for a, b in zip(left, right, strict=True):
        assert (a.slot, a.prefix_ids, a.trace, a.train_prefix) == (b.slot, b.prefix_ids, b.trace, b.train_prefix)
        assert a.completion_ids == b.completion_ids
        assert a.completion_logprobs == pytest.approx(b.completion_logprobs, abs=ROUNDING)
        assert (a.reward, a.verdict.kind, a.finish_reason) == (b.reward, b.verdict.kind, b.finish_reason)


@pytest.mark.long
def test_schedules_draw_the_same_rollouts(engine: RolloutEngine) -> None:
    barrier, needed = draw(engine, "barrier")
    rewards = [rollout.reward for group in barrier for rollout in group]
    assert 0 < sum(rewards) < len(rewards), "all alike: the rule is not put to the test"
    assert {rollout.is_guided for group in barrier for rollout in group} == {True, False}
    for schedule in ("pipelined", "speculative"):
        groups, report = draw(engine, schedule)
        assert (report.num_requests > needed.num_requests) == (schedule == "speculative")
        is_cached = report.num_cached_tokens > 0  # prompt and prefix of a micro-group's second rollout
        assert is_cached == (type(engine).__name__ == "SupervisedEngine")
        for one, other in zip(barrier, groups, strict=True):
            compare(one, other)


def test_the_comparison_can_fail() -> None:
    logprobs = (-0.1, -0.2, -0.3)
    rollout = Rollout("a", 0, (1,), (), (5, 6, 7), logprobs, adapter_version=1, verdict=Verdict("correct"), reward=1.0)
    compare([rollout], [rollout])
    changes = ({"completion_ids": (5, 8, 7)}, {"completion_logprobs": (-0.1, -0.2, -0.31)}, {"reward": 0.0})
    for change in (*changes, {"prefix_ids": (4,)}):
        with pytest.raises(AssertionError):
            compare([rollout], [replace(rollout, **change)])
