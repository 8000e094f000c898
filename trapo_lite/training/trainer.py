"""The loop: publish, sample groups, advantages, pack, update, log, save, evaluate.

`train` reads like the paper's figure; `_Run` holds what the stages share, `rollout_stage` engine and verifier. Which
algorithm runs is data (`algorithm`).
"""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trapo_lite.config import Config
from trapo_lite.core.types import Group, Mean
from trapo_lite.data import end_of_text_id, text_of
from trapo_lite.engines.vllm.options import round_up_lora_rank
from trapo_lite.export.model_card import adapter_card
from trapo_lite.model.base import model_shape
from trapo_lite.model.policy import Policy
from trapo_lite.model.saved_adapter import read_config
from trapo_lite.planning.memory import require_fits
from trapo_lite.rollout import metrics as rollout_metrics
from trapo_lite.run import device
from trapo_lite.run.display import Display
from trapo_lite.run.folder import RunFolder
from trapo_lite.run.launch import Stopped, StopSignals, check_world_size, set_threads
from trapo_lite.run.processes import Ranks
from trapo_lite.run.step_log import LogBook
from trapo_lite.training.checkpoint import Checkpoint, restore_checkpoint, save_checkpoint
from trapo_lite.training.inputs import read_inputs
from trapo_lite.training.optimizer import learning_rate, make_optimizer
from trapo_lite.training.packing_check import check_packing, smallest_moving
from trapo_lite.training.resume import find_start_point
from trapo_lite.training.rollouts import Metrics, RolloutStage
from trapo_lite.training.update import update_policy


def train(config: Config, *, restart: bool = False) -> Path:
    """Run, or go on with, the run in `config.run.folder`; returns the folder. Raises Stopped on SIGTERM or SIGINT."""
    with contextlib.ExitStack() as stack:
        run = _Run(config, stack, restart=restart)
        if run.start.is_complete:
            run.ranks.close()
            return run.folder.path
        with run.keeping_what_is_done():
            for step in range(run.first_step, config.train.max_steps):
                started = time.perf_counter()
                metrics = run.rollouts.publish(step)
                groups, sampled = run.rollouts.sample(step)
                run.leave_if_told()
                metrics |= sampled | run.update(step, groups)
                metrics |= run.rollouts.evaluate(step + 1)
                run.log(step + 1, metrics, groups, seconds=time.perf_counter() - started)
                if (step + 1) % config.train.save_every == 0 or step + 1 == config.train.max_steps:
                    run.save(step + 1)
        folder = run.finish()
        run.ranks.close()
        return folder


