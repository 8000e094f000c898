"""The packed tree computes what padded rows compute: losses, gradients, and any way of cutting a step."""

import random

import pytest
import torch
from builders import random_rollouts, trained_policy
from dense_attention import dense_layout

from trapo_lite.config import AlgorithmSection
from trapo_lite.core.algorithm import TokenLogprobs, count_normalizers, make_group, policy_loss
from trapo_lite.core.batching import num_tokens, split
from trapo_lite.core.losses import clipped_policy_gradient, trust_region_nll
from trapo_lite.model import tree_attention
from trapo_lite.model.policy import Policy

TRAPO = AlgorithmSection(entropy_weight=0.01, tis_cap=2.0).build()


def gradient(policy: Policy) -> torch.Tensor:
    flat = torch.cat([p.grad.flatten() for p in policy.adapter.parameters])
    for parameter in policy.adapter.parameters:
        parameter.grad = None
    return flat


def packed_gradient(policy: Policy, groups, *, budget: int) -> torch.Tensor:
    normalizers = count_normalizers(TRAPO, groups)
    for part in split(groups, budget=budget):
        batch = policy.prepare(part)
        logprobs, entropy = policy.token_logprobs(batch, temperature=0.7)
        policy_loss(TRAPO, TokenLogprobs(logprobs, entropy), batch, normalizers)[0].backward()
    return gradient(policy)


def padded_gradient(policy: Policy, groups) -> torch.Tensor:
    """Every rollout a row of its own, full logits, transformers' own attention: nothing shared with the packed path."""
    normalizers = count_normalizers(TRAPO, groups)
    model = policy.model
    model.config._attn_implementation = "sdpa"
    rows = [(group, i) for group in groups for i in range(len(group.rollouts))]
    width = max(len(g.rollouts[i].prompt_ids + g.rollouts[i].response_ids) for g, i in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for row, (group, i) in enumerate(rows):
        tokens = group.rollouts[i].prompt_ids + group.rollouts[i].response_ids
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
    logits = model(input_ids=ids, attention_mask=mask).logits / 0.7
    model.config._attn_implementation = "packed_tree"
    logp = torch.log_softmax(logits, dim=-1)
    entropies = -(logp.exp() * logp).sum(-1)
    loss = torch.zeros(())
    for row, (group, i) in enumerate(rows):
        rollout = group.rollouts[i]
        start = len(rollout.prompt_ids)
        middle, end = start + len(rollout.prefix_ids), start + len(rollout.response_ids)
        at = torch.arange(start, end) - 1
        chosen = logp[row, at, ids[row, start:end]]
        entropy = entropies[row, at].sum() / normalizers.response
        prefix, own = chosen[: middle - start], chosen[middle - start :]
        weight = (own.detach() - torch.tensor(rollout.completion_logprobs)).exp().clamp(max=2.0)
        advantage = torch.full_like(own, group.advantages[i])
        own_loss = clipped_policy_gradient(own, own.detach(), advantage, clip_low=None, clip_high=None) * weight
        loss = loss + own_loss.sum() / normalizers.completion - 0.01 * entropy
        if rollout.train_prefix:
            loss = loss + trust_region_nll(prefix, alpha=0.1).sum() / normalizers.prefix
    loss.backward()
    return gradient(policy)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_packed_gradients_equal_padded_ones_however_the_step_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    policy = trained_policy(rank=4)
    groups = [make_group(TRAPO, random_rollouts(rng, problem_id=str(i))) for i in range(3)]
    expected = padded_gradient(policy, groups)
    largest = max(num_tokens(group) for group in groups)
    for budget in (10_000, largest, largest // 2, 1):
        assert relative_error(packed_gradient(policy, groups, budget=budget), expected) < 1e-5, budget


@pytest.mark.slow
def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """With attention that sees siblings too, the gradients must differ visibly."""
    policy = trained_policy(rank=4)
    groups = [make_group(TRAPO, random_rollouts(random.Random(0)))]
    expected = padded_gradient(policy, groups)

    def plainly_causal(batch):
        def attend(q, k, v, scores):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scores.scaling)

        return tree_attention.TreeLayout(attend)

    monkeypatch.setattr(tree_attention, "chain_layout", plainly_causal)
    assert relative_error(packed_gradient(policy, groups, budget=10_000), expected) > 1e-2


@pytest.mark.slow
def test_chain_by_chain_and_dense_attention_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = trained_policy(rank=4)
    groups = [make_group(TRAPO, random_rollouts(random.Random(7), problem_id=str(i))) for i in range(2)]
    by_chains = packed_gradient(policy, groups, budget=10_000)
    monkeypatch.setattr(tree_attention, "chain_layout", dense_layout)
    assert relative_error(packed_gradient(policy, groups, budget=10_000), by_chains) < 1e-5


@pytest.mark.slow
def test_flex_attention_with_grouped_heads_is_the_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward alone and not compiled: FlexAttention has no backward pass on the CPU, and compiling takes long."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    shapes = []

    def watched(query, key, value, **options):
        shapes.append((query.shape[1], key.shape[1], value.shape[1]))
        return flex_attention(query, key, value, **options)

    monkeypatch.setattr(tree_attention, "_compiled_flex_attention", lambda: watched)
    monkeypatch.setattr(tree_attention, "_compiled_create_block_mask", lambda: create_block_mask)
    policy = trained_policy(rank=4)
    groups = [make_group(TRAPO, random_rollouts(random.Random(3), problem_id=str(i))) for i in range(2)]
    batch = policy.prepare(groups)
    results = []
    for layout in (tree_attention.flex_layout, dense_layout):
        monkeypatch.setattr(tree_attention, "chain_layout", layout)
        with torch.no_grad():
            results.append(policy.token_logprobs(batch, temperature=0.7))
    torch.testing.assert_close(results[0], results[1])
    assert shapes == [(4, 2, 2)] * 2  # two layers; keys and values are not repeated


@pytest.mark.parametrize(("configured", "expected"), [(32, 4), (2, 2), (None, 4)])
def test_the_trainer_starts_few_compile_workers(configured: int | None, expected: int) -> None:
    import torch._inductor.config as inductor

    with inductor.patch(compile_threads=configured):
        tree_attention._limit_compile_workers()
        assert inductor.compile_threads == expected
