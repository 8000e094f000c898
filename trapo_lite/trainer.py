"""The loop: publish, sample groups, advantages, pack, update, log, save, evaluate.

`train` reads like the paper's figure; `_Run` holds what the stages share. Which algorithm runs is data (`algorithm`).
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from trapo_lite import rollout_metrics
from trapo_lite.algorithm import Algorithm, make_group
from trapo_lite.checkpoint import (
    Checkpoint,
    find_checkpoint,
    require_same,
    restore_checkpoint,
    save_checkpoint,
    set_aside_after,
)
from trapo_lite.config import Config
from trapo_lite.data import batch_indices, is_boundary_fn, text_of
from trapo_lite.display import Display
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.engines.start import start_engine
from trapo_lite.evaluation import evaluate_problems
from trapo_lite.identity import run_identity
from trapo_lite.inputs import read_inputs, sampling_settings
from trapo_lite.launch import Stopped, StopSignals, check_world_size, set_threads
from trapo_lite.log_book import LogBook
from trapo_lite.policy import Policy
from trapo_lite.publishing import Publisher
from trapo_lite.ranks import Ranks
from trapo_lite.reward import MathVerifier
from trapo_lite.run_folder import RunFolder
from trapo_lite.sampler import Sampler, Schedule
from trapo_lite.schedule_choice import choose_schedule
from trapo_lite.tree import Group
from trapo_lite.types import Mean
from trapo_lite.update import learning_rate, make_optimizer, update_policy

Metrics = dict[str, Mean | float | int]


def train(config: Config, *, restart: bool = False) -> Path:
    """Run, or go on with, the run in `config.run.folder`; returns the folder. Raises Stopped on SIGTERM or SIGINT."""
    with contextlib.ExitStack() as stack:
        run = _Run(config, stack, restart=restart)
        if run.is_complete:
            return run.folder.path
        with run.keeping_what_is_done():
            for step in range(run.first_step, config.train.max_steps):
                started = time.perf_counter()
                metrics = run.publish(step)
                groups, sampled = run.sample(step)
                metrics |= sampled | run.update(step, groups)
                metrics |= run.evaluate(step + 1)
                run.log(step + 1, metrics, groups, seconds=time.perf_counter() - started)
                if (step + 1) % config.train.save_every == 0 or step + 1 == config.train.max_steps:
                    run.save(step + 1)
        return run.finish()


class _Run:
    """One process's share of a run: policy, engine, verifier and where things are written."""

    def __init__(self, config: Config, stack: contextlib.ExitStack, *, restart: bool) -> None:
        self.config = config
        set_threads(config)
        self.ranks = Ranks()
        check_world_size(self.ranks.count)
        self.inputs = read_inputs(config)
        self.algorithm = Algorithm.from_config(
            config.algorithm,
            tis_cap=config.rollout.tis_cap,
            sequence_bound=config.rollout.sequence_bound,
            max_response_tokens=config.rollout.max_response_tokens,
        )
        self.folder = RunFolder(config.run.folder)
        if self.ranks.is_main:
            self.folder = stack.enter_context(RunFolder.open(config, restart=restart))
        self.ranks.wait()
        checkpoint, damaged = self._find_checkpoint()
        self.first_step = self.saved_step = checkpoint.step if checkpoint else 0
        self.whole_step: int | None = None  # the step that was logged last, unless the policy has moved since
        self.rng_states: list[torch.Tensor] = []
        self.chosen_schedule: Schedule | None = None
        self.display = stack.enter_context(
            Display(
                title=config.run.name,
                max_steps=config.train.max_steps,
                first_step=self.first_step,
                is_main=self.ranks.is_main,
            )
        )
        for line in [*damaged, *self.inputs.report.lines(), self._start_line()]:
            self.display.message(line)
        self.is_complete = (
            checkpoint is not None
            and checkpoint.step >= config.train.max_steps
            and self.folder.holds_adapter_of(checkpoint.folder)
        )
        if self.is_complete:
            self.display.message(
                f"{self.folder.path} is complete: {self.first_step} steps done, train.max_steps is "
                f"{config.train.max_steps}; raise it to go on, or start over with --restart"
            )
        else:
            self._load(checkpoint, stack)

    def _find_checkpoint(self) -> tuple[Checkpoint | None, list[str]]:
        """Where to go on from, and a line for every damaged checkpoint; lines about later steps are forgotten."""
        checkpoint, damaged = find_checkpoint(self.folder.checkpoints)
        self.identity = run_identity(
            self.config, data_fingerprint=self.inputs.report.fingerprint, num_processes=self.ranks.count
        )
        if checkpoint is not None:
            require_same(checkpoint, self.identity)
        self.ranks.wait()  # until all have looked, before anything moves
        if self.ranks.is_main:
            step = checkpoint.step if checkpoint else 0
            self.folder.write_config(self.config)
            self.folder.cut_back(step)
            set_aside_after(self.folder.checkpoints, step)
        return checkpoint, damaged

    def _load(self, checkpoint: Checkpoint | None, stack: contextlib.ExitStack) -> None:
        """Verifier, engine, policy, optimizer, loggers."""
        config = self.config
        for line in self.folder.outdated():
            self.display.message(line)
        patience = "; vLLM takes about half a minute" if config.rollout.engine == "vllm" else ""
        self.display.message(f"starting the verifier, the engine and the model{patience}")
        self.verifier = stack.enter_context(MathVerifier.from_config(config.reward))
        self.engine = self._start_engine(stack) if config.algorithm.samples or self.inputs.eval_problems else None
        torch.manual_seed(config.run.seed)
        self.policy = Policy.load(config.model, config.lora, device=self.ranks.device)
        self.optimizer = make_optimizer(config.optim, self.policy.parameters)
        self.optimizer.register_step_pre_hook(self._is_moving)
        if checkpoint is not None:
            restore_checkpoint(checkpoint, policy=self.policy, optimizer=self.optimizer, rank=self.ranks.index)
        self.ranks.require_equal(self.policy.parameters, what="the adapter")
        self.publisher = self._make_publisher()
        if self.ranks.is_main:
            self.log_book = stack.enter_context(
                LogBook(config, self.folder, self.display, first_step=self.first_step + 1)
            )
        self.signals = StopSignals()
        stack.callback(self.signals.restore)

    def publish(self, step: int) -> Metrics:
        """Give the engine the policy as it is after `step` updates."""
        if self.publisher is None or self.engine is None or not self.config.algorithm.samples:
            return {}
        result = self.publisher.publish(step)
        could_tell = result.kind == "applied"
        return {
            "time/publish": self.publisher.publish_seconds,
            "time/score": self.publisher.probe_seconds,
            "engine/publish_bytes": self.engine.publish_bytes,
            "engine/probe_projection": result.projection if could_tell else float("nan"),
            "engine/probe_undecided": int(not could_tell),
        }

    def sample(self, step: int) -> tuple[list[Group], Metrics]:
        """This rank's share of the step's problems, rolled out, graded and turned into advantages."""
        indices = batch_indices(
            step,
            batch_size=self.config.rollout.num_problems,
            num_problems=len(self.inputs.problems),
            seed=self.config.run.seed,
        )
        rollouts, report = self._sampler().sample(
            [self.inputs.problems[index] for index in self.ranks.share(indices)],
            step=step,
            on_progress=self._on_rollouts,
        )
        self._leave_if_told()
        groups = [make_group(self.algorithm, group) for group in rollouts]
        shares = {
            "rollout/discarded": Mean(report.num_discarded, report.num_requests),
            "rollout/cached": Mean(report.num_cached_tokens, report.num_prompt_tokens),
        }
        metrics = self.ranks.sum_metrics(rollout_metrics.describe(groups) | shares)
        sampled = metrics["rollout/completion_tokens"].total
        engine_seconds, verdict_seconds, first_poll = self.ranks.largest(
            [report.engine_seconds, report.verdict_seconds, report.first_poll_seconds]
        )
        to_first_token = first_poll + (self.publisher.publish_seconds if self.publisher else 0.0)
        return groups, {
            **metrics,
            "time/sample": engine_seconds,
            "time/verdicts": verdict_seconds,
            "time/first_token": to_first_token if report.num_requests else float("nan"),
            "speed/sampled_tokens_per_second": sampled / engine_seconds if engine_seconds else float("nan"),
        }

    def update(self, step: int, groups: Sequence[Group]) -> Metrics:
        """Gradient of the step's loss over all ranks, then the optimizer; the engine's cache makes room meanwhile."""
        started = time.perf_counter()
        optim = self.config.optim
        with self._engine_asleep():
            metrics = update_policy(
                self.policy,
                self.optimizer,
                self.algorithm,
                groups,
                self.ranks,
                lr=learning_rate(optim, step=step, max_steps=self.config.train.max_steps),
                grad_clip=optim.grad_clip,
                num_updates=optim.updates_per_batch,
                temperature=self.config.rollout.temperature,
                tokens_per_batch=self.config.train.tokens_per_batch,
            )
        return {**metrics, "time/update": time.perf_counter() - started}

    def evaluate(self, step: int) -> Metrics:
        """Accuracy on eval.data after `step` updates, when it is time for it; every rank takes its share."""
        cfg = self.config.eval
        if cfg.every == 0 or step % cfg.every != 0 or self.publisher is None or self.engine is None:
            return {}
        started = time.perf_counter()
        self.publisher.publish(step)
        result = evaluate_problems(
            self.engine,
            self.verifier,
            self.ranks.share(self.inputs.eval_problems),
            num_samples=cfg.num_samples,
            settings=sampling_settings(self.config, self.inputs.tokenizer, for_eval=True),
            decode=self._decode,
            on_progress=self._on_rollouts,
        )
        return {**self.ranks.sum_metrics(result.metrics()), "time/eval": time.perf_counter() - started}

    def log(self, step: int, metrics: Mapping[str, Mean | float | int], groups: Sequence[Group], *, seconds: float):
        """metrics.jsonl, rollouts/, TensorBoard, wandb and the terminal."""
        lines = self.ranks.gather(
            [line for group in groups for line in rollout_metrics.to_lines(group, self._decode_all)]
        )
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
            self.folder.replace("adapter", self.policy.save_adapter)
            self.display.message(f"done: {self.config.train.max_steps} steps; adapter: {self.folder.path / 'adapter'}")
            self.display.message(f"next: python scripts/export.py --run {self.folder.path}  (a merged checkpoint)")
        self.ranks.wait()
        return self.folder.path

    def _write_checkpoint(self, step: int) -> None:
        if self.ranks.is_main:
            self.log_book.flush()
            save_checkpoint(
                self.folder.checkpoints,
                policy=self.policy,
                optimizer=self.optimizer,
                rng_states=self.rng_states,
                state={"step": step, "adapter_version": step, "data_cursor": step, **self.identity},
                keep=self.config.train.keep_checkpoints,
            )
        self.saved_step = step

    def _start_engine(self, stack: contextlib.ExitStack) -> RolloutEngine:
        engine = start_engine(
            self.config,
            max_model_len=self.inputs.max_model_len,
            log_path=self.folder.path / f"engine-{self.ranks.index}.log",
            device_index=self.ranks.local_index if self.ranks.device.type == "cuda" else None,
            notify=self._announce,
        )
        stack.callback(engine.close)
        return engine

    @contextlib.contextmanager
    def _engine_asleep(self) -> Iterator[None]:
        """Inside, the memory of the engine's cache is the trainer's. Publishing probes the engine once it is awake."""
        if self.engine is None or not self.config.rollout.colocate:
            yield
            return
        self.engine.release()
        yield
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()  # what the trainer only holds in reserve, the KV cache needs
        self.engine.resume()

    def _make_publisher(self) -> Publisher | None:
        if self.engine is None:
            return None
        return Publisher(
            self.engine,
            self.policy,
            scratch=self.folder.path / f".publishing-{self.ranks.index}",
            vocab_size=self.policy.model.config.vocab_size,
            num_tokens=self.config.rollout.probe_tokens,
            max_length=self.inputs.max_model_len,
        )

    def _sampler(self) -> Sampler:
        return Sampler(
            self.engine,
            self.verifier,
            micro_groups=self.algorithm.micro_groups,
            settings=sampling_settings(self.config, self.inputs.tokenizer, schedule=self._schedule()),
            decode=self._decode,
            is_boundary=is_boundary_fn(self.inputs.tokenizer),
        )

    def _schedule(self) -> Schedule:
        """What `auto` stands for, measured once: every rank follows the first one's choice."""
        if self.chosen_schedule is None:
            choice = None
            if self.config.rollout.schedule == "auto" and self.engine is not None and self.ranks.is_main:
                choice = choose_schedule(
                    self.engine,
                    self.inputs.problems[: max(1, self.config.rollout.num_problems // self.ranks.count)],
                    micro_groups=self.algorithm.micro_groups,
                    settings=sampling_settings(self.config, self.inputs.tokenizer),
                )
                self.display.message(choice.reason)
            choice = self.ranks.gather([choice])[0]
            self.chosen_schedule = choice.schedule if choice else "pipelined"
        return self.chosen_schedule

    def _decode(self, token_ids: Sequence[int]) -> str:
        return text_of(self.inputs.tokenizer, token_ids)

    def _decode_all(self, token_ids: Sequence[int]) -> str:
        return text_of(self.inputs.tokenizer, token_ids, with_special=True)

    def _announce(self, line: str) -> None:
        if self.ranks.is_main:
            self.display.message(line)
        else:
            print(f"rank {self.ranks.index}: {line}", file=sys.stderr, flush=True)

    def _is_moving(self, *_: object) -> None:
        self.whole_step = None

    def _on_rollouts(self, done: int, expected: int) -> None:
        self._leave_if_told()
        self.display.rollouts(done, expected)

    def _leave_if_told(self) -> None:
        if self.ranks.is_main:
            self.signals.check()

    def _start_line(self) -> str:
        world, device = self.ranks.count, self.ranks.device.type
        begin = f"going on after step {self.first_step}" if self.first_step else "starting"
        return f"{self.folder.path}: {begin}; {world} process{'es' if world > 1 else ''} on {device}"
