"""The teacher's part of the loss: gradients derived here, wrong variants that must fail, and sums however it is cut."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from builders import rollout
from torch import Tensor

from trapo_lite.config import AlgorithmSection
from trapo_lite.core.algorithm import (
    TokenLogprobs,
    count_normalizers,
    is_informative,
    make_group,
    needs_forward,
    policy_loss,
)
from trapo_lite.core.batching import cut, num_tokens, pass_tokens
from trapo_lite.core.losses import sampled_distillation, vocabulary_distillation
from trapo_lite.core.teacher import as_the_teacher_reads, require_same_trained
from trapo_lite.core.tree import pack

# Distributions over three words, in float64: the policy's by its logits, the teacher's as it is.
LOGITS = torch.tensor([[0.5, -0.3, 1.0], [2.0, 0.0, -1.0], [0.1, 0.2, 0.3], [0.0, 3.0, 0.5]], dtype=torch.float64)
TEACHER = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.3, 0.33, 0.37], [0.25, 0.5, 0.25]], dtype=torch.float64)
CLIP = 1.0


def kl(logits: Tensor, teacher: Tensor = TEACHER) -> Tensor:
    logp = torch.log_softmax(logits, dim=-1)
    return (logp.exp() * (logp - teacher.log())).sum(dim=-1)


def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
    logits = LOGITS.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss(logits).sum(), logits)
    return grad


# ----- KL over the vocabulary


def by_hand(*, clip: float) -> Tensor:
    """d KL / d z_j = p_j (log p_j - log p_T,j - KL); nothing where KL is above the bound."""
    p = torch.softmax(LOGITS, dim=-1)
    divergence = (p * (p / TEACHER).log()).sum(dim=-1, keepdim=True)
    assert divergence.max() > clip > divergence.min()
    return torch.where(divergence <= clip, p * ((p / TEACHER).log() - divergence), 0.0)


def bounded(logits: Tensor) -> Tensor:
    logp = torch.log_softmax(logits, dim=-1)[:, 0]
    return vocabulary_distillation(logp, logp.detach(), kl(logits), clip=CLIP)


def test_the_gradient_of_the_bounded_kl() -> None:
    torch.testing.assert_close(gradient(bounded), by_hand(clip=CLIP))


def forward_kl(logits: Tensor) -> Tensor:
    logp = torch.log_softmax(logits, dim=-1)
    return (TEACHER * (TEACHER.log() - logp)).sum(dim=-1).clamp(max=CLIP)


@pytest.mark.parametrize(
    "wrong",
    [forward_kl, lambda z: -bounded(z), kl, lambda z: kl(z).clamp(min=CLIP), lambda z: kl(z).clamp(max=CLIP / 8)],
    ids=["forward", "sign", "unclipped", "clipped-below", "other-clip"],
)
def test_the_test_of_the_bounded_kl_can_fail(wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError):
        torch.testing.assert_close(gradient(wrong), by_hand(clip=CLIP))


# ----- the sampled token

LOGPROBS = torch.tensor([-0.2, -1.5, -3.0, -0.1], dtype=torch.float64)
OF_TEACHER = torch.tensor([-0.9, -1.0, -0.5, -4.0], dtype=torch.float64)
LEADS = [-0.7, 0.5, 1.0, -1.0]  # log p_T - log pi, of which the last two are bounded


def sampled_gradient(loss: Callable[[Tensor, Tensor, Tensor], Tensor], *, old: Tensor = LOGPROBS) -> list[float]:
    logprobs = LOGPROBS.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss(logprobs, old, logprobs - OF_TEACHER).sum(), logprobs)
    return grad.tolist()


sampled = partial(sampled_distillation, clip=1.0)


def test_a_sampled_token_is_pulled_up_by_the_teachers_lead() -> None:
    """d loss / d log pi = -A ratio; in the second case every ratio is 1.1."""
    assert sampled_gradient(sampled) == pytest.approx([-lead for lead in LEADS])
    moved = sampled_gradient(sampled, old=LOGPROBS - math.log(1.1))
    assert moved == pytest.approx([-1.1 * lead for lead in LEADS])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda lp, old, gap: -sampled(lp, old, gap),
        partial(sampled_distillation, clip=None),
        lambda lp, old, gap: gap.clamp(-1, 1) * (lp - old).exp(),
        lambda lp, old, gap: gap.detach().clamp(max=1) * (lp - old).exp(),
        lambda lp, old, gap: gap.detach().clamp(-1, 1),
    ],
    ids=["sign", "unclipped", "not-detached", "clipped-above-alone", "no-surrogate"],
)
def test_the_test_of_sampled_tokens_can_fail(wrong: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    try:
        found = sampled_gradient(wrong)
    except RuntimeError:  # nothing to differentiate
        return
    assert found != pytest.approx([-lead for lead in LEADS])


def test_sampled_tokens_have_the_gradient_of_the_kl_in_the_mean() -> None:
    """The mean over the words, by the policy's own probabilities, is exact here."""

    def mean_over_words(logits: Tensor) -> Tensor:
        logp = torch.log_softmax(logits, dim=-1)
        losses = sampled_distillation(logp, logp.detach(), logp - TEACHER.log(), clip=None)
        return (logp.exp().detach() * losses).sum(dim=-1)

    torch.testing.assert_close(gradient(mean_over_words), gradient(kl))


# ----- the component of the loss


