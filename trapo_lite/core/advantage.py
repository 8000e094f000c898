"""Group-relative advantages (METHOD 4.2)."""

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, in_baseline: Tensor | None = None, *, divide_by_std: bool) -> Tensor:
    """Each rollout's reward minus the mean reward of its problem's group.

        A_i = R_i - mean(R)                      TRAPO, Dr. GRPO
        A_i = (R_i - mean(R)) / (std(R) + 1e-6)  GRPO; std unbiased, 1 where the group has no spread

    Args:    rewards: (P, G).   in_baseline: (P, G) bool, which rollouts make up mean and std; None = all. A group with
             no rollout in the baseline has mean 0.
    Returns: (P, G) float32.    Source: METHOD 4.2; Dr. GRPO, arXiv:2503.20783.
    """
    if rewards.dim() != 2:
        raise ValueError(f"group_advantages: rewards have shape {tuple(rewards.shape)}; give (problems, rollouts)")
    rewards = rewards.float()
    counted = torch.ones_like(rewards) if in_baseline is None else in_baseline.float()
    count = counted.sum(dim=1, keepdim=True)
    centred = rewards - (rewards * counted).sum(dim=1, keepdim=True) / count.clamp(min=1)
    if not divide_by_std:
        return centred
    variance = (centred.square() * counted).sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
    std = variance.sqrt()
    return centred / torch.where(std > 0, std + 1e-6, torch.ones_like(std))
