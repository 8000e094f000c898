"""Turn rollouts into one number to minimise: advantages, then a sum of loss components (METHOD 4).

An `Algorithm` is data. TRAPO, GRPO, SFT and LUFFY differ in its fields only; no code asks which one it is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trapo_lite.core import losses
from trapo_lite.core.micro_groups import MicroGroup, micro_group_of_slots
from trapo_lite.core.teacher import Teacher
from trapo_lite.core.tree import PackedBatch
from trapo_lite.core.types import Group, Mean, Rollout

PrefixLoss = Callable[[Tensor], Tensor]
"""Maps logprobs to a loss per token of the same shape."""
CompletionLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps logprobs, old_logprobs and advantages to a loss per token of the same shape."""
Baseline = Callable[[Sequence[Rollout]], list[list[bool]]]
"""Maps the G rollouts of a problem to flags (G, G): row i says which of them make up rollout i's baseline."""
Advantage = Callable[[Tensor, Tensor], Tensor]
"""Maps rewards (P, G) and in_baseline (P, G) to advantages (P, G)."""


@dataclass(frozen=True)
class Algorithm:
    """An Algorithm is a schedule of micro-groups, the losses of prefix and completion tokens, and their weights.

    prefix_loss:       None: expert tokens are not trained.
    completion_loss:   None: own tokens are not trained by the reward.
    teacher:           trains own tokens towards the base that reads an expert solution; None: there is none.
    times_advantage:   multiply the prefix loss by the rollout's advantage (LUFFY).
    top_entropy:       share of a prefix's tokens that are trained, those of highest entropy (Prefix-RFT); None: all.
    normalizer_tokens: divide each component by this many tokens per problem; None: by its global token count.
    tis_cap:           cap of the importance weight trainer / sampler; None: no weight.
    sequence_bound:    bound of a rollout's mean ratio trainer / sampler; None: every rollout is trained.
    """

    micro_groups: tuple[MicroGroup, ...]
    prefix_loss: PrefixLoss | None
    prefix_weight: float
    times_advantage: bool
    top_entropy: float | None
    completion_loss: CompletionLoss | None
    completion_weight: float
    advantage: Advantage
    baseline: Baseline
    entropy_weight: float
    kl_weight: float
    normalizer_tokens: int | None
    tis_cap: float | None
    sequence_bound: float | None
    teacher: Teacher | None = None

    @property
    def needs_every_token(self) -> bool:
        """Return whether tokens without advantage are trained too, as an entropy or KL term does."""
        return self.entropy_weight > 0 or self.kl_weight > 0


@dataclass(frozen=True)
class Normalizers:
    """Normalizers hold the GLOBAL token counts of a step that the sums of the loss are divided by.

    They are counted over all ranks and batches.
    """

    prefix: float
    completion: float
    response: float

    def __add__(self, other: "Normalizers") -> "Normalizers":
        return Normalizers(
            self.prefix + other.prefix, self.completion + other.completion, self.response + other.response
        )


@dataclass(frozen=True)
class TokenLogprobs:
    """TokenLogprobs are the results of the forward pass at the trained tokens of a batch, all of shape (K,).

    divergence: KL(policy || teacher) over the vocabulary, or its estimate by the token, log pi - log p_T
    """

    logprobs: Tensor
    entropy: Tensor
    reference: Tensor | None = None
    divergence: Tensor | None = None


def make_group(algorithm: Algorithm, rollouts: Sequence[Rollout]) -> Group:
    """Return one problem's rollouts with their advantages and the weights of their prefix losses.

    A rollout without a reward has no advantage and is in nobody's baseline. A masked one has no advantage only; so have
    all of a problem in which a micro-group with `replaces_rl` helped.
    """
    has_reward = torch.tensor([rollout.reward is not None for rollout in rollouts])
    in_baseline = torch.tensor(algorithm.baseline(rollouts)) & has_reward
    rewards = torch.tensor([rollout.reward or 0.0 for rollout in rollouts]).expand(in_baseline.shape)
    own_views = algorithm.advantage(rewards, in_baseline).diagonal()  # row i is rollout i's view of its group
    has_rl = not _is_replaced(algorithm, rollouts)
    is_trained = torch.tensor([has_rl and not rollout.is_masked for rollout in rollouts])
    advantages = torch.where(has_reward & is_trained, own_views, 0.0).tolist()
    factors = advantages if algorithm.times_advantage else [1.0] * len(rollouts)
    weights = [factor * rollout.prefix_weight for factor, rollout in zip(factors, rollouts, strict=True)]
    return Group(tuple(rollouts), tuple(advantages), tuple(weights))


def _is_replaced(algorithm: Algorithm, rollouts: Sequence[Rollout]) -> bool:
    """Return whether a micro-group that takes the place of RL helped this problem."""
    slots = micro_group_of_slots(algorithm.micro_groups)
    replacing = {slot for slot, index in enumerate(slots) if algorithm.micro_groups[index].replaces_rl}
    return any(rollout.is_guided and rollout.slot in replacing for rollout in rollouts)


def needs_forward(algorithm: Algorithm, group: Group) -> bool:
    """Return whether the group can move the weights.

    A group that cannot is left out of the forward pass but counts in the normalisers.
    """
    return algorithm.needs_every_token or is_informative(algorithm, group)


def is_informative(algorithm: Algorithm, group: Group) -> bool:
    """Return whether a rollout has an advantage, a teacher or an expert prefix to train.

    KL and entropy terms do not count.
    """
    if algorithm.teacher is not None and any(r.completion_ids and not r.is_masked for r in group.rollouts):
        return True
    trains_own = algorithm.completion_loss is not None and algorithm.completion_weight != 0.0
    trains_prefix = (algorithm.prefix_loss is not None and algorithm.prefix_weight != 0.0) and any(
        rollout.train_prefix and weight != 0.0
        for rollout, weight in zip(group.rollouts, group.prefix_weights, strict=True)
    )
    return trains_prefix or any(
        trains_own and advantage != 0.0 and rollout.completion_ids
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
    )


