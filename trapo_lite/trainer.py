"""The loop: publish, sample groups, advantages, pack, update, log, save, evaluate.

`train` reads like the paper's figure; `_Run` holds what the stages share. Which algorithm runs is data (`algorithm`).
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object

from trapo_lite import metrics as metric_table
from trapo_lite import rollout_metrics
from trapo_lite.algorithm import Algorithm, Normalizers, count_normalizers, make_group, needs_forward
from trapo_lite.checkpoint import find_checkpoint, require_same, restore_checkpoint, save_checkpoint, set_aside_after
from trapo_lite.config import Config
from trapo_lite.data import batch_indices, is_boundary_fn
from trapo_lite.display import Display
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.engines.start import start_engine
from trapo_lite.evaluation import evaluate_problems
from trapo_lite.identity import run_identity
from trapo_lite.inputs import read_inputs
from trapo_lite.launch import Stopped, StopSignals, check_world_size, set_threads
from trapo_lite.loggers import Logger, open_loggers
from trapo_lite.policy import Policy
from trapo_lite.publishing import Publisher
from trapo_lite.reward import MathVerifier
from trapo_lite.run_folder import RunFolder
from trapo_lite.sampler import Sampler, SamplingSettings
from trapo_lite.tree import Group
from trapo_lite.types import Mean, Rollout
from trapo_lite.update import (
    accumulate_gradient,
    apply_gradient,
    flat_gradient,
    learning_rate,
    make_batches,
    make_optimizer,
)


def train(config: Config, *, restart: bool = False) -> Path:
    """Run, or go on with, the run in `config.run.folder`; returns the folder. Raises Stopped on SIGTERM or SIGINT."""
    with contextlib.ExitStack() as stack:
        run = _Run(config, stack, restart=restart)
        if run.is_complete:
            return run.folder.path
        for step in range(run.first_step, config.train.max_steps):
            try:
                started = time.perf_counter()
                metrics = run.publish(step)
                groups, sampled = run.sample(step)
                metrics |= sampled | run.update(step, groups)
                metrics |= run.evaluate(step + 1)
                run.log(step + 1, metrics, groups, seconds=time.perf_counter() - started)
                if (step + 1) % config.train.save_every == 0 or step + 1 == config.train.max_steps:
                    run.save(step + 1)
            except Stopped:
                run.save_before_leaving()
                raise
        return run.finish()


class _Run:
    """One process's share of a run: policy, engine, verifier and where things are written."""

    def __init__(self, config: Config, stack: contextlib.ExitStack, *, restart: bool) -> None:
        self.config = config
        set_threads(config)
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # the fastest rank waits for the slowest rollout
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
        check_world_size(self.accelerator.num_processes)
        self.inputs = read_inputs(config)
        self.algorithm = Algorithm.from_config(config.algorithm, tis_cap=config.rollout.tis_cap)
        self.folder = RunFolder(config.run.folder)
        if self.accelerator.is_main_process:
            self.folder = stack.enter_context(RunFolder.open(config, restart=restart))
        self.accelerator.wait_for_everyone()
        checkpoint, damaged = find_checkpoint(self.folder.checkpoints)
        self.identity = run_identity(
            config, data_fingerprint=self.inputs.report.fingerprint, num_processes=self.accelerator.num_processes
        )
        if checkpoint is not None:
            require_same(checkpoint, self.identity)
        self.first_step = self.saved_step = checkpoint.step if checkpoint else 0
        self.updates_done = self.logged_step = self.first_step
        if self.accelerator.is_main_process:
            self.folder.write_config(config)
            self.folder.cut_back(self.first_step)
            set_aside_after(self.folder.checkpoints, self.first_step)

        self.display = stack.enter_context(
            Display(
                title=config.run.name,
                max_steps=config.train.max_steps,
                first_step=self.first_step,
                is_main=self.accelerator.is_main_process,
            )
        )
        for line in [*damaged, *self.inputs.report.lines(), self._start_line()]:
            self.display.message(line)
        self.is_complete = self.first_step >= config.train.max_steps and (self.folder.path / "adapter").is_dir()
        if self.is_complete:
            self.display.message(
                f"{self.folder.path} is complete ({self.first_step} of {config.train.max_steps} steps); raise "
                "train.max_steps to go on, or start over with --restart"
            )
            return
        self.display.message("starting the verifier, the engine and the model; vLLM takes about half a minute")
        self.verifier = stack.enter_context(
            MathVerifier(
                num_workers=config.reward.num_workers,
                deadline_seconds=config.reward.deadline_seconds,
                memory_limit_bytes=config.reward.memory_mb << 20,
                require_box=config.reward.require_box,
            )
        )
        self.engine = self._start_engine(stack) if config.algorithm.samples or self.inputs.eval_problems else None
        torch.manual_seed(config.run.seed)
        self.policy = Policy.load(config.model, config.lora, device=self.accelerator.device)
        self.optimizer = make_optimizer(config.optim, self.policy.parameters)
        if checkpoint is not None:
            restore_checkpoint(
                checkpoint, policy=self.policy, optimizer=self.optimizer, rank=self.accelerator.process_index
            )
        self.publisher = self._make_publisher()
        self.loggers: list[Logger] = []
        if self.accelerator.is_main_process:
            self.loggers = open_loggers(config, first_step=self.first_step + 1)
            for logger in self.loggers:
                stack.callback(logger.close)
        self.signals = StopSignals()
        stack.callback(self.signals.restore)

    def publish(self, step: int) -> dict[str, Mean | float | int]:
        """Give the engine the policy as it is after `step` updates."""
        if self.publisher is None or not self.config.algorithm.samples:
            return {}
        started = time.perf_counter()
        result = self.publisher.publish(step)
        could_tell = result.kind == "applied"
        return {
            "time/publish": time.perf_counter() - started,
            "engine/publish_bytes": self.publisher.num_bytes,
            "engine/probe_projection": result.projection if could_tell else float("nan"),
            "engine/probe_undecided": int(not could_tell),
        }

    def sample(self, step: int) -> tuple[list[Group], dict[str, Mean | float | int]]:
        """This rank's share of the step's problems, rolled out, graded and turned into advantages."""
        indices = batch_indices(
            step,
            batch_size=self.config.rollout.num_problems,
            num_problems=len(self.inputs.problems),
            seed=self.config.run.seed,
        )
        mine = indices[self.accelerator.process_index :: self.accelerator.num_processes]
        rollouts, times = self._sampler().sample(
            [self.inputs.problems[index] for index in mine], step=step, on_progress=self._on_rollouts
        )
        self.signals.check()
        groups = [make_group(self.algorithm, group) for group in rollouts]
        metrics = self._sum_over_ranks(rollout_metrics.describe(groups))
        sampled = metrics["rollout/completion_tokens"].total
        return groups, {
            **metrics,
            "time/sample": times.engine,
            "time/verdicts": times.verdicts,
            "speed/sampled_tokens_per_second": sampled / times.engine if times.engine else float("nan"),
        }

    def update(self, step: int, groups: Sequence[Group]) -> dict[str, Mean | float | int]:
        """Gradient of the step's loss over all ranks, then the optimizer; the engine's cache makes room meanwhile."""
        started = time.perf_counter()
        if self.engine is not None:
            self.engine.release()
        optim, temperature = self.config.optim, self.config.rollout.temperature
        normalizers = sum(gather_object([count_normalizers(self.algorithm, groups)]), start=Normalizers(0.0, 0.0, 0.0))
        moving = [group for group in groups if needs_forward(self.algorithm, group)]
        batches = make_batches(
            self.policy,
            moving,
            budget=self.config.train.tokens_per_batch,
            temperature=temperature,
            with_old_logprobs=optim.updates_per_batch > 1,
        )
        lr = learning_rate(optim, step=step, max_steps=self.config.train.max_steps)
        summed: dict[str, Mean] = {}
        norm = 0.0
        for _ in range(optim.updates_per_batch):
            summed = accumulate_gradient(self.policy, self.algorithm, batches, normalizers, temperature=temperature)
            gradient = self._sum_gradient(flat_gradient(self.policy))
            norm = apply_gradient(self.policy, self.optimizer, gradient, lr=lr, grad_clip=optim.grad_clip)
        self.updates_done = step + 1
        if self.engine is not None:
            if self.accelerator.device.type == "cuda":
                torch.cuda.empty_cache()  # what the trainer only holds in reserve, the KV cache needs
            self.engine.resume()
        packed = Mean(float(sum(batch.num_tokens for batch in batches)), 1)
        summed |= {"train/tokens": packed, "train/skipped_groups": Mean(float(len(groups) - len(moving)), 1)}
        summed |= {"train/padded_tokens": Mean(float(rollout_metrics.padded_tokens(moving)), 1)}
        totals = self._sum_over_ranks(summed)
        for name in ("train/tokens", "train/skipped_groups", "train/padded_tokens"):
            totals[name] = Mean(totals[name].total, 1)
        return {**totals, "optim/lr": lr, "optim/grad_norm": norm, "time/update": time.perf_counter() - started}

    def evaluate(self, step: int) -> dict[str, Mean | float | int]:
        """Accuracy on eval.data after `step` updates, when it is time for it; every rank takes its share."""
        cfg = self.config.eval
        if cfg.every == 0 or step % cfg.every != 0 or self.publisher is None or self.engine is None:
            return {}
        self.publisher.publish(step)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        result = evaluate_problems(
            self.engine,
            self.verifier,
            self.inputs.eval_problems[rank::world],
            num_samples=cfg.num_samples,
            settings=self._settings(temperature=cfg.temperature, limit=cfg.max_response_tokens),
            decode=self._decode,
            on_progress=self._on_rollouts,
        )
        rollouts: list[Rollout] = [rollout for group in result.groups for rollout in group]
        num = len(rollouts)
        return {
            **self._sum_over_ranks(
                {
                    "eval/accuracy": Mean(sum(rollout.reward for rollout in rollouts), num),
                    "eval/truncated": Mean(sum(rollout.finish_reason == "length" for rollout in rollouts), num),
                }
            )
        }

    def log(
        self, step: int, metrics: Mapping[str, Mean | float | int], groups: Sequence[Group], *, seconds: float
    ) -> None:
        """metrics.jsonl, rollouts/, TensorBoard, wandb and the terminal."""
        lines = gather_object([line for group in groups for line in rollout_metrics.to_lines(group, self._decode)])
        self.logged_step = step
        if not self.accelerator.is_main_process:
            return
        row = metric_table.to_row({**metrics, "step": step, "time/step": seconds})
        self.folder.write_rollouts(step, lines)
        self.folder.append_metrics(row)
        for logger in self.loggers:
            logger.log(row, step)
        self.display.step(row)
        if self.config.run.deterministic and row["verdict/timeout"]:
            self.display.message(f"step {step}: a verdict timed out, so this run may not be repeatable bit for bit")

    def save(self, step: int) -> None:
        rng_states = gather_object([torch.get_rng_state()])
        self._write_checkpoint(step, rng_states)
        self.accelerator.wait_for_everyone()

    def save_before_leaving(self) -> None:
        """Keep the steps since the last checkpoint, if the policy is still as it was when the last of them was logged.

        Several processes may not be at the same step; they go back to the last checkpoint.
        """
        is_whole = self.logged_step == self.updates_done and self.logged_step > self.saved_step
        if self.accelerator.num_processes == 1 and is_whole:
            self._write_checkpoint(self.logged_step, [torch.get_rng_state()])

    def finish(self) -> Path:
        """Leave the trained adapter where export and evaluation look for it."""
        if self.accelerator.is_main_process:
            self.folder.replace("adapter", self.policy.save_adapter)
            self.display.message(f"adapter: {self.folder.path / 'adapter'}")
        self.accelerator.wait_for_everyone()
        return self.folder.path

    def _write_checkpoint(self, step: int, rng_states: list[torch.Tensor]) -> None:
        for logger in self.loggers:
            logger.flush()
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.folder.checkpoints,
                policy=self.policy,
                optimizer=self.optimizer,
                rng_states=rng_states,
                state={"step": step, "adapter_version": step, "data_cursor": step, **self.identity},
                keep=self.config.train.keep_checkpoints,
            )
        self.saved_step = step

    def _start_engine(self, stack: contextlib.ExitStack) -> RolloutEngine:
        local = self.accelerator.local_process_index
        engine = start_engine(
            self.config,
            max_model_len=self.inputs.max_model_len,
            log_path=self.folder.path / f"engine-{self.accelerator.process_index}.log",
            device_index=local if self.accelerator.device.type == "cuda" else None,
        )
        stack.callback(engine.close)
        return engine

    def _make_publisher(self) -> Publisher | None:
        if self.engine is None:
            return None
        base = self.policy.model.config
        return Publisher(
            self.engine,
            self.policy,
            scratch=self.folder.path / f".publishing-{self.accelerator.process_index}",
            vocab_size=base.vocab_size,
            num_tokens=self.config.rollout.probe_tokens,
            max_length=self.inputs.max_model_len,
        )

    def _sampler(self) -> Sampler:
        return Sampler(
            self.engine,
            self.verifier,
            micro_groups=self.algorithm.micro_groups,
            settings=self.inputs.settings,
            decode=self._decode,
            is_boundary=is_boundary_fn(self.inputs.tokenizer),
        )

    def _settings(self, *, temperature: float, limit: int | None) -> SamplingSettings:
        settings = self.inputs.settings
        return replace(settings, temperature=temperature, max_response_tokens=limit or settings.max_response_tokens)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self.inputs.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _on_rollouts(self, done: int, expected: int) -> None:
        self.signals.check()
        self.display.rollouts(done, expected)

    def _sum_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        summed = self.accelerator.reduce(gradient, reduction="sum")
        assert isinstance(summed, torch.Tensor)
        return summed

    def _sum_over_ranks(self, metrics: Mapping[str, Mean]) -> dict[str, Mean]:
        summed: dict[str, Mean] = {}
        for share in gather_object([dict(metrics)]):
            summed = metric_table.add(summed, share)
        return summed

    def _start_line(self) -> str:
        world, device = self.accelerator.num_processes, self.accelerator.device.type
        begin = f"going on after step {self.first_step}" if self.first_step else "starting"
        return f"{self.folder.path}: {begin}; {world} process{'es' if world > 1 else ''} on {device}"
