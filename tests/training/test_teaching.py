"""The teacher in an update: its tree against rows by transformers alone, and the same gradient however it is cut."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import random_rollouts, trained_policy
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from trapo_lite.config import AlgorithmSection, validate
from trapo_lite.core.algorithm import Algorithm, count_normalizers, make_group
from trapo_lite.core.batching import num_tokens, pass_tokens, split
from trapo_lite.core.tree import PackedBatch
from trapo_lite.core.types import Group, Rollout
from trapo_lite.model.policy import Policy
from trapo_lite.run.processes import Ranks
from trapo_lite.training.teaching import with_teacher
from trapo_lite.training.update import Updater, accumulate_gradient

pytestmark = pytest.mark.slow

TEMPERATURE = 0.7
CLIP = 2.0
OPSD: dict[str, Any] = {"schedule": [{"num_rollouts": 8}], "prefix_loss": "none", "completion_loss": "none"}
DIVERGENCES = ("sampled", "reverse_kl")


def algorithm(divergence: str, **section: Any) -> Algorithm:
    teacher = {"type": "solution", "divergence": divergence, "clip": CLIP}
    return AlgorithmSection(**OPSD | {"teacher": teacher} | section).build()


def some_groups(algo: Algorithm, *, num: int = 3) -> list[Group]:
    """Return groups with prefixes too: the teacher reads them, and they are not taught."""
    groups = []
    for index in range(num):
        rng = random.Random(index)
        longer = tuple(rng.randrange(64) for _ in range(20 + index))
        members = random_rollouts(rng, problem_id=str(index))
        groups.append(make_group(algo, [replace(r, teacher_prompt_ids=r.prompt_ids + longer) for r in members]))
    return groups


def prepared(policy: Policy, algo: Algorithm, part: list[Group]) -> PackedBatch:
    assert algo.teacher is not None
    return with_teacher(policy, algo.teacher, policy.prepare(part), part, temperature=TEMPERATURE)


def packed_gradient(policy: Policy, algo: Algorithm, groups: list[Group], *, budget: int) -> Tensor:
    batches = [prepared(policy, algo, part) for part in split(groups, budget=budget)]
    accumulate_gradient(policy, algo, batches, count_normalizers(algo, groups), temperature=TEMPERATURE)
    return policy.adapter.flat_gradient().clone()


def row_log_softmax(policy: Policy, prompt: tuple[int, ...], rollout: Rollout) -> Tensor:
    """The log-probs of the whole vocabulary at the own tokens of one rollout, by transformers alone."""
    ids = torch.tensor([*prompt, *rollout.response_ids])
    start = len(prompt) + len(rollout.prefix_ids)
    logits = policy.model(input_ids=ids[None]).logits[0, start - 1 : len(ids) - 1]
    return torch.log_softmax(logits / TEMPERATURE, dim=-1)


def row_gradient(policy: Policy, groups: list[Group], divergence: str) -> Tensor:
    """Each rollout behind each prompt as a row of its own, with full logits: nothing shared with the packed path."""
    base, before = policy.model.get_base_model(), policy.model.config._attn_implementation
    base.set_attn_implementation("sdpa")
    policy.adapter.clear_gradient()
    rollouts = [r for group in groups for r in group.rollouts if r.completion_ids]
    total = sum(len(r.completion_ids) for r in rollouts)
    loss = torch.zeros(())
    for r in rollouts:
        logp = row_log_softmax(policy, r.prompt_ids, r)
        with torch.no_grad(), policy.model.disable_adapter():
            log_teacher = row_log_softmax(policy, r.teacher_prompt_ids, r)
        if divergence == "reverse_kl":
            loss = loss + (logp.exp() * (logp - log_teacher)).sum(dim=-1).clamp(max=CLIP).sum()
        else:
            chosen = torch.arange(len(r.completion_ids)), torch.tensor(r.completion_ids)
            lead = (log_teacher[chosen] - logp[chosen].detach()).clamp(-CLIP, CLIP)
            loss = loss - (lead * logp[chosen]).sum()
    (loss / total).backward()
    base.set_attn_implementation(before)
    return policy.adapter.flat_gradient().clone()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_gradient_is_that_of_rows_however_the_step_is_cut(divergence: str) -> None:
    policy, algo = trained_policy(rank=4), algorithm(divergence)
    groups = some_groups(algo)
    expected = row_gradient(policy, groups, divergence)
    assert expected.norm() > 0
    largest = max(map(pass_tokens, groups))
    for budget in (10_000, largest, largest // 2, 1):
        assert relative_error(packed_gradient(policy, algo, groups, budget=budget), expected) < 1e-5, budget


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_comparison_can_fail(divergence: str) -> None:
    """A teacher that reads the policy's own prompt, and one that has the adapter, give another gradient."""
    policy, algo = trained_policy(rank=4), algorithm(divergence)
    groups = some_groups(algo)
    expected = row_gradient(policy, groups, divergence)
    own = [replace(g, rollouts=tuple(replace(r, teacher_prompt_ids=r.prompt_ids) for r in g.rollouts)) for g in groups]
    assert relative_error(packed_gradient(policy, algo, own, budget=10_000), expected) > 1e-2
    other = "sampled" if divergence == "reverse_kl" else "reverse_kl"
    assert relative_error(row_gradient(policy, groups, other), expected) > 1e-2


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rows_give_the_gradient_of_the_tree(divergence: str) -> None:
    algo = algorithm(divergence)
    groups = some_groups(algo)
    expected = packed_gradient(trained_policy(rank=4), algo, groups, budget=10_000)
    rows = trained_policy(rank=4, layout="rows")
    assert relative_error(packed_gradient(rows, algo, groups, budget=1), expected) < 1e-5
    rows.take_own_logits()
    assert relative_error(packed_gradient(rows, algo, groups, budget=1), expected) < 1e-5


