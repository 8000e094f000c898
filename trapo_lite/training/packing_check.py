"""Check once a run that the packed tree gives the same gradient as plain rows, with this model on this machine."""

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trapo_lite.core.algorithm import Algorithm, TokenLogprobs, count_normalizers, needs_forward, policy_loss
from trapo_lite.core.batching import num_tokens
from trapo_lite.core.errors import ModelError, PackingError, UpdateError
from trapo_lite.core.losses import clipped_policy_gradient
from trapo_lite.core.tree import PackedBatch
from trapo_lite.core.types import Group
from trapo_lite.model.policy import Policy
from trapo_lite.run.device import MemoryAttempt

PROMPT, PREFIX, COMPLETION = 64, 128, 32
"""Most tokens of each part that the small tree keeps; only the lengthened rollout has more."""
SMALL = PROMPT + PREFIX + COMPLETION
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Largest accepted error of the gradient, by the type that the base computes in. Rounding gives about 1e-6 in float32.
In bfloat16 it gives 0.02 with two layers, and 0.08 to 0.11 with the thirty layers of SmolLM2-135M. A mask that shows a
sibling gives about 1 (docs/RESULTS.md)."""


@dataclass(frozen=True)
class PackingReport:
    """A PackingReport holds how much the packed gradient differs from the sum of the rows' gradients.

    gradient_error: |packed - sum of rows| / sqrt(sum of |row|^2). Gradients of rows with the same beginning can cancel
                    in the sum, but not in this divisor.
    bound:          largest error that rounding may cause
    num_tokens:     tokens of the tree
    longest:        tokens of its longest row
    """

    gradient_error: float
    bound: float
    num_rows: int
    num_tokens: int
    longest: int

    def line(self) -> str:
        return (
            f"packing check: {self.num_rows} rollouts, the longest with {self.longest} tokens, as one tree of "
            f"{self.num_tokens} tokens and as rows: the gradients differ by {self.gradient_error:.1e} of their norm "
            f"(at most {self.bound:g})"
        )


def check_packing(
    policy: Policy, algorithm: Algorithm, groups: Sequence[Group], *, temperature: float, longest: int
) -> PackingReport | None:
    """Compare a small tree's gradient, packed and row by row; raise PackingError if they differ by more than rounding.

    The tree is the smallest group that has a gradient, with shortened rollouts. One rollout is lengthened to the run's
    longest sequence, because a sliding window, or RoPE that depends on the length, only acts there. Only the losses are
    shared: transformers computes the rows with the model's own attention and masks. All gradients are cleared after.
    Returns None if no group has a gradient.

    longest: tokens of the longest sequence; fewer are used if memory runs out, and for a model without SDPA
    """
    candidates = smallest_moving(algorithm, groups)
    if not candidates:
        return None
    # Without the corrections for the sampler: the long rollout was never sampled, so they would remove its gradient.
    algorithm = replace(algorithm, tis_cap=None, sequence_bound=None)
    [small] = candidates
    if algorithm.teacher is not None:
        algorithm, small = _without_teacher(algorithm, small)
    long = lengthened(small, policy.longest_row(longest))
    report = None
    with MemoryAttempt() as attempt:
        report = _compare(policy, algorithm, long, temperature=temperature)
    if attempt.ran_out and policy.is_sharded:
        raise UpdateError(
            f"packing check: out of memory with a row of {longest} tokens and a sharded base; turn on "
            "model.gradient_checkpointing, or set train.check_packing: false to skip the check"
        )
    if report is None:
        report = _compare(policy, algorithm, small, temperature=temperature)
    policy.adapter.clear_gradient()
    if not report.gradient_error <= report.bound:
        raise PackingError(
            f"{report.line()}; this model or this build of torch does not compute packed trees correctly: try "
            "model.attention: sdpa, set model.layout: rows, or set train.check_packing: false to skip the check"
        )
    return report


def _without_teacher(algorithm: Algorithm, group: Group) -> tuple[Algorithm, Group]:
    """Return what trains each own token alike in the place of a teacher.

    The gradient of the tree is compared, which needs no teacher: its own tree goes through the same attention.
    """
    plain = functools.partial(clipped_policy_gradient, clip_low=None, clip_high=None)
    algorithm = replace(algorithm, teacher=None, completion_loss=plain, completion_weight=1.0)
    return algorithm, replace(group, advantages=(1.0,) * len(group.rollouts))


HEAD_BOUNDS = {torch.float32: 0.01, torch.bfloat16: 0.3}
"""Largest accepted difference of a token's log-prob, in nats, by the type that the base computes in."""


