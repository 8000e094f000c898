"""Run the training loop: publish, sample groups, compute advantages, pack, update, evaluate, log, save.

`train` is the paper's figure as code. `Run` prepares it; `training/rollouts` has engine and verifier, `training/update`
the optimizer, `training/progress` the checkpoints. The algorithm is data (`core/algorithm`).
"""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from trapo_lite.config import Config
from trapo_lite.config.unusual import unusual_lines
from trapo_lite.core.in_words import counted
from trapo_lite.core.types import Mean
from trapo_lite.data.chat import prompt_line
from trapo_lite.data.tokens import texts_of
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.engines.start import start_engine
from trapo_lite.engines.vllm.options import round_up_lora_rank
from trapo_lite.exporting.model_card import adapter_card
from trapo_lite.model.adapter_config import read_config
from trapo_lite.model.base import model_lines, model_shape
from trapo_lite.model.policy import Policy
from trapo_lite.model.threads import set_threads, thread_lines
from trapo_lite.planning.memory import checkpoint_bytes, require_fits
from trapo_lite.run import device
from trapo_lite.run.calling import command
from trapo_lite.run.display import Display
from trapo_lite.run.environment import start_line
from trapo_lite.run.folder import RunFolder
from trapo_lite.run.launch import StopSignals
from trapo_lite.run.lines import with_time
from trapo_lite.run.processes import Ranks
from trapo_lite.run.step_log import LogBook
from trapo_lite.training.checkpoint import restore_checkpoint
from trapo_lite.training.expert_loss import expert_loss
from trapo_lite.training.inputs import read_inputs, share_lines
from trapo_lite.training.progress import Progress
from trapo_lite.training.resume import find_start_point
from trapo_lite.training.rollouts import Metrics, RolloutStage
from trapo_lite.training.update import Updater


def train(
    config: Config,
    *,
    restart: bool = False,
    start_engine: Callable[..., RolloutEngine] = start_engine,
    make_updater: Callable[..., Updater] = Updater,
) -> Path:
    """Run or resume the run in `config.run.folder`, and return the folder. Raises Stopped on SIGTERM or SIGINT."""
    with contextlib.ExitStack() as stack:
        run = Run(config, stack, restart=restart)
        if not run.start.is_complete:
            rollouts, updater, progress = run.load(stack, start_engine=start_engine, make_updater=make_updater)
            with progress.kept(run.signals):
                for step in range(run.first_step, config.train.max_steps):
                    started = time.perf_counter()
                    run.phase(step, "publishing the adapter")
                    metrics = rollouts.publish(step)
                    run.phase(step, "sampling")
                    groups, replaced, sampled = rollouts.sample(step)
                    run.leave_if_told()
                    run.phase(step, "updating the policy")
                    with rollouts.engine_asleep():
                        metrics |= sampled | updater.update(step, groups)
                        run.phase(step, "evaluating")
                        loss, seconds = run.expert_loss(step + 1, updater)
                    metrics |= loss | run.answers(step + 1, rollouts, seconds)
                    run.phase(step, "logging and saving")
                    lines = rollouts.lines(step, groups) + rollouts.lines(step, replaced, replaced=True)
                    run.log(step + 1, metrics, lines, seconds=time.perf_counter() - started)
                    progress.step_is_logged(step + 1)
                    if (step + 1) % config.train.save_every == 0 or step + 1 == config.train.max_steps:
                        progress.save(step + 1)
            run.finish(updater.policy)
        run.ranks.close()
        return run.folder.path


