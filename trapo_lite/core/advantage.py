"""Compute group-relative advantages, and choose the rollouts that make up their baseline (METHOD 4.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trapo_lite.core.types import Rollout


def group_advantages(rewards: Tensor, in_baseline: Tensor | None = None, *, divide_by_std: bool) -> Tensor:
    """Return each rollout's reward minus the mean reward of its problem's group.

        A_i = R_i - mean(R)                      TRAPO, Dr. GRPO
        A_i = (R_i - mean(R)) / (std(R) + 1e-6)  GRPO; std unbiased, 1 if all rewards of the group are equal

    Args:    rewards: (P, G).   in_baseline: (P, G) bool, which rollouts make up mean and std; None = all. A group
             without a rollout in the baseline has mean 0.
    Returns: (P, G) float32.    Source: METHOD 4.2; Dr. GRPO, arXiv:2503.20783.
    """
    if rewards.dim() != 2:
        raise ValueError(f"group_advantages: rewards have shape {tuple(rewards.shape)}; give (problems, rollouts)")
    rewards = rewards.float()
    counted = torch.ones_like(rewards) if in_baseline is None else in_baseline.float()
    count = counted.sum(dim=1, keepdim=True)
    mean = (rewards * counted).sum(dim=1, keepdim=True) / count.clamp(min=1)
    lowest = torch.where(counted > 0, rewards, torch.inf).amin(dim=1, keepdim=True)
    highest = torch.where(counted > 0, rewards, -torch.inf).amax(dim=1, keepdim=True)
    mean = torch.where(lowest == highest, lowest, mean)  # eight times 1.2 has a mean beside 1.2, by rounding
    centred = rewards - mean
    if not divide_by_std:
        return centred
    variance = (centred.square() * counted).sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
    std = variance.sqrt()
    return centred / torch.where(std > 0, std + 1e-6, torch.ones_like(std))


def whole_group(rollouts: Sequence[Rollout], *, count_expert: bool) -> list[list[bool]]:
    """Return the baseline of all rollouts of the problem, (G, G).

    count_expert: whether rollouts that are a whole trace count.   Source: METHOD 4.2; the official code counts them.
    """
    return [[count_expert or rollout.finish_reason != "expert" for rollout in rollouts] for _ in rollouts]


def same_prefix(rollouts: Sequence[Rollout]) -> list[list[bool]]:
    """Return the baseline of the rollouts that continue the same prefix, (G, G); unguided ones share the empty one.

    A prefix changes the probability of success, so a rollout is compared with those that had the same prefix.
    Source: PrefixRL, arXiv:2601.18795.
    """
    starts = [rollout.prompt_ids + rollout.prefix_ids for rollout in rollouts]
    return [[other == start for other in starts] for start in starts]
