"""Update the adapter by a step's rollouts: forward, backward, gradient, optimizer."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trapo_lite.config import Config
from trapo_lite.core.algorithm import (
    Algorithm,
    Normalizers,
    count_normalizers,
    needs_forward,
    policy_loss,
)
from trapo_lite.core.batching import balance, by_prompt, cut, num_tokens, pass_tokens, split
from trapo_lite.core.errors import PackingError, UpdateError
from trapo_lite.core.tree import PackedBatch
from trapo_lite.core.types import Group, Mean
from trapo_lite.model.layout import rows_line
from trapo_lite.model.policy import Policy
from trapo_lite.rollout import metrics as rollout_metrics
from trapo_lite.run import device
from trapo_lite.run import metrics as metric_table
from trapo_lite.run.device import MemoryAttempt
from trapo_lite.run.processes import Ranks
from trapo_lite.training.optimizer import apply_gradient, learning_rate_at, make_optimizer
from trapo_lite.training.packing_check import check_packing, check_rows, smallest_moving
from trapo_lite.training.teaching import forward, with_teacher

ENGINE_TAKES = "or lower rollout.gpu_memory_fraction if the engine shares the card"
ONE_ROLLOUT = 1
"""Token budget with which every batch holds one rollout, because a rollout is never cut."""
LESS_MEMORY = f"turn on model.gradient_checkpointing, and with it model.offload_activations, {ENGINE_TAKES}"


class Updater:
    """An Updater owns the optimizer, the token budget, and whether the layout was checked.

    algorithm_at: returns the algorithm when so many updates are done
    announce:     called with a line for the user
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        algorithm_at: Callable[[int], Algorithm],
        ranks: Ranks,
        *,
        announce: Callable[[str], None] = print,
    ) -> None:
        self.policy, self.algorithm_at, self.ranks, self.optim = policy, algorithm_at, ranks, config.optim
        self._config = config
        self.optimizer = make_optimizer(config.optim, policy.adapter.parameters)
        self.max_steps, self.temperature = config.train.max_steps, config.rollout.temperature
        self.tokens_per_batch = config.train.tokens_per_batch
        """Token budget of one forward pass; it is halved if memory runs out."""
        self._announce = announce
        self._layout = config.model.layout
        self._skips_check = policy.layout == "tree" and not config.train.check_packing
        self._is_layout_checked = self._skips_check
        self._longest = (
            max(config.data.max_prompt_tokens, config.teacher_prompt_tokens) + config.rollout.max_response_tokens
        )

    def update(self, step: int, groups: Sequence[Group]) -> dict[str, Mean | float | int]:
        """Update the policy by the gradient of the step's loss over all ranks; return metrics (run/metrics.py).

        groups: this rank's share of the step's problems. They are distributed again, by their numbers of tokens.
        Raises UpdateError if memory runs out with one rollout per pass, in the optimizer, or after the first of several
        updates; also for a gradient that is not finite.   Source: METHOD 4.4.
        """
        started = time.perf_counter()
        policy, ranks, num_updates = self.policy, self.ranks, self.optim.updates_per_batch
        algorithm = self.algorithm_at(step)
        if step > 0 and step == self._config.algorithm.steps_of_stage(step, max_steps=step + 1).start:
            self.optimizer.state.clear()  # a stage starts with a new optimizer, as a run of its own would
            self._is_layout_checked = self._skips_check
        device.start_peak(ranks.device)
        is_first = not self._is_layout_checked
        if is_first:
            self._check_layout(algorithm, groups)
        normalizers = sum(ranks.gather([count_normalizers(algorithm, groups)]), start=Normalizers(0.0, 0.0, 0.0))
        num_groups = sum(ranks.gather([len(groups)]))
        needed = [group for group in groups if needs_forward(algorithm, group)]
        num_skipped = num_groups - sum(ranks.gather([len(needed)]))
        moving = ranks.gather(by_prompt(needed))
        num_failures = 0
        while True:
            with MemoryAttempt() as attempt:
                batches = self._pack(algorithm, moving)
                losses, gaps = accumulate_gradient(
                    policy, algorithm, batches, normalizers, temperature=self.temperature
                )
            if not self._any_failed(attempt):
                break
            num_failures += 1
            self._halve_budget(moving)
        if is_first and batches and (idle := policy.adapter.without_gradient()):
            self._announce(
                f"warning: lora.target_modules: no gradient reaches {', '.join(idle)}: the model's class does not call "
                "these layers, or reads past their adapters; leave them out"
            )
        if num_failures:
            self._announce(
                f"warning: update: memory ran out; forward passes have {self.tokens_per_batch} tokens from now on, "
                "which changes sums by rounding; unless run.deterministic is on, set "
                f"train.tokens_per_batch={self.tokens_per_batch}"
            )
        # A step that teaches nothing leaves weights and optimizer alone; AdamW would go on by its momentum.
        norm = self._optimizer_step(step) if moving else 0.0
        for _ in range(1, num_updates if moving else 1):
            with MemoryAttempt() as attempt:
                losses, gaps = accumulate_gradient(
                    policy, algorithm, batches, normalizers, temperature=self.temperature
                )
            if self._any_failed(attempt):
                smaller = f"with train.tokens_per_batch={self.tokens_per_batch // 2}"
                raise UpdateError(
                    "update: out of memory after the policy was updated; resume from the newest checkpoint "
                    + (smaller if policy.layout == "tree" else f"and {LESS_MEMORY}")
                )
            norm = self._optimizer_step(step)
        return {
            **self._metrics(step, moving, batches, losses, gaps, seconds=time.perf_counter() - started),
            "train/skipped_groups": num_skipped,
            "train/out_of_memory": num_failures,
            "optim/grad_norm": norm,
        }

    def _metrics(
        self,
        step: int,
        moving: Sequence[Group],
        batches: Sequence[PackedBatch],
        losses: dict[str, Mean],
        gaps: Sequence[Tensor],
        *,
        seconds: float,
    ) -> dict[str, Mean | float | int]:
        """Return what the update cost and what its losses were, over all ranks."""
        ranks, num_updates = self.ranks, self.optim.updates_per_batch
        algorithm, stage = self.algorithm_at(step), self._config.algorithm.stage_at(step)
        every_gap = torch.cat([torch.zeros(0), *ranks.gather(list(gaps))])
        num_packed = sum(map(num_tokens, cut(moving, budget=self.budget)))
        tflop = sum(ranks.gather([sum(map(self.policy.shape.batch_flop, batches))])) * num_updates / 1e12
        [peak] = ranks.largest([device.peak_gib(ranks.device)])
        possible = (device.peak_tflops(ranks.device) or math.nan) * ranks.count
        return {
            **ranks.sum_metrics(losses | {"train/padding": _padding(batches)}),
            **rollout_metrics.token_counts(moving, num_packed=num_packed),
            **{f"loss/{part}_weight": getattr(algorithm, f"{part}_weight") for part in stage.weights_over_steps},
            "train/batches": sum(ranks.gather([len(batches)])),
            "train/tflop": tflop,
            "train/tokens_per_batch": self.tokens_per_batch,
            "mismatch/p99": _quantile(every_gap, 0.99) if every_gap.numel() else math.nan,
            "optim/lr": learning_rate_at(self._config, step),
            "time/update": seconds,
            "speed/trained_tokens_per_second": num_packed * num_updates / seconds,
            "speed/flop_utilisation": tflop / seconds / possible,
            "memory/peak_gib": peak,
        }

    @property
    def budget(self) -> int:
        """Return the tokens that one forward pass may have; a row is always a pass of its own."""
        return self.tokens_per_batch if self.policy.layout == "tree" else ONE_ROLLOUT

    def _pack(self, algorithm: Algorithm, moving: Sequence[Group]) -> list[PackedBatch]:
        """Return this rank's share of all ranks' groups, as batches within the token budget."""
        budget = self.budget
        mine = balance(cut(moving, budget=budget), num_ranks=self.ranks.count)[self.ranks.index]
        parts = split(mine, budget=budget)
        if self.policy.is_sharded:  # every rank must run equally many passes
            parts += [[]] * (max(self.ranks.gather([len(parts)])) - len(parts))
        batches = [self.policy.prepare(part) for part in parts]
        if (teacher := algorithm.teacher) is not None:
            batches = [
                with_teacher(self.policy, teacher, batch, part, temperature=self.temperature)
                for batch, part in zip(batches, parts, strict=True)
            ]
        if self.optim.updates_per_batch > 1:
            batches = [_with_old_logprobs(self.policy, batch, self.temperature) for batch in batches]
        return batches

    def _any_failed(self, attempt: MemoryAttempt) -> bool:
        """Return, on every rank, whether any of them ran out of memory."""
        if attempt.ran_out and self.policy.is_sharded:  # the others are in the middle of an exchange
            raise UpdateError(f"update: out of memory in a pass with a sharded base; {LESS_MEMORY}")
        return any(self.ranks.gather([attempt.ran_out]))

    def _halve_budget(self, groups: Sequence[Group]) -> None:
        """Lower the token budget for the rest of the run, far enough that the batches change.

        Raises UpdateError if every batch already holds a single rollout.
        """
        rollouts = [pass_tokens(part) for part in cut(groups, budget=ONE_ROLLOUT)]
        if self.budget < min(rollouts):
            raise UpdateError(
                f"update: out of memory with a single rollout a forward pass, of up to {max(rollouts)} tokens; take "
                f"model.quantize: nf4, lower rollout.max_response_tokens, {LESS_MEMORY}"
            )
        self.tokens_per_batch = min(self.tokens_per_batch, sum(map(pass_tokens, groups))) // 2

    def _optimizer_step(self, step: int) -> float:
        """Sum the gradient over the ranks and apply it; return its norm before clipping."""
        gradient = self.ranks.sum_tensor(self.policy.adapter.flat_gradient())
        lr = learning_rate_at(self._config, step)
        with MemoryAttempt():
            return apply_gradient(self.policy, self.optimizer, gradient, lr=lr, grad_clip=self.optim.grad_clip)
        raise UpdateError(
            f"update: out of memory in the optimizer's step; start again with optim.name: adamw_8bit, {ENGINE_TAKES}"
        )

    def _check_layout(self, algorithm: Algorithm, groups: Sequence[Group]) -> None:
        """Check the tree or the rows, in the first step that has a gradient (`packing_check`)."""
        # Gathered, so that all ranks check the same tree.
        candidates = self.ranks.gather(smallest_moving(algorithm, by_prompt(groups)))
        if self.policy.layout == "tree":
            line = self._check_tree(algorithm, candidates)
        if self.policy.layout == "rows":
            line = check_rows(self.policy, algorithm, candidates, temperature=self.temperature)
            if any(self.ranks.gather([self.policy.has_own_logits])):
                self.policy.take_own_logits()
        if line is not None:  # None: no group had a gradient, but one of the next step may
            self._is_layout_checked = True
            if self.ranks.is_main:
                self._announce(line)

    def _check_tree(self, algorithm: Algorithm, candidates: Sequence[Group]) -> str | None:
        """Compare a small tree with its rollouts as rows. Where they differ, `model.layout: auto` takes rows."""
        line, failure = None, None
        try:
            report = check_packing(
                self.policy, algorithm, candidates, temperature=self.temperature, longest=self._longest
            )
            line = None if report is None else report.line()
        except PackingError as error:
            failure = error
        if any(self.ranks.gather([failure is not None])):
            if self._layout != "auto":
                raise failure or PackingError("packing check: it failed on another rank")
            self.policy.take_rows()
            self._announce(rows_line(str(failure or "packing check: it failed on another rank")))
        return line