class Run:
    """A Run owns one process's inputs, run folder and display."""

    def __init__(self, config: Config, stack: contextlib.ExitStack, *, restart: bool) -> None:
        # Last of all: a launcher stops this rank while it closes what it has, and its last message must still be said.
        self._restore_signals = stack.enter_context(contextlib.ExitStack())
        self.ranks = Ranks()
        self.display = stack.enter_context(
            Display(title=config.run.name, max_steps=config.train.max_steps, is_main=self.ranks.is_main)
        )
        if self.ranks.is_main:
            self.display.message(start_line())
        self.display.phase("reading the data and the run folder")
        self.inputs = read_inputs(config)
        self.config = config = self.inputs.config
        set_threads(config)
        self.folder = RunFolder(config.run.folder)
        if self.ranks.is_main:
            self.folder = stack.enter_context(RunFolder.open(config, restart=restart))
        self.ranks.wait()
        self.start = find_start_point(
            config,
            self.folder,
            self.ranks,
            prompt=self.inputs.prompt,
            data_fingerprint=self.inputs.fingerprint,
        )
        self.first_step = self.start.checkpoint.step if self.start.checkpoint else 0
        self.display.begin(self.first_step)
        notes = [
            *self.folder.notes,
            *self.start.notes,
            *unusual_lines(config),
            *model_lines(config.model),
            *self.inputs.rope_lines,
            *thread_lines(config, num_engines=self.ranks.count),
        ]
        data = [*self.inputs.report.lines(), *share_lines(config, self.inputs.order)]
        prompt = prompt_line(config.data, self.inputs.tokenizer, stop_ids=self.inputs.stop_ids)
        for line in [*notes, *data, prompt, self._start_line()]:
            self.display.message(line)

    def load(
        self,
        stack: contextlib.ExitStack,
        *,
        start_engine: Callable[..., RolloutEngine],
        make_updater: Callable[..., Updater],
    ) -> tuple[RolloutStage, Updater, Progress]:
        """Start verifier and engine, and load the policy in the state of the newest checkpoint."""
        config, ranks = self.config, self.ranks
        for line in self.folder.outdated():
            self.display.message(line)
        self._require_memory()
        self.display.message(self._loading_line())
        self.display.phase("starting the reward functions, the engine and the model")
        self.log_book = ranks.on_main(lambda: stack.enter_context(self._log_book()), elsewhere=None)
        limit = config.rollout.max_response_tokens
        algorithm_at = functools.partial(config.algorithm.build_at, max_response_tokens=limit)
        rollouts = RolloutStage(
            config,
            self.inputs,
            algorithm_at,
            ranks,
            folder=self.folder.path,
            stack=stack,
            start_engine=start_engine,
            on_progress=self._on_rollouts,
            notify=self._announce,
        )
        torch.manual_seed(config.run.seed)
        shard = ranks.shard if ranks.is_sharding else None
        policy = Policy.load(
            config.model,
            config.lora,
            device=ranks.device,
            layout=self.inputs.layout,
            shard=shard,
            notify=self.display.message,
        )
        if config.model.layout == "auto" and self.start.had_rows and policy.layout == "tree":
            policy.take_rows()
            self.display.message("layout: rows, as before: the packing check failed earlier in this run")
        updater = make_updater(config, policy, algorithm_at, ranks, announce=self._announce)
        if self.start.checkpoint is not None:
            restore_checkpoint(self.start.checkpoint, policy=policy, optimizer=updater.optimizer, rank=ranks.index)
            rollouts.utility.restore(self.start.checkpoint.state)
        ranks.require_equal(policy.adapter.parameters, what="the adapter")
        rollouts.attach(policy)
        progress = Progress(
            self.folder,
            ranks,
            policy=policy,
            optimizer=updater.optimizer,
            identity=self.start.identity,
            keep=config.train.keep_checkpoints,
            first_step=self.first_step,
            memory=rollouts.utility.to_json,
            flush=self._flush_logs,
            announce=self.display.message,
        )
        self.signals = StopSignals()  # before this line, Ctrl-C ends the process at once
        self._restore_signals.callback(self.signals.restore)
        return rollouts, updater, progress

    def _log_book(self) -> LogBook:
        """Start the trackers, before what takes minutes to load."""
        needed = checkpoint_bytes(self.config, model_shape(self.config).adapter_parameters)
        return LogBook(self.config, self.folder, self.display, first_step=self.first_step + 1, checkpoint_bytes=needed)

    def _flush_logs(self) -> None:
        if self.log_book is not None:
            self.log_book.flush()

    def _require_memory(self) -> None:
        """Raise an error if the plan says that a step does not fit this rank's GPU."""
        config, memory = self.config, device.total_memory(self.ranks.device)
        if config.train.check_memory and memory is not None:
            num_shards = self.ranks.count if self.ranks.is_sharding else 1
            planned = self.inputs.layout.written_out(config)
            require_fits(planned, model_shape(config), gpu_memory=memory, num_shards=num_shards)

    def log(
        self,
        step: int,
        metrics: Mapping[str, Mean | float | int],
        lines: Sequence[Mapping[str, object]],
        *,
        seconds: float,
    ) -> None:
        """Write metrics.jsonl, rollouts/, TensorBoard, wandb and the terminal; `lines` are this rank's rollouts."""
        lines = self.ranks.gather(list(lines))
        if self.log_book is not None:
            self.log_book.write(step, metrics, lines, seconds=seconds)

    def expert_loss(self, step: int, updater: Updater) -> tuple[Metrics, float]:
        """Return the loss on expert solutions of eval.data after `step` updates, if it is due, and its seconds."""
        if not self.config.eval.is_due(step):
            return {}, 0.0
        started, temperature = time.perf_counter(), self.config.rollout.temperature
        loss = expert_loss(updater.policy, self.inputs.eval_problems, updater.budget, temperature, self.ranks)
        return dict(loss), time.perf_counter() - started

    def answers(self, step: int, rollouts: RolloutStage, seconds: float) -> Metrics:
        """Answer the problems of eval.data after `step` updates, if it is due. The evaluation took `seconds` so far."""
        if not self.config.eval.is_due(step):
            return {}
        started = time.perf_counter()
        return rollouts.evaluate(step) | {"time/eval": seconds + time.perf_counter() - started}

    def phase(self, step: int, text: str) -> None:
        """Say what the run does now, for the display; `step` updates are done."""
        self.display.step_phase(step + 1, text)

    def finish(self, policy: Policy) -> None:
        """Write the trained adapter to the folder that export and evaluation read."""
        if self.ranks.is_main:
            self.folder.replace("adapter", lambda folder: self._write_adapter(policy, folder))
            run, problems = self.folder.path, "" if self.config.eval.data else " --data FILE"
            most, done = self.config.train.max_steps, max(self.config.train.max_steps, self.first_step)
            if done > most:
                self.display.message(f"warning: train.max_steps is {most}, and more are done, so nothing was trained")
            self.display.message(f"done: {counted(done, 'step')}; adapter: {run / 'adapter'}")
            self.display.message(f"next: {command('report')} {run}  (a page to look at it)")
            self.display.message(f"next: {command('evaluate')} --run {run}{problems}  (its accuracy)")
            self.display.message(f"next: {command('export')} --run {run}  (a merged checkpoint)")
        self.ranks.wait()

    def leave_if_told(self) -> None:
        """Raise Stopped if this process was asked to stop."""
        if self.ranks.is_main:
            self.signals.check()

    def _write_adapter(self, policy: Policy, folder: Path) -> None:
        policy.adapter.save(folder)
        config, tokenizer = self.config, self.inputs.tokenizer
        card = adapter_card(
            model=config.model,
            adapter=read_config(folder, option="run").fields,
            data=config.data,
            ends=texts_of(tokenizer, self.inputs.stop_ids),
            max_rank=round_up_lora_rank(config.lora.r),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _on_rollouts(self, done: int, expected: int) -> None:
        self.leave_if_told()
        self.display.rollouts(done, expected)

    def _announce(self, line: str) -> None:
        if self.ranks.is_main:
            self.display.message(line)
        else:
            text = with_time(f"rank {self.ranks.index}: {line}", is_plain=not sys.stderr.isatty())
            print(text, file=sys.stderr, flush=True)

    def _loading_line(self) -> str:
        minutes = "some minutes" if self.ranks.device.type == "cuda" else "about half a minute"
        patience = f"; vLLM takes {minutes}" if self.config.rollout.engine == "vllm" else ""
        return f"starting the verifier, the engine and the model{patience}"

    def _start_line(self) -> str:
        if self.start.is_complete:
            return (
                f"{self.folder.path} is complete: {counted(self.first_step, 'step')} done, train.max_steps is "
                f"{self.config.train.max_steps}; raise it above {self.first_step} to train further, or start again "
                "with --restart"
            )
        world, device = self.ranks.count, self.ranks.device.type
        action = f"resuming after step {self.first_step}" if self.first_step else "starting"
        return f"{self.folder.path}: {action}; {world} process{'es' if world > 1 else ''} on {device}"
