"""Compare the packed tree with every rollout as a row of its own, in a freshly loaded model with its own attention.

The families are those of tests/families.py, with adapters on what `lora.target_modules: all-linear` adapts.
"""

import random
from pathlib import Path

import pytest
import torch
from builders import random_rollouts
from families import FAMILIES, TREE, targets_of, write_model
from family_results import check_result
from peft import PeftModel
from transformers import AutoModelForCausalLM

from trapo_lite.config import AlgorithmSection, LoraSection, ModelSection
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.batching import cut
from trapo_lite.core.types import Group
from trapo_lite.model.policy import Policy
from trapo_lite.training.packing_check import check_rows


def start_policy(folder: Path) -> Policy:
    lora = LoraSection(r=4, alpha=8, target_modules=targets_of(folder))
    policy = Policy.load(ModelSection(name=str(folder), dtype="float32"), lora, device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def some_groups(num: int) -> list[Group]:
    """Draw groups with nested prefixes, as TRAPO does."""
    algorithm = AlgorithmSection().build()
    return [make_group(algorithm, random_rollouts(random.Random(seed))) for seed in range(num)]


def gradient(policy: Policy, group: Group) -> torch.Tensor:
    """Weigh each token by its rollout: by the advantage if it is the policy's own, by 1 in a trained prefix."""
    policy.adapter.clear_gradient()
    for part in [group] if policy.layout == "tree" else cut([group], budget=1):
        batch = policy.prepare([part])
        logprobs, entropy = policy.token_logprobs(batch, temperature=0.7)
        rows = batch.trained
        weights = torch.where(batch.is_completion, batch.advantage, batch.prefix_weight_sum)[rows]
        (weights * logprobs + 0.1 * batch.multiplicity[rows] * entropy).sum().backward()
    return policy.adapter.flat_gradient()


def row_gradient(model: PeftModel, group: Group) -> torch.Tensor:
    """Compute the same loss, rollout by rollout, with transformers' own forward pass."""
    named = sorted(model.named_parameters(), key=lambda item: item[0])
    parameters = [parameter for name, parameter in named if "lora_" in name]
    for parameter in parameters:
        parameter.grad = None
    for rollout, advantage, weight in zip(group.rollouts, group.advantages, group.prefix_weights, strict=True):
        ids = torch.tensor(rollout.prompt_ids + rollout.response_ids)
        logp = (model(input_ids=ids[None], use_cache=False).logits[0] / 0.7).log_softmax(dim=-1)
        at = torch.arange(len(rollout.prompt_ids), len(ids))
        chosen, entropy = logp[at - 1, ids[at]], -(logp.exp() * logp).sum(dim=-1)[at - 1]
        num_prefix = len(rollout.prefix_ids)
        loss = advantage * chosen[num_prefix:].sum() + 0.1 * entropy.sum()
        if rollout.train_prefix:
            loss = loss + weight * chosen[:num_prefix].sum()
        loss.backward()
    # Nothing reaches the adapters of dt_proj, past which Mamba reads, and of layers that Zamba2 has and does not use.
    grads = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_the_policy_computes_what_a_fresh_model_computes_row_by_row(name: str, tmp_path: Path) -> None:
    policy = start_policy(write_model(FAMILIES[name], tmp_path / "model"))
    assert policy.layout == ("tree" if name in TREE else "rows")
    policy.adapter.save(tmp_path / "adapter")
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager", dtype=torch.float32)
    model = PeftModel.from_pretrained(fresh, tmp_path / "adapter", is_trainable=True)
    groups = some_groups(20)
    if policy.layout == "rows":
        check_rows(policy, AlgorithmSection().build(), groups, temperature=0.7)
    differences = []
    for group in groups:
        expected = row_gradient(model, group)
        differences.append(float((gradient(policy, group) - expected).norm() / expected.norm()))
    assert max(differences) < 1e-5
    check_result(name, "gradient", policy.layout, difference=float(f"{max(differences):.1e}"))
