"""Forward, backward, gradient: what a step's rollouts do to the adapter."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trapo_lite import metrics as metric_table
from trapo_lite import rollout_metrics
from trapo_lite.algorithm import (
    Algorithm,
    Normalizers,
    TokenLogprobs,
    count_normalizers,
    needs_forward,
    policy_loss,
)
from trapo_lite.config import OptimSection
from trapo_lite.policy import Policy
from trapo_lite.ranks import Ranks
from trapo_lite.tree import Group, split
from trapo_lite.types import Mean, PackedBatch


class UpdateError(RuntimeError):
    """The update would destroy the adapter; the message says what to look at."""


def make_optimizer(section: OptimSection, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the adapter; its learning rate is set before every update (`learning_rate`)."""
    if section.name == "sgd":
        return torch.optim.SGD(parameters, lr=section.lr, weight_decay=section.weight_decay)
    return torch.optim.AdamW(parameters, lr=section.lr, betas=section.betas, weight_decay=section.weight_decay)


def learning_rate(section: OptimSection, *, step: int, max_steps: int) -> float:
    """The learning rate of update `step` (from 0): linear warm-up, then constant or falling to 0 at `max_steps`.

    >>> section = OptimSection(lr=1.0, warmup_steps=2, scheduler="linear")
    >>> [learning_rate(section, step=step, max_steps=6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < section.warmup_steps:
        return section.lr * (step + 1) / section.warmup_steps
    progress = (step - section.warmup_steps) / (max_steps - section.warmup_steps)
    factor = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return section.lr * factor[section.scheduler]


def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm,
    groups: Sequence[Group],
    ranks: Ranks,
    *,
    lr: float,
    grad_clip: float | None,
    num_updates: int,
    temperature: float,
    tokens_per_batch: int,
) -> dict[str, Mean | float | int]:
    """One step: the gradient of the loss over all ranks' `groups`, then the optimizer. Returns metrics of all ranks.

    What the weights become does not depend on how the groups lie on the ranks or are packed into batches, but for
    rounding. `num_updates` above 1 goes over the same batches again (losses in the metrics are of the last time).
    """
    normalizers = sum(ranks.gather([count_normalizers(algorithm, groups)]), start=Normalizers(0.0, 0.0, 0.0))
    moving = [group for group in groups if needs_forward(algorithm, group)]
    batches = make_batches(
        policy, moving, budget=tokens_per_batch, temperature=temperature, with_old_logprobs=num_updates > 1
    )
    losses: dict[str, Mean] = {}
    gaps: list[Tensor] = []
    norm = 0.0
    for _ in range(num_updates):
        losses, gaps = accumulate_gradient(policy, algorithm, batches, normalizers, temperature=temperature)
        gradient = ranks.sum_tensor(flat_gradient(policy))
        norm = apply_gradient(policy, optimizer, gradient, lr=lr, grad_clip=grad_clip)
    packed = sum(batch.num_tokens for batch in batches)
    counts = ranks.gather([(packed, rollout_metrics.padded_tokens(moving), len(groups) - len(moving))])
    names = ("train/tokens", "train/padded_tokens", "train/skipped_groups")
    totals = {name: sum(column) for name, column in zip(names, zip(*counts, strict=True), strict=True)}
    every_gap = torch.cat([torch.zeros(0), *ranks.gather(gaps)])
    p99 = _quantile(every_gap, 0.99) if every_gap.numel() else math.nan
    return {**ranks.sum_metrics(losses), **totals, "mismatch/p99": p99, "optim/lr": lr, "optim/grad_norm": norm}


def make_batches(
    policy: Policy, groups: Sequence[Group], *, budget: int, temperature: float, with_old_logprobs: bool
) -> list[PackedBatch]:
    """Pack groups into batches of at most `budget` tokens; old log-probs are needed for several updates a batch."""
    batches = [policy.prepare(part) for part in split(groups, budget=budget)]
    return [_with_old_logprobs(policy, batch, temperature) for batch in batches] if with_old_logprobs else batches


def accumulate_gradient(
    policy: Policy,
    algorithm: Algorithm,
    batches: Sequence[PackedBatch],
    normalizers: Normalizers,
    *,
    temperature: float,
) -> tuple[dict[str, Mean], list[Tensor]]:
    """Backward through every batch; the gradient is left in `policy.parameters`.

    Returns the summed metrics and, per batch, |log pi - log pi_sampler| at its own tokens, on the CPU.
    """
    for parameter in policy.parameters:
        parameter.grad = None
    summed: dict[str, Mean] = {}
    gaps: list[Tensor] = []
    for batch in batches:
        logprobs, entropy = policy.token_logprobs(batch, temperature=temperature)
        reference = _reference_logprobs(policy, batch, temperature) if algorithm.kl_weight > 0 else None
        loss, metrics = policy_loss(algorithm, TokenLogprobs(logprobs, entropy, reference), batch, normalizers)
        loss.backward()
        summed = metric_table.add(summed, metrics)
        before = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs[batch.trained]
        gap = (before - batch.sampler_logprobs[batch.trained]).abs()
        gaps.append(gap[batch.is_completion[batch.trained]].float().cpu())
    return summed, gaps


def flat_gradient(policy: Policy) -> Tensor:
    """The adapter's gradient as one vector, zeros where nothing reached: what is summed over ranks."""
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in policy.parameters])


def apply_gradient(
    policy: Policy, optimizer: torch.optim.Optimizer, gradient: Tensor, *, lr: float, grad_clip: float | None
) -> float:
    """Clip the summed gradient to norm `grad_clip` and take one optimizer step; returns the norm before clipping."""
    norm = gradient.norm()
    if not torch.isfinite(norm):
        raise UpdateError(
            f"update: the gradient's norm is {norm.item()}; lower optim.lr, or look at mismatch/abs in metrics.jsonl"
        )
    if grad_clip is not None:
        gradient = gradient * (grad_clip / (norm + 1e-6)).clamp(max=1.0)
    sizes = [parameter.numel() for parameter in policy.parameters]
    for parameter, part in zip(policy.parameters, gradient.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return norm.item()


def _quantile(values: Tensor, share: float) -> float:
    """Nearest-rank: torch.quantile refuses more than 16 million values."""
    place = max(1, math.ceil(share * values.numel()))
    return values.kthvalue(place).values.item()


def _with_old_logprobs(policy: Policy, batch: PackedBatch, temperature: float) -> PackedBatch:
    with torch.no_grad():
        logprobs, _ = policy.token_logprobs(batch, temperature=temperature)
    old = torch.zeros_like(batch.sampler_logprobs)
    old[batch.trained] = logprobs
    return replace(batch, old_logprobs=old)


def _reference_logprobs(policy: Policy, batch: PackedBatch, temperature: float) -> Tensor:
    with torch.no_grad(), policy.reference():
        return policy.token_logprobs(batch, temperature=temperature)[0]
