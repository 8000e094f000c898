"""Does the packed tree compute what plain rows compute, with this model on this machine? Asked once a run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trapo_lite.algorithm import Algorithm, TokenLogprobs, count_normalizers, needs_forward, policy_loss
from trapo_lite.policy import Policy
from trapo_lite.tree import Group, num_tokens

PROMPT, PREFIX, COMPLETION = 64, 128, 32
"""The most tokens of each part that the small tree keeps."""
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""Of the gradient's error, by what the base computes in. Rounding gives about 1e-6 and 0.02; a mask that shows a
sibling more than 1 (tests/test_packing_check.py)."""


class PackingError(RuntimeError):
    """The packed forward and backward pass does not give what plain rows give."""


@dataclass(frozen=True)
class PackingReport:
    """gradient_error: of the adapter's gradient, |packed - sum of rows| / root of the sum of |row|^2, which does not
    vanish where rows that begin alike cancel;  bound: what rounding may make of it."""

    gradient_error: float
    bound: float
    num_rows: int
    num_tokens: int

    def line(self) -> str:
        return (
            f"packing check: {self.num_rows} rollouts as one tree of {self.num_tokens} tokens and as rows: the "
            f"gradients differ by {self.gradient_error:.1e} of their norm (at most {self.bound:g})"
        )


def check_packing(
    policy: Policy, algorithm: Algorithm, groups: Sequence[Group], *, temperature: float
) -> PackingReport | None:
    """The gradient of the smallest group that has one, cut short, by the packed path and row by row.

    The rows share nothing with the packed path but the losses: transformers' own attention and all logits at once.
    Leaves no gradient behind. None where no group has a gradient. Raises PackingError where they differ by more than
    rounding does.
    """
    candidates = smallest_moving(algorithm, groups)
    if not candidates:
        return None
    [group] = candidates
    rows = [
        Group((rollout,), (advantage,), (weight,))
        for rollout, advantage, weight in zip(group.rollouts, group.advantages, group.prefix_weights, strict=True)
    ]
    normalizers = count_normalizers(algorithm, [group])

    def gradient(part: Group, forward: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        policy.clear_gradient()
        batch = policy.prepare([part])
        if len(batch.trained):
            logprobs, entropy = forward(batch, temperature=temperature)
            reference = policy.reference_logprobs(batch, temperature=temperature) if algorithm.kl_weight > 0 else None
            policy_loss(algorithm, TokenLogprobs(logprobs, entropy, reference), batch, normalizers)[0].backward()
        return policy.flat_gradient()

    summed, squares = torch.zeros(()), 0.0  # of the rows, one at a time: a gradient is as large as the adapter
    for row in rows:
        by_row = gradient(row, policy.row_logprobs)
        squares += by_row.norm().item() ** 2
        summed = by_row.add_(summed.to(by_row.device))
    difference = gradient(group, policy.token_logprobs).sub_(summed)
    policy.clear_gradient()
    report = PackingReport(
        gradient_error=difference.norm().item() / max(math.sqrt(squares), 1e-30),
        bound=BOUNDS[policy.autocast_dtype or torch.float32],
        num_rows=len(rows),
        num_tokens=num_tokens(group),
    )
    if not report.gradient_error <= report.bound:
        raise PackingError(
            f"{report.line()}; this model or this build of torch does not compute packed trees right: try "
            "model.attention: sdpa, or train.check_packing: false to go on regardless"
        )
    return report


def smallest_moving(algorithm: Algorithm, groups: Sequence[Group]) -> list[Group]:
    """The smallest, cut short, of the groups that have a gradient; none where there is no such group."""
    moving = [shortened(group) for group in groups if needs_forward(algorithm, group)]
    return [min(moving, key=num_tokens)] if moving else []


def shortened(group: Group) -> Group:
    """The same tree, smaller: every prefix cut by the same factor, so that they still share what they share."""
    longest = max(1, *(len(rollout.prefix_ids) for rollout in group.rollouts))
    factor = min(1.0, PREFIX / longest)
    rollouts = tuple(
        replace(
            rollout,
            prompt_ids=rollout.prompt_ids[-PROMPT:],
            prefix_ids=rollout.prefix_ids[: int(len(rollout.prefix_ids) * factor)],
            completion_ids=rollout.completion_ids[:COMPLETION],
            completion_logprobs=rollout.completion_logprobs[:COMPLETION],
        )
        for rollout in group.rollouts
    )
    return replace(group, rollouts=rollouts)