def check_rows(policy: Policy, algorithm: Algorithm, groups: Sequence[Group], *, temperature: float) -> str | None:
    """Check a policy that runs rows, on one shortened rollout, and return a line; None if no group has a gradient.

    The head is compared with the model's own logits; where it does more than a factor and a softcap, the policy takes
    those from here on. Raises ModelError if the log-prob of a token depends on a later one.
    """
    candidates = smallest_moving(algorithm, groups)
    if not candidates:
        return None
    [small] = candidates
    row = small.subset([max(range(len(small.rollouts)), key=lambda member: len(small.rollouts[member].response_ids))])
    batch = policy.prepare([row])
    changed = replace(batch, input_ids=batch.input_ids.clone())
    changed.input_ids[-1] = (changed.input_ids[-1] + 1) % policy.shape.vocab_size
    bound = HEAD_BOUNDS[policy.autocast_dtype or torch.float32]
    name = type(policy.model.get_base_model()).__name__
    try:
        with torch.no_grad():
            chunked = policy.token_logprobs(batch, temperature=temperature)[0]
            own = policy.row_logprobs(batch, temperature=temperature)[0]
            without = policy.row_logprobs(changed, temperature=temperature)[0]
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"model.name: {name} fails in its forward pass ({reason}); take another model, or model.quantize: none"
        ) from None
    earlier = (without - own)[:-1].abs()
    if len(earlier) and earlier.max() > bound:
        raise ModelError(
            f"model.name: {name} lets a token see later ones, so it cannot be "
            "trained to continue a text; take a causal language model"
        )
    if (chunked - own).abs().max() > bound:
        policy.take_own_logits()
        return "row check: the model's head is more than a factor and a softcap: logits of whole rollouts are kept"
    return "row check: the log-probs are those of the model's own logits"


def _compare(policy: Policy, algorithm: Algorithm, group: Group, *, temperature: float) -> PackingReport:
    rows = [group.subset([member]) for member in range(len(group.rollouts))]
    longest = max(map(num_tokens, rows))
    normalizers = count_normalizers(algorithm, [group])

    def gradient(part: Group, forward: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        policy.adapter.clear_gradient()
        batch = _thinned(policy.prepare([part]), longest)
        if len(batch.trained):
            logprobs, entropy = forward(batch, temperature=temperature)
            reference = None
            if algorithm.kl_weight > 0:
                with torch.no_grad(), policy.reference():
                    reference = forward(batch, temperature=temperature)[0]
            policy_loss(algorithm, TokenLogprobs(logprobs, entropy, reference), batch, normalizers)[0].backward()
        return policy.adapter.flat_gradient()

    summed, squares = torch.zeros(()), 0.0  # added row by row, because every gradient is as large as the adapter
    with policy.own_attention(longest=longest):
        for row in rows:
            by_row = gradient(row, policy.row_logprobs)
            squares += by_row.norm().item() ** 2
            summed = by_row.add_(summed.to(by_row.device))
    difference = gradient(group, policy.token_logprobs).sub_(summed)
    return PackingReport(
        gradient_error=difference.norm().item() / max(math.sqrt(squares), 1e-30),
        bound=BOUNDS[policy.autocast_dtype or torch.float32],
        num_rows=len(rows),
        num_tokens=num_tokens(group),
        longest=longest,
    )


def _thinned(batch: PackedBatch, longest: int) -> PackedBatch:
    """Leave the middle of the long rollout untrained, because rows hold the logits of all trained tokens at once."""
    is_middle = (batch.position >= SMALL) & (batch.position < longest - COMPLETION)
    return replace(batch, multiplicity=batch.multiplicity.masked_fill(is_middle, 0.0))


def smallest_moving(algorithm: Algorithm, groups: Sequence[Group]) -> list[Group]:
    """Return the smallest group that has a gradient, shortened, in a list; return an empty list if there is none."""
    moving = [shortened(group) for group in groups if needs_forward(algorithm, group)]
    return [min(moving, key=num_tokens)] if moving else []


def shortened(group: Group) -> Group:
    """Return a smaller tree; every prefix is cut by the same factor, so that shared prefixes stay shared."""
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


def lengthened(group: Group, longest: int) -> Group:
    """Lengthen the rollout with the largest weight in the loss to `longest` tokens, and put it first.

    The added tokens are drawn at random from the group: with equal tokens, an error in attention would not show.
    """
    members = range(len(group.rollouts))
    completion_weights = [abs(group.advantages[m]) if group.rollouts[m].completion_ids else -1.0 for m in members]
    prefix_weights = [abs(group.prefix_weights[m]) if group.rollouts[m].train_prefix else -1.0 for m in members]
    by_completion = max(completion_weights) > 0.0 or max(prefix_weights) <= 0.0
    weights = completion_weights if by_completion else prefix_weights
    first = max(members, key=weights.__getitem__)
    chosen = group.rollouts[first]
    missing = longest - len(chosen.prompt_ids) - len(chosen.response_ids)
    if missing <= 0:
        return group
    known = [token for rollout in group.rollouts for token in (*rollout.prompt_ids, *rollout.response_ids)]
    more = tuple(random.Random(0).choices(known, k=missing))
    if by_completion:
        logprobs = (*chosen.completion_logprobs, *[0.0] * missing)
        grown = replace(chosen, completion_ids=chosen.completion_ids + more, completion_logprobs=logprobs)
    else:
        prefix = chosen.prefix_ids + chosen.completion_ids + more
        grown = replace(chosen, prefix_ids=prefix, completion_ids=(), completion_logprobs=())
    ordered = group.subset([first, *(member for member in members if member != first)])
    return replace(ordered, rollouts=(grown, *ordered.rollouts[1:]))
