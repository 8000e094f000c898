"""Forward, backward, gradient: what a step's rollouts do to the adapter."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trapo_lite.core.algorithm import (
    Algorithm,
    Normalizers,
    TokenLogprobs,
    count_normalizers,
    needs_forward,
    policy_loss,
)
from trapo_lite.core.batching import balance, cut, num_tokens, split
from trapo_lite.core.errors import UpdateError
from trapo_lite.core.tree import PackedBatch
from trapo_lite.core.types import Group, Mean
from trapo_lite.model.policy import Policy
from trapo_lite.rollout import metrics as rollout_metrics
from trapo_lite.run import metrics as metric_table
from trapo_lite.run.device import unless_out_of_memory
from trapo_lite.run.processes import Ranks
from trapo_lite.training.optimizer import apply_gradient

ENGINE_TAKES = "or lower rollout.gpu_memory_fraction if the engine shares the card"
LESS_MEMORY = f"turn on model.gradient_checkpointing, and with it model.offload_activations, {ENGINE_TAKES}"


@dataclass(frozen=True)
class UpdateReport:
    """What a step's update did, over all ranks: metrics of `metrics.TABLE`, some of them also by themselves.

    num_tokens: packed tokens of one pass over the step;  tflop: 10^12 operations of all passes
    tokens_per_batch: the budget that it was done with, lower than asked for where memory ran out
    """

    metrics: dict[str, Mean | float | int]
    num_tokens: int
    tflop: float
    tokens_per_batch: int


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
) -> UpdateReport:
    """One step: the gradient of the loss over all ranks' `groups`, then the optimizer.

    What the weights become does not depend on how the groups lie on the ranks or are packed into batches, but for
    rounding. `num_updates` above 1 goes over the same batches again (losses in the metrics are of the last time).
    Where a rank runs out of memory, the step is done again from its beginning in batches half as large, down to one
    rollout in each. UpdateError where that does not help either. With a sharded base every rank runs as many passes as
    the one that has most, and memory that runs out is an UpdateError: the others already wait for its part of a layer.
    """
    normalizers = sum(ranks.gather([count_normalizers(algorithm, groups)]), start=Normalizers(0.0, 0.0, 0.0))
    num_groups = sum(ranks.gather([len(groups)]))
    moving = ranks.gather([group for group in groups if needs_forward(algorithm, group)])
    undo = _undo_of(policy, optimizer) if num_updates > 1 else None

    def attempt(budget: int) -> tuple[list[PackedBatch], dict[str, Mean], list[Tensor], float] | None:
        """All updates, in batches of `budget`; None, on every rank, where one of them ran out of memory."""
        mine = balance(cut(moving, budget=budget), num_ranks=ranks.count)[ranks.index]
        batches: list[PackedBatch] = []

        def backward() -> tuple[dict[str, Mean], list[Tensor]]:
            if not batches:
                parts = split(mine, budget=budget)
                if policy.is_sharded:
                    parts += [[]] * (max(ranks.gather([len(parts)])) - len(parts))
                batches.extend(policy.prepare(part) for part in parts)
                if num_updates > 1:
                    batches[:] = [_with_old_logprobs(policy, batch, temperature) for batch in batches]
            return accumulate_gradient(policy, algorithm, batches, normalizers, temperature=temperature)

        losses, gaps, norm = {}, [], 0.0
        for _ in range(num_updates):
            found = unless_out_of_memory(backward)
            if found is None and policy.is_sharded:
                raise UpdateError(f"update: out of memory in a pass with a sharded base; {LESS_MEMORY}")
            if not all(ranks.gather([found is not None])) or found is None:
                return None
            losses, gaps = found
            moved = unless_out_of_memory(
                lambda: apply_gradient(
                    policy, optimizer, ranks.sum_tensor(policy.flat_gradient()), lr=lr, grad_clip=grad_clip
                )
            )
            if moved is None:
                raise UpdateError(
                    "update: out of memory in the optimizer's step; begin anew with optim.name: adamw_8bit, "
                    + ENGINE_TAKES
                )
            norm = moved
        return batches, losses, gaps, norm

    budget, num_failures = tokens_per_batch, 0
    while (done := attempt(budget)) is None:
        num_failures += 1
        budget = _half(budget, moving)
        if undo is not None:
            undo()
    batches, losses, gaps, norm = done
    every_gap = torch.cat([torch.zeros(0), *ranks.gather(gaps)])
    num_packed = sum(map(num_tokens, cut(moving, budget=budget)))
    tflop = sum(ranks.gather([sum(map(policy.shape.batch_flop, batches))])) * num_updates / 1e12
    metrics = {
        **ranks.sum_metrics(losses | {"train/padding": _padding(batches)}),
        **rollout_metrics.token_counts(moving, num_packed=num_packed),
        "train/skipped_groups": num_groups - len(moving),
        "train/batches": sum(ranks.gather([len(batches)])),
        "train/tflop": tflop,
        "train/tokens_per_batch": budget,
        "train/out_of_memory": num_failures,
        "mismatch/p99": _quantile(every_gap, 0.99) if every_gap.numel() else math.nan,
        "optim/lr": lr,
        "optim/grad_norm": norm,
    }
    return UpdateReport(metrics, num_tokens=num_packed, tflop=tflop, tokens_per_batch=budget)


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
    policy.clear_gradient()
    summed: dict[str, Mean] = {}
    gaps: list[Tensor] = []
    for batch in batches:
        logprobs, entropy = policy.token_logprobs(batch, temperature=temperature)
        reference = policy.reference_logprobs(batch, temperature=temperature) if algorithm.kl_weight > 0 else None
        loss, metrics = policy_loss(algorithm, TokenLogprobs(logprobs, entropy, reference), batch, normalizers)
        loss.backward()
        summed = metric_table.add(summed, metrics)
        before = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs[batch.trained]
        gap = (before - batch.sampler_logprobs[batch.trained]).abs()
        gaps.append(gap[batch.is_completion[batch.trained]].float().cpu())
    return summed, gaps


def _half(budget: int, groups: Sequence[Group]) -> int:
    """A token budget that changes the batches; UpdateError where each holds one rollout already."""
    rollouts = [num_tokens(part) for part in cut(groups, budget=1)]
    if budget < min(rollouts):
        raise UpdateError(
            f"update: out of memory with a single rollout a forward pass, of up to {max(rollouts)} tokens; take "
            f"model.quantize: nf4, lower rollout.max_response_tokens, {LESS_MEMORY}"
        )
    return min(budget, sum(map(num_tokens, groups))) // 2


def _undo_of(policy: Policy, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Puts the adapter and the optimizer's state back to what they are now."""
    weights = [parameter.detach().clone() for parameter in policy.parameters]
    state = copy.deepcopy(optimizer.state_dict())

    def undo() -> None:
        with torch.no_grad():
            for parameter, weight in zip(policy.parameters, weights, strict=True):
                parameter.copy_(weight)
        optimizer.load_state_dict(copy.deepcopy(state))

    return undo


def _padding(batches: Sequence[PackedBatch]) -> Mean:
    total = sum(batch.num_tokens for batch in batches)
    return Mean(float(sum(batch.num_padding for batch in batches)), total)


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