def accumulate_gradient(
    policy: Policy,
    algorithm: Algorithm,
    batches: Sequence[PackedBatch],
    normalizers: Normalizers,
    *,
    temperature: float,
) -> tuple[dict[str, Mean], list[Tensor]]:
    """Run forward and backward for every batch, and leave the gradient in `policy.adapter.parameters`.

    Returns the summed metrics and, per batch, |log pi - log pi_sampler| at its sampled tokens, on the CPU.
    """
    policy.adapter.clear_gradient()
    summed: dict[str, Mean] = {}
    gaps: list[Tensor] = []
    for batch in batches:
        results = forward(policy, algorithm, batch, temperature=temperature)
        loss, metrics = policy_loss(algorithm, results, batch, normalizers)
        loss.backward()
        summed = metric_table.add(summed, metrics)
        before = results.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs[batch.trained]
        gap = (before - batch.sampler_logprobs[batch.trained]).abs()
        gaps.append(gap[batch.is_completion[batch.trained]].float().cpu())
    return summed, gaps


def _padding(batches: Sequence[PackedBatch]) -> Mean:
    total = sum(batch.num_tokens for batch in batches)
    return Mean(float(sum(batch.num_padding for batch in batches)), total)


def _quantile(values: Tensor, share: float) -> float:
    """Return the nearest-rank quantile; torch.quantile refuses more than 16 million values."""
    rank = max(1, math.ceil(share * values.numel()))
    return values.kthvalue(rank).values.item()


def _with_old_logprobs(policy: Policy, batch: PackedBatch, temperature: float) -> PackedBatch:
    with torch.no_grad():
        logprobs, _ = policy.token_logprobs(batch, temperature=temperature)
    old = torch.zeros_like(batch.sampler_logprobs)
    old[batch.trained] = logprobs
    return replace(batch, old_logprobs=old)