def update(algo: Algorithm, groups: list[Group], *, budget: int, updates: int, **teacher: Any) -> tuple[dict, Tensor]:
    policy = trained_policy(rank=4)
    optim = {"lr": 1e-2, "grad_clip": None, "name": "sgd", "updates_per_batch": updates}
    section = OPSD | {"teacher": {"type": "solution"} | teacher}
    config = validate(
        {
            "algorithm": section,
            "optim": optim,
            "train": {"max_steps": 9, "tokens_per_batch": budget},
            "data": {"max_prompt_tokens": 20},
            "rollout": {"max_response_tokens": 60},
        }
    )
    lines: list[str] = []
    metrics = Updater(config, policy, lambda step: algo, Ranks(), announce=lines.append).update(0, groups)
    assert [line.split(":")[0] for line in lines] == ["packing check"]
    return metrics, torch.cat([parameter.detach().flatten() for parameter in policy.adapter.parameters])


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("updates", [1, 2])
def test_an_update_does_not_depend_on_the_budget_and_reports_the_divergence(divergence: str, updates: int) -> None:
    algo = algorithm(divergence)
    groups = some_groups(algo)
    (whole, weights), (cut, other) = (update(algo, groups, budget=b, updates=updates) for b in (10_000, 60))
    torch.testing.assert_close(other, weights, rtol=0, atol=1e-6)
    assert cut["train/batches"] > whole["train/batches"] == 1
    for name in ("teacher/divergence", "teacher/clipped"):
        assert cut[name].value == pytest.approx(whole[name].value, abs=1e-5)
        assert whole[name].count == sum(len(r.completion_ids) for g in groups for r in g.rollouts)
    assert 0 < whole["teacher/clipped"].value < 1


@pytest.mark.parametrize(("divergence", "passes"), [("sampled", 1), ("reverse_kl", 2)])
def test_the_teacher_is_asked_once_for_its_log_probs_and_without_gradient(
    divergence: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates of one batch; the teacher's tree is longer than the policy's by its longer prompt."""
    algo = algorithm(divergence)
    [group] = some_groups(algo, num=1)
    asked: list[tuple[bool, bool]] = []
    compute = Policy._hidden_rows

    def watched(self: Policy, batch: PackedBatch, rows: Tensor) -> Tensor:
        hidden = compute(self, batch, rows)
        if batch.num_tokens == pass_tokens(group) > num_tokens(group):
            [is_off] = {m.disable_adapters for m in self.model.modules() if isinstance(m, BaseTunerLayer)}
            asked.append((is_off, hidden.requires_grad))
        return hidden

    monkeypatch.setattr(Policy, "_hidden_rows", watched)
    update(algo, [group], budget=10_000, updates=2)
    assert asked == [(True, False)] * passes