class _Run:
    """One process's share of a run: policy, engine, verifier and where things are written."""

    def __init__(self, config: Config, stack: contextlib.ExitStack, *, restart: bool) -> None:
        self.config = config
        set_threads(config)
        self.ranks = Ranks()
        check_world_size(self.ranks.count)
        self.inputs = read_inputs(config)
        self.algorithm = config.algorithm.build(max_response_tokens=config.rollout.max_response_tokens)
        self.folder = RunFolder(config.run.folder)
        if self.ranks.is_main:
            self.folder = stack.enter_context(RunFolder.open(config, restart=restart))
        self.ranks.wait()
        data_fingerprint = self.inputs.report.fingerprint
        self.start = find_start_point(config, self.folder, self.ranks, data_fingerprint=data_fingerprint)
        checkpoint = self.start.checkpoint
        self.first_step = self.saved_step = checkpoint.step if checkpoint else 0
        self.whole_step: int | None = None  # the step that was logged last, unless the policy has moved since
        self.rng_states: list[torch.Tensor] = []
        self.tokens_per_batch = config.train.tokens_per_batch
        self.display = stack.enter_context(
            Display(
                title=config.run.name,
                max_steps=config.train.max_steps,
                first_step=self.first_step,
                is_main=self.ranks.is_main,
            )
        )
        for line in [*self.folder.notes, *self.start.notes, *self.inputs.report.lines()]:
            self.display.message(line)
        if self.start.is_complete:
            self.display.message(
                f"{self.folder.path} is complete: {self.first_step} steps done, train.max_steps is "
                f"{config.train.max_steps}; raise it to go on, or start over with --restart"
            )
        else:
            self.display.message(self._start_line())
            self._load(checkpoint, stack)

    def _load(self, checkpoint: Checkpoint | None, stack: contextlib.ExitStack) -> None:
        """Verifier, engine, policy, optimizer, loggers."""
        config = self.config
        for line in self.folder.outdated():
            self.display.message(line)
        if config.train.check_memory and (memory := device.total_memory(self.ranks.device)) is not None:
            num_shards = self.ranks.count if self.ranks.is_sharding else 1
            require_fits(config, model_shape(config), gpu_memory=memory, num_shards=num_shards)
        minutes = "some minutes" if self.ranks.device.type == "cuda" else "about half a minute"
        patience = f"; vLLM takes {minutes}" if config.rollout.engine == "vllm" else ""
        self.display.message(f"starting the verifier, the engine and the model{patience}")
        self.rollouts = RolloutStage(
            config,
            self.inputs,
            self.algorithm,
            self.ranks,
            folder=self.folder.path,
            stack=stack,
            on_progress=self._on_rollouts,
            notify=self._announce,
        )
        self.gold_by_id = {problem.id: problem.answer for problem in self.inputs.problems}
        self.is_packing_checked = not config.train.check_packing
        torch.manual_seed(config.run.seed)
        shard = self.ranks.shard if self.ranks.is_sharding else None
        self.policy = Policy.load(
            config.model, config.lora, device=self.ranks.device, shard=shard, notify=self.display.message
        )
        self.optimizer = make_optimizer(config.optim, self.policy.parameters)
        self.optimizer.register_step_pre_hook(self._is_moving)
        if checkpoint is not None:
            restore_checkpoint(checkpoint, policy=self.policy, optimizer=self.optimizer, rank=self.ranks.index)
        self.ranks.require_equal(self.policy.parameters, what="the adapter")
        self.rollouts.attach(self.policy)
        if self.ranks.is_main:
            self.log_book = stack.enter_context(
                LogBook(config, self.folder, self.display, first_step=self.first_step + 1)
            )
        self.signals = StopSignals()
        stack.callback(self.signals.restore)

    def update(self, step: int, groups: Sequence[Group]) -> Metrics:
        """Gradient of the step's loss over all ranks, then the optimizer; the engine's cache makes room meanwhile."""
        started = time.perf_counter()
        optim = self.config.optim
        device.start_peak(self.ranks.device)
        with self.rollouts.engine_asleep():
            if not self.is_packing_checked:
                self._check_packing(groups)
            report = update_policy(
                self.policy,
                self.optimizer,
                self.algorithm,
                groups,
                self.ranks,
                lr=learning_rate(optim, step=step, max_steps=self.config.train.max_steps),
                grad_clip=optim.grad_clip,
                num_updates=optim.updates_per_batch,
                temperature=self.config.rollout.temperature,
                tokens_per_batch=self.tokens_per_batch,
            )
        self._keep_budget(report.tokens_per_batch)
        [peak] = self.ranks.largest([device.peak_gib(self.ranks.device)])
        seconds = time.perf_counter() - started
        tflops = (device.peak_tflops(self.ranks.device) or math.nan) * self.ranks.count
        return {
            **report.metrics,
            "time/update": seconds,
            "speed/trained_tokens_per_second": report.num_tokens * optim.updates_per_batch / seconds,
            "speed/flop_utilisation": report.tflop / seconds / tflops,
            "memory/peak_gib": peak,
        }

    def log(self, step: int, metrics: Mapping[str, Mean | float | int], groups: Sequence[Group], *, seconds: float):
        """metrics.jsonl, rollouts/, TensorBoard, wandb and the terminal."""
        lines = self.ranks.gather([line for group in groups for line in self._rollout_lines(group)])
        self.rng_states = self.ranks.gather([torch.get_rng_state()])
        if self.ranks.is_main:
            self.log_book.write(step, metrics, lines, seconds=seconds)
        self.whole_step = step

    def save(self, step: int) -> None:
        self._write_checkpoint(step)
        self.ranks.wait()

    @contextlib.contextmanager
    def keeping_what_is_done(self) -> Iterator[None]:
        """Inside, whatever ends the run, the last step it logged is in a checkpoint, unless the policy has moved since.

        The main process alone acts on SIGTERM and SIGINT; the others have them too, from their launcher, and end when
        their next exchange with it fails.
        """
        try:
            yield
        except RuntimeError as error:
            is_from_a_rank = type(error) is RuntimeError or isinstance(error, torch.distributed.DistError)
            if self.signals.received is None or not is_from_a_rank:
                raise
            raise Stopped(self.signals.received) from error
        finally:
            if self.whole_step is not None and self.whole_step > self.saved_step:
                self._write_checkpoint(self.whole_step)

    def finish(self) -> Path:
        """Leave the trained adapter where export and evaluation look for it."""
        if self.ranks.is_main:
            self.folder.replace("adapter", self._write_adapter)
            run, on_what = self.folder.path, "" if self.config.eval.data else " --benchmarks NAME ..."
            self.display.message(f"done: {self.config.train.max_steps} steps; adapter: {run / 'adapter'}")
            self.display.message(f"next: python scripts/evaluate.py --run {run}{on_what}  (what it solves)")
            self.display.message(f"next: python scripts/export.py --run {run}  (a merged checkpoint)")
        self.ranks.wait()
        return self.folder.path

    def _write_adapter(self, folder: Path) -> None:
        self.policy.save_adapter(folder)
        fields = read_config(folder, option="run").fields
        tokenizer = self.inputs.tokenizer
        end = str(tokenizer.decode([end_of_text_id(tokenizer, self.config.data.eos_token)]))
        max_rank = round_up_lora_rank(self.config.lora.r)
        card = adapter_card(model=self.config.model, adapter=fields, eos_token=end, max_rank=max_rank)
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _write_checkpoint(self, step: int) -> None:
        if self.ranks.is_main:
            self.log_book.flush()
            save_checkpoint(
                self.folder.checkpoints,
                policy=self.policy,
                optimizer=self.optimizer,
                rng_states=self.rng_states,
                state={"step": step, "adapter_version": step, "data_cursor": step, **self.start.identity},
                keep=self.config.train.keep_checkpoints,
            )
        self.saved_step = step

    def _check_packing(self, groups: Sequence[Group]) -> None:
        config = self.config
        candidates = self.ranks.gather(smallest_moving(self.algorithm, groups))  # so that all ranks check the same tree
        report = check_packing(
            self.policy,
            self.algorithm,
            candidates,
            temperature=config.rollout.temperature,
            longest=config.data.max_prompt_tokens + config.rollout.max_response_tokens,
        )
        if report is not None:  # else no group had a gradient: the next step's may
            self.is_packing_checked = True
            if self.ranks.is_main:
                self.display.message(report.line())

    def _keep_budget(self, tokens: int) -> None:
        """What did not fit once is not tried again in this process's life."""
        if tokens < self.tokens_per_batch:
            self._announce(
                f"WARNING: memory ran out; forward passes hold {tokens} tokens from now on, which changes sums by "
                + ("rounding" if self.config.run.deterministic else f"rounding; set train.tokens_per_batch={tokens}")
            )
        self.tokens_per_batch = tokens

    def _decode_all(self, token_ids: Sequence[int]) -> str:
        return text_of(self.inputs.tokenizer, token_ids, with_special=True)

    def _rollout_lines(self, group: Group) -> list[dict[str, Any]]:
        gold = self.gold_by_id[group.rollouts[0].problem_id]
        micro_groups = self.algorithm.micro_groups
        return rollout_metrics.to_lines(group, self._decode_all, gold=gold, micro_groups=micro_groups)

    def _announce(self, line: str) -> None:
        if self.ranks.is_main:
            self.display.message(line)
        else:
            print(f"rank {self.ranks.index}: {line}", file=sys.stderr, flush=True)

    def _is_moving(self, *_: object) -> None:
        self.whole_step = None

    def _on_rollouts(self, done: int, expected: int) -> None:
        self.leave_if_told()
        self.display.rollouts(done, expected)

    def leave_if_told(self) -> None:
        if self.ranks.is_main:
            self.signals.check()

    def _start_line(self) -> str:
        world, device = self.ranks.count, self.ranks.device.type
        begin = f"going on after step {self.first_step}" if self.first_step else "starting"
        return f"{self.folder.path}: {begin}; {world} process{'es' if world > 1 else ''} on {device}"
