"""examples/trapo_in_one_file.py computes what the trainer computes, and learns."""

import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from trapo_lite.config import load_config
from trapo_lite.core.algorithm import count_normalizers, make_group
from trapo_lite.core.types import Rollout
from trapo_lite.model.policy import Policy
from trapo_lite.tiny_world import BASE_DIR, DATA_DIR
from trapo_lite.training.update import accumulate_gradient

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "trapo_in_one_file.py"
sys.path.insert(0, str(EXAMPLE.parent))
import trapo_in_one_file as example  # noqa: E402


@pytest.fixture(scope="module")
def policy() -> Policy:
    """The tiny base with an adapter that is not zero."""
    config = load_config([ROOT / "configs" / "tiny_cpu.yaml"])
    model = config.model.model_copy(update={"name": str(BASE_DIR)})
    torch.manual_seed(0)
    policy = Policy.load(model, config.lora, device="cpu")
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return policy


@pytest.fixture(scope="module")
def groups(policy: Policy) -> list[list[Rollout]]:
    """Drawn by the example, with the returns of two groups changed so that every part of the loss acts."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    problems = example.read_problems(DATA_DIR / "train.jsonl", tokenizer)[:3]
    torch.manual_seed(1)
    with policy.own_attention(longest=256):
        drawn = example.draw_groups(policy.model, tokenizer, problems)
    rewards = random.Random(0)
    return [drawn[0], *([replace(r, reward=float(rewards.random() < 0.5)) for r in group] for group in drawn[1:])]


def of_the_example(policy: Policy, groups: list[list[Rollout]]) -> torch.Tensor:
    policy.adapter.clear_gradient()
    with policy.own_attention(longest=256):
        for group in groups:
            loss = example.trapo_loss(policy.model, group) / (example.MAX_TOKENS * len(groups))
            if loss.requires_grad:
                loss.backward()
    return policy.adapter.flat_gradient()


def of_the_trainer(policy: Policy, groups: list[list[Rollout]]) -> torch.Tensor:
    """Packed as trees, by the configuration that the quickstart trains with."""
    config = load_config([ROOT / "configs" / "tiny_cpu.yaml"])
    algorithm = config.algorithm.build(max_response_tokens=config.rollout.max_response_tokens)
    made = [make_group(algorithm, group) for group in groups]
    accumulate_gradient(policy, algorithm, [policy.prepare(made)], count_normalizers(algorithm, made), temperature=1.0)
    return policy.adapter.flat_gradient()


def test_its_gradient_is_the_trainers(policy: Policy, groups: list[list[Rollout]]) -> None:
    assert any(rollout.train_prefix for group in groups for rollout in group)
    assert any(rollout.prefix_ids and not rollout.train_prefix for group in groups for rollout in group)
    expected = of_the_trainer(policy, groups)
    assert expected.norm() > 0
    torch.testing.assert_close(of_the_example(policy, groups), expected, rtol=0, atol=1e-5 * expected.norm().item())


@pytest.mark.parametrize("name", ["ALPHA", "MAX_TOKENS"])
def test_another_constant_is_another_gradient(
    policy: Policy, groups: list[list[Rollout]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = of_the_trainer(policy, groups)
    monkeypatch.setattr(example, name, getattr(example, name) * 2)
    assert (of_the_example(policy, groups) - expected).norm() > 1e-2 * expected.norm()


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.slow
def test_it_learns() -> None:
    program = "import trapo_in_one_file; trapo_in_one_file.main(num_steps=25)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=EXAMPLE.parent, capture_output=True, text=True, timeout=900, check=True
    )
    before, after = (float(share) for share in re.findall(r"solved \w+: ([\d.]+) of 200", done.stdout))
    assert before < 0.3 and after > 0.6, done.stdout