def count_normalizers(algorithm: Algorithm, groups: Sequence[Group]) -> Normalizers:
    """Return this rank's share of the normalisers; `policy_loss` takes their sum over all ranks."""
    if algorithm.normalizer_tokens is not None:
        constant = float(algorithm.normalizer_tokens * len(groups))
        return Normalizers(constant, constant, constant)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return Normalizers(
        prefix=float(sum(_num_chosen(algorithm, rollout) for rollout in rollouts if rollout.train_prefix)),
        completion=float(sum(len(rollout.completion_ids) for rollout in rollouts)),
        response=float(sum(len(rollout.response_ids) for rollout in rollouts)),
    )


def _num_chosen(algorithm: Algorithm, rollout: Rollout) -> int:
    """Return how many tokens of its prefix the prefix loss trains."""
    length = len(rollout.prefix_ids)
    return length if algorithm.top_entropy is None else math.ceil(algorithm.top_entropy * length)


def policy_loss(
    algorithm: Algorithm, forward: TokenLogprobs, batch: PackedBatch, normalizers: Normalizers
) -> tuple[Tensor, dict[str, Mean]]:
    """Return one batch's share of the step's loss, and its metrics.

    The loss is a sum of components, each over its own tokens and divided by its own global normaliser:

        loss = prefix_weight * sum(w * prefix_loss)              / tokens trained by the prefix loss
             + completion_weight
               * sum(importance weight * completion_loss)        / completion tokens, masked ones included
             + teacher_weight
               * sum(importance weight * teacher_loss)           / completion tokens, masked ones included
             - entropy_weight * sum(multiplicity * entropy)      / response tokens
             + kl_weight * sum(k3)                               / completion tokens

    The sum over batches and ranks does not depend on how the step was cut.   Source: METHOD 4.3, 4.4.
    """
    rows = batch.trained
    own = batch.is_completion[rows]
    logprobs, sampler = forward.logprobs, batch.sampler_logprobs[rows]
    old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs[rows]
    weight = torch.ones_like(old)
    if algorithm.tis_cap is not None:
        weight = losses.truncated_importance_weight(old, sampler, cap=algorithm.tis_cap)
    used = own
    if algorithm.sequence_bound is not None:
        sequence = torch.where(own, batch.completion[rows], torch.zeros_like(rows))
        used = own & losses.sequence_mask(old, sampler, sequence, bound=algorithm.sequence_bound)
    mismatch = (old - sampler).detach()  # `old` is from before any update: a change by updates is no mismatch
    entropy = forward.entropy.detach()
    prefix_rows = batch.prefix_count[rows]
    loss = logprobs.new_zeros(())
    metrics = {
        "policy/entropy": _mean(entropy, own.float()),
        "mismatch/abs": _mean(mismatch.abs(), own.float()),
        "mismatch/masked": _mean((own & ~used).float(), own.float()),
        "mismatch/k3": _mean(losses.k3(sampler, old.detach()), own.float()),
        "prefix/probability": _mean(logprobs.detach().exp(), prefix_rows),
    }
    if algorithm.completion_loss is not None:
        completion = algorithm.completion_loss(logprobs, old, batch.advantage[rows]) * weight
        loss = algorithm.completion_weight * _masked_sum(completion, used) / max(normalizers.completion, 1.0)
        metrics["loss/completion"] = _mean(completion.detach(), own.float())
    if algorithm.teacher is not None:
        if forward.divergence is None:
            raise ValueError("policy_loss: the algorithm has a teacher, and the forward pass gave no divergence")
        taught = used & ~batch.is_masked[rows]
        distilled = algorithm.teacher.loss(logprobs, old, forward.divergence) * weight
        loss = loss + algorithm.teacher.weight * _masked_sum(distilled, taught) / max(normalizers.completion, 1.0)
        divergence = forward.divergence.detach()
        metrics["teacher/divergence"] = _mean(divergence, own.float())
        metrics["teacher/clipped"] = _mean(algorithm.teacher.clips(divergence).float(), own.float())
    if algorithm.prefix_loss is not None:
        weights = batch.prefix_weight_sum[rows]
        if algorithm.top_entropy is not None:
            chosen = losses.highest(entropy, batch.tree[rows], prefix_rows > 0, share=algorithm.top_entropy)
            weights, prefix_rows = weights * chosen, prefix_rows * chosen
        prefix_sum = (algorithm.prefix_loss(logprobs) * weights).sum()
        loss = loss + algorithm.prefix_weight * prefix_sum / max(normalizers.prefix, 1.0)
        metrics["loss/prefix"] = Mean(prefix_sum.item(), prefix_rows.sum().item())
    if algorithm.entropy_weight > 0:
        entropy_sum = (forward.entropy * batch.multiplicity[rows]).sum()
        loss = loss - algorithm.entropy_weight * entropy_sum / max(normalizers.response, 1.0)
    if forward.reference is not None:
        kl = losses.k3(logprobs, forward.reference)
        loss = loss + algorithm.kl_weight * _masked_sum(kl, own) / max(normalizers.completion, 1.0)
        metrics["loss/kl"] = _mean(kl.detach(), own.float())
    return loss, metrics


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def _mean(values: Tensor, weights: Tensor) -> Mean:
    kept = torch.where(weights > 0, values, torch.zeros_like(values))
    return Mean((kept * weights).sum().item(), weights.sum().item())
