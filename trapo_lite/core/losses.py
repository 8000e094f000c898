"""Losses per token are pure functions of log-probabilities; `algorithm.policy_loss` weighs and reduces them.

To add one, write it here and name it in `config/choices.py` (docs/add_an_algorithm.md).
"""

import math

import torch
from torch import Tensor


def nll(logprobs: Tensor) -> Tensor:
    """Return -log p, the loss of plain supervised fine-tuning."""
    return -logprobs


def trust_region_nll(logprobs: Tensor, *, alpha: float) -> Tensor:
    """Return the negative log-likelihood inside the trust region p >= alpha, and its tangent in p outside of it.

        loss(p) = -log p                        if p >= alpha
                  1 - log alpha - p / alpha     otherwise          (C1 at p = alpha)

    d loss / d log p = -min(1, p / alpha): the gradient of a token below alpha is proportional to p.
    alpha -> 0 is plain SFT; alpha = 1 has DFT's gradient.   Source: TRAPO, arXiv:2512.17636, Eq. 3.

    Args:    logprobs: log pi(token), any shape.   alpha: edge of the region in probability, 0 < alpha <= 1.
    Returns: loss per token, same shape.
    """
    outside = 1.0 - math.log(alpha) - logprobs.exp() / alpha
    return torch.where(logprobs >= math.log(alpha), -logprobs, outside)


def dft(logprobs: Tensor) -> Tensor:
    """Return -sg[p] log p, the loss of dynamic fine-tuning; its gradient is that of -p (arXiv:2508.05629)."""
    return -logprobs.detach().exp() * logprobs


def chord_phi(logprobs: Tensor) -> Tensor:
    """Return -sg[p (1 - p)] log p: the weight is largest at p = 0.5, and 0 where the policy is sure (CHORD).

    Source: arXiv:2508.11408, the per-token weight of CHORD-phi.
    """
    p = logprobs.detach().exp()
    return -p * (1.0 - p) * logprobs


def luffy_shaped(logprobs: Tensor, *, gamma: float = 0.1) -> Tensor:
    """Return LUFFY's shaped off-policy loss; the caller multiplies it by the expert rollout's advantage.

        loss(p) = -p / (p + gamma)           d loss / d log p = -gamma p / (p + gamma)^2

    The gradient is largest at p = gamma, so tokens of low probability count more.   Source: LUFFY, arXiv:2504.14945.
    """
    p = logprobs.exp()
    return -p / (p + gamma)


def clipped_policy_gradient(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float | None,
    clip_high: float | None,
) -> Tensor:
    """Return the policy-gradient surrogate for the policy's own tokens; a bound of None does not clip.

        ratio = pi / pi_old        loss = -min(A ratio, A clip(ratio, 1 - clip_low, 1 + clip_high))

    With old_logprobs = sg[logprobs] the ratio is 1 in value and the gradient is -A grad log pi.

    Args:    logprobs, old_logprobs, advantages: same shape (or broadcastable); old_logprobs carry no gradient.
    Source:  PPO, arXiv:1707.06347; asymmetric bounds: DAPO, arXiv:2503.14476.
    """
    ratio = (logprobs - old_logprobs.detach()).exp()
    if clip_low is None and clip_high is None:
        return -advantages * ratio
    clipped = ratio.clamp(
        min=None if clip_low is None else 1.0 - clip_low, max=None if clip_high is None else 1.0 + clip_high
    )
    return -torch.minimum(advantages * ratio, advantages * clipped)


def cispo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, ratio_cap: float) -> Tensor:
    """Return CISPO's loss: a policy gradient whose ratio is capped and detached.

        ratio = pi / pi_old        loss = -sg[min(ratio, ratio_cap)] A log pi

    PPO's clip removes the gradient of a token that has moved too far. Here every token keeps a gradient, with a weight
    of at most ratio_cap.

    Args:    logprobs, old_logprobs, advantages: same shape (or broadcastable); old_logprobs carry no gradient.
    Source:  MiniMax-M1, arXiv:2506.13585; only the upper bound acts there, as here.
    """
    ratio = (logprobs - old_logprobs).detach().exp()
    return -ratio.clamp(max=ratio_cap) * advantages * logprobs