def taught(**row: object):
    return replace(rollout([1, 2], [], [10, 11], **row), teacher_prompt_ids=(1, 2, 7, 8, 9))


ALGORITHM = AlgorithmSection(
    schedule=[{"num_rollouts": 3}],
    prefix_loss="none",
    completion_loss="none",
    teacher={"type": "solution", "clip": 0.5, "weight": 2.0},
).build()
THREE = [
    taught(reward=1.0, logprobs=[-1.0, -1.0]),
    replace(taught(logprobs=[-1.0, -1.0]), completion_ids=(12, 13)),
    replace(taught(logprobs=[-1.0, -1.0]), completion_ids=(14, 15), is_masked=True),
]
DIVERGENCE = {10: 0.1, 11: 0.9, 12: 0.2, 13: 0.3, 14: 0.25, 15: 0.05}


def loss_of(algorithm=ALGORITHM) -> tuple[Tensor, dict, dict[int, float]]:
    group = make_group(algorithm, THREE)
    batch = pack([group])
    tokens = batch.input_ids[batch.trained].tolist()
    divergence = torch.tensor([DIVERGENCE[token] for token in tokens], requires_grad=True)
    logprobs = torch.full((len(tokens),), -1.0)
    results = TokenLogprobs(logprobs, torch.zeros(len(tokens)), None, divergence)
    loss, metrics = policy_loss(algorithm, results, batch, count_normalizers(algorithm, [group]))
    (grad,) = torch.autograd.grad(loss, divergence)
    return loss.detach(), metrics, dict(zip(tokens, grad.tolist(), strict=True))


def test_the_loss_by_hand() -> None:
    """Six own tokens; 11 is bounded, and the masked rollout's 14 and 15 are counted but not taught."""
    loss, metrics, grad = loss_of()
    assert loss.item() == pytest.approx(2.0 * (0.1 + 0.5 + 0.2 + 0.3) / 6)
    assert grad == pytest.approx({10: 2 / 6, 11: 0.0, 12: 2 / 6, 13: 2 / 6, 14: 0.0, 15: 0.0})
    assert metrics["teacher/divergence"].value == pytest.approx(sum(DIVERGENCE.values()) / 6)
    assert metrics["teacher/clipped"].value == pytest.approx(1 / 6)
    assert "loss/completion" not in metrics


def test_the_importance_weight_acts_on_it() -> None:
    """The trainer gives each token e^-1, as the sampler does, so the weight is 1; with a cap of 0.5 it is that."""
    assert loss_of(replace(ALGORITHM, tis_cap=0.5))[0].item() == pytest.approx(loss_of()[0].item() / 2)


def test_a_teacher_that_was_not_asked_is_an_error() -> None:
    batch = pack([make_group(ALGORITHM, THREE)])
    zeros = torch.zeros(6)
    with pytest.raises(ValueError, match="gave no divergence"):
        policy_loss(ALGORITHM, TokenLogprobs(zeros, zeros), batch, count_normalizers(ALGORITHM, []))


def test_every_group_with_own_tokens_moves_the_weights_and_no_other() -> None:
    same = make_group(ALGORITHM, [taught(), taught()])  # equal rewards
    assert needs_forward(ALGORITHM, same) and is_informative(ALGORITHM, same)
    empty = make_group(ALGORITHM, [rollout([1, 2], [20], [], train_prefix=False)])
    assert not needs_forward(ALGORITHM, empty)
    masked = make_group(ALGORITHM, [THREE[2]])
    assert not needs_forward(ALGORITHM, masked)
    alone = replace(ALGORITHM, teacher=None)
    assert not needs_forward(alone, make_group(alone, THREE))  # rewards differ, but nothing trains by them


# ----- its tree


def test_the_teachers_tree_has_the_same_trained_tokens_in_the_same_order() -> None:
    every = [*THREE, replace(rollout([1, 2], [20, 21], [16]), teacher_prompt_ids=(1, 2, 7, 8, 9))]
    group = make_group(ALGORITHM, every)
    batch, [reading] = pack([group]), as_the_teacher_reads([group])
    teacher = pack([reading])
    assert teacher.input_ids[:5].tolist() == [1, 2, 7, 8, 9]
    assert teacher.num_tokens == batch.num_tokens + 3 == pass_tokens(group) == num_tokens(group) + 3
    require_same_trained(batch, teacher)
    with pytest.raises(ValueError, match="9 trained tokens, which are not the policy's 9 in"):
        require_same_trained(batch, pack(as_the_teacher_reads([make_group(ALGORITHM, [*every[1:], taught()])])[:1]))


def test_a_problem_without_a_prompt_for_the_teacher_is_an_error() -> None:
    with pytest.raises(ValueError, match="problem p has no prompt for the teacher"):
        as_the_teacher_reads([make_group(ALGORITHM, [rollout([1], [], [2])])])


@pytest.mark.parametrize("budget", [11, 9, 7, 1])
def test_the_budget_holds_for_the_teachers_tree(budget: int) -> None:
    """Its tree has 11 tokens, the policy's 8; a single rollout, of 7 there, is not cut."""
    parts = cut([make_group(ALGORITHM, THREE)], budget=budget)
    sizes = [pack(as_the_teacher_reads([part])).num_tokens for part in parts]
    assert max(sizes) <= max(budget, 7)
    assert len(parts) == {11: 1, 9: 2, 7: 3, 1: 3}[budget]