def sampled_distillation(logprobs: Tensor, old_logprobs: Tensor, divergence: Tensor, *, clip: float | None) -> Tensor:
    """Return a policy gradient whose advantage is how much likelier the teacher finds the sampled token.

        A = sg[log p_T - log pi], bounded to -clip .. clip        loss = -A pi / pi_old

    In the mean over tokens that the policy samples, the gradient without clip is that of KL(pi || p_T) at a fixed
    context.

    Args:    logprobs, old_logprobs: as for `clipped_policy_gradient`.   divergence: log pi - log p_T, same shape.
             clip: bound of |A|; None: none.
    Source:  on-policy self-distillation, arXiv:2601.18734, its loss of sampled tokens.
    """
    advantages = -divergence.detach()
    if clip is not None:
        advantages = advantages.clamp(-clip, clip)
    return clipped_policy_gradient(logprobs, old_logprobs, advantages, clip_low=None, clip_high=None)


def vocabulary_distillation(
    logprobs: Tensor, old_logprobs: Tensor, divergence: Tensor, *, clip: float | None
) -> Tensor:
    """Return min(KL(pi || p_T), clip) per token; a token whose divergence is above the bound has no gradient.

    Args:    divergence: KL over the whole vocabulary, with its gradient.   clip: the bound; None: none. The log-probs
             are not used: the expectation over tokens is exact.
    Source:  on-policy self-distillation, arXiv:2601.18734, which bounds each token so that those of style do not
             outweigh those of mathematics.
    """
    return divergence if clip is None else divergence.clamp(max=clip)


def truncated_importance_weight(logprobs: Tensor, sampler_logprobs: Tensor, *, cap: float) -> Tensor:
    """Return min(pi / pi_sampler, cap) per token, detached; it corrects for differences of engine and trainer."""
    return (logprobs - sampler_logprobs).detach().exp().clamp(max=cap)


def sequence_mask(logprobs: Tensor, sampler_logprobs: Tensor, sequence: Tensor, *, bound: float) -> Tensor:
    """Return, per token, whether trainer and sampler give its sequence about the same probability.

        keep  <=>  1 / bound <= exp(mean over the sequence of log pi - log pi_sampler) <= bound

    The geometric mean of the ratio does not grow with the length of the sequence.
    Source: sequence-level masked importance sampling, as in TRL and verl, against sampler / trainer mismatch.

    Args:    logprobs, sampler_logprobs: (K,).   sequence: (K,), the token's sequence, 0 to K.   bound: > 1.
    Returns: bool (K,), detached.
    """
    log_ratio = (logprobs - sampler_logprobs).detach()
    zeros = log_ratio.new_zeros(log_ratio.shape[0] + 1)
    total = zeros.index_add(0, sequence, log_ratio)
    count = zeros.index_add(0, sequence, torch.ones_like(log_ratio))
    mean = (total / count.clamp(min=1.0))[sequence]
    return mean.abs() <= math.log(bound)


def highest(values: Tensor, tree: Tensor, candidates: Tensor, *, share: float) -> Tensor:
    """Return, per token, whether it is among the `share` of its tree's candidates with the highest values.

    Of n candidates, ceil(share * n) are chosen; of equal ones the earlier.   Source: Prefix-RFT, arXiv:2507.01679.

    Args:    values: (K,).   tree: (K,), the number of the token's tree.   candidates: bool (K,).   share: 0 to 1.
    Returns: bool (K,).
    """
    chosen = torch.zeros_like(candidates)
    for number in tree[candidates].unique():
        mine = torch.nonzero((tree == number) & candidates).squeeze(-1)
        order = values[mine].argsort(descending=True, stable=True)
        chosen[mine[order[: math.ceil(share * len(mine))]]] = True
    return chosen


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return Schulman's low-variance estimate of KL(pi || reference) per sampled token: r - 1 - log r, r = ref / pi."""
    log_ratio = reference_logprobs - logprobs
    return log_ratio.exp() - 1.0 - log_ratio
