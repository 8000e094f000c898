"""Publish the policy, sample and grade a step's rollouts, and evaluate; this module owns engine and scorer."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trapo_lite.config import Config
from trapo_lite.core.algorithm import Algorithm, is_informative, make_group
from trapo_lite.core.types import Group, Mean
from trapo_lite.data.shown_prefix import prompt_maker
from trapo_lite.data.tokens import is_boundary_fn, text_of
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.engines.parity import text_sequences
from trapo_lite.evaluation.draws import evaluate_problems
from trapo_lite.model.policy import Policy
from trapo_lite.reward import Scorer
from trapo_lite.reward.expert_check import expert_lines
from trapo_lite.reward.start_check import start_lines
from trapo_lite.rollout import metrics as rollout_metrics
from trapo_lite.rollout.publisher import Publisher
from trapo_lite.rollout.sampler import sample_groups
from trapo_lite.rollout.settings import sampling_settings
from trapo_lite.run.processes import Ranks
from trapo_lite.training.inputs import Inputs
from trapo_lite.training.utility import UtilityState

Metrics = dict[str, Mean | float | int]


class RolloutStage:
    """A RolloutStage owns one rank's engine and scorer.

    It starts both when it is made, so that they load at the same time as the policy; `attach` then names the policy to
    serve.

    algorithm_at: returns the algorithm when so many updates are done
    start_engine: same signature as engines.start.start_engine
    on_progress:  called with (done, expected) rollouts during a phase; it may raise to end the phase
    notify:       called with a line on what is waited for, or on an engine that died and was restarted
    """

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        algorithm_at: Callable[[int], Algorithm],
        ranks: Ranks,
        *,
        folder: Path,
        stack: contextlib.ExitStack,
        start_engine: Callable[..., RolloutEngine],
        on_progress: Callable[[int, int], None],
        notify: Callable[[str], None],
    ) -> None:
        self.config, self.inputs, self.algorithm_at, self.ranks = config, inputs, algorithm_at, ranks
        self._on_progress, self._notify, self._folder = on_progress, notify, folder
        self._decode = partial(text_of, inputs.tokenizer)
        self._prompt_maker = functools.cache(partial(prompt_maker, config.data, inputs.tokenizer))
        self._gold_by_id = {problem.id: problem.answer for problem in inputs.problems}
        self.utility = UtilityState(config, inputs.problems)
        self.publisher: Publisher | None = None
        self.scorer = stack.enter_context(Scorer(config.reward, notify=notify))
        for line in ranks.on_main(self._reward_lines, elsewhere=[]):
            notify(line)
        self.engine = None
        if config.algorithm.ever_samples or inputs.eval_problems:
            self.engine = start_engine(
                config,
                max_model_len=config.longest_sequence,
                log_path=folder / f"engine-{ranks.index}.log",
                device_index=ranks.local_index if ranks.device.type == "cuda" else None,
                num_engines=ranks.count,
                most_sequences=most_sequences(
                    config, num_eval_problems=len(inputs.eval_problems), num_ranks=ranks.count
                ),
                notify=notify,
            )
            stack.callback(self.engine.close)

    def _reward_lines(self) -> list[str]:
        """Return what the reward functions say of expert solutions."""
        problems = self.inputs.problems
        lines = start_lines(self.config.reward, self.scorer, problems, self._decode)
        if self.inputs.eval_problems and self.config.reward.own_functions:
            in_eval = self.inputs.eval_problems
            lines += start_lines(self.config.reward, self.scorer, in_eval, self._decode, option="eval.data")
        if self.config.algorithm.needs_solutions:
            lines += expert_lines(self.scorer, problems, self._decode)
        return lines

    def attach(self, policy: Policy) -> None:
        """Serve this policy from now on; the engine must hold the base without an adapter."""
        if self.engine is not None:
            num_tokens, max_length = self.config.rollout.probe_tokens, self.config.longest_sequence
            self.publisher = Publisher(
                self.engine,
                policy,
                scratch=self._folder / f".publishing-{self.ranks.index}",
                text=text_sequences(self.inputs.problems, num_tokens=num_tokens, max_length=max_length),
                vocab_size=policy.model.config.vocab_size,
                num_tokens=num_tokens,
                max_length=max_length,
                base_tolerance=self.config.rollout.base_tolerance,
                merge=self.config.rollout.merge,
            )

    def publish(self, step: int) -> Metrics:
        """Give the engine the policy in the state after `step` updates; return metrics."""
        if self.publisher is None or self.engine is None or not self.config.algorithm.stage_at(step).samples:
            return {}
        result = self.publisher.publish(step)
        is_decided = result.kind == "applied"
        return {
            "time/publish": self.publisher.publish_seconds,
            "time/score": self.publisher.probe_seconds,
            "engine/publish_bytes": self.engine.publish_bytes,
            "engine/probe_projection": result.projection if is_decided else float("nan"),
            "engine/probe_undecided": int(not is_decided),
            "engine/probe_mismatch": result.mismatch,
            "engine/merged": int(self.publisher.is_merged),
            "engine/merge_kept": self.publisher.merge_kept,
        }

    def sample(self, step: int) -> tuple[list[Group], list[Group], Metrics]:
        """Sample and grade this rank's share of the step's problems.

        Return groups with advantages, those that others replaced (rollout.replace_uninformative), and metrics of all.
        """
        problems, algorithm = self.inputs.problems, self.algorithm_at(step)
        indices = self.inputs.order.batch(step)
        substitutes = self.inputs.order.substitutes(step, most=self.config.rollout.replace_uninformative)
        sampled, report = sample_groups(
            self.engine,
            self.scorer,
            [problems[index] for index in self.ranks.share(indices)],
            step=step,
            micro_groups=self.utility.schedule(step, algorithm.micro_groups),
            settings=sampling_settings(self.config, self.inputs.tokenizer),
            decode=self._decode,
            is_boundary=is_boundary_fn(self.inputs.tokenizer),
            show=self._prompt_maker(self.config.algorithm.stage_at(step).prefix_instruction),
            substitutes=[[problems[index] for index in others] for others in self.ranks.share(substitutes)],
            is_informative=lambda rollouts: is_informative(algorithm, make_group(algorithm, rollouts)),
            on_progress=self._on_progress,
        )
        self.scorer.require_success(self.ranks.gather([self.scorer.take_failures()]))
        groups = [make_group(algorithm, group) for group in sampled]
        replaced = [make_group(algorithm, group) for group in report.replaced]
        drawn = [*groups, *replaced]
        self.utility.learn(step, algorithm.micro_groups, [group.rollouts for group in drawn], self.ranks)
        shares = {
            "rollout/replaced": Mean(len(replaced), len(drawn)),
            "rollout/discarded": Mean(report.num_discarded, report.num_requests),
            "rollout/cached": Mean(report.num_cached_tokens, report.num_prompt_tokens),
        }
        metrics = self.ranks.sum_metrics(rollout_metrics.describe(drawn, algorithm.micro_groups) | shares)
        num_tokens = metrics["rollout/completion_tokens"].total
        engine_seconds, verdict_seconds, first_poll = self.ranks.largest(
            [report.engine_seconds, report.verdict_seconds, report.first_poll_seconds]
        )
        to_first_token = first_poll + (self.publisher.publish_seconds if self.publisher else 0.0)
        is_timed = report.num_requests and self.config.rollout.engine != "server"  # a server's poll samples nothing
        return (
            groups,
            replaced,
            {
                **metrics,
                **self.utility.metrics(step, algorithm.micro_groups),
                "time/sample": engine_seconds,
                "time/verdicts": verdict_seconds,
                "time/first_token": to_first_token if is_timed else float("nan"),
                "speed/sampled_tokens_per_second": num_tokens / engine_seconds if engine_seconds else float("nan"),
            },
        )

    def evaluate(self, step: int) -> Metrics:
        """Answer the problems of eval.data after `step` updates; every rank takes its share."""
        if self.publisher is None or self.engine is None:
            return {}
        self.publisher.publish(step)
        result = evaluate_problems(
            self.engine,
            self.scorer,
            self.ranks.share(self.inputs.eval_problems),
            num_samples=self.config.eval.num_samples,
            settings=sampling_settings(self.config, self.inputs.tokenizer, for_eval=True),
            decode=self._decode,
            on_progress=self._on_progress,
        )
        return dict(self.ranks.sum_metrics(result.metrics()))

    def lines(self, step: int, groups: Sequence[Group], *, replaced: bool = False) -> list[dict[str, Any]]:
        """Return this rank's lines of rollouts/step-N.jsonl. replaced: whether others replaced these problems."""
        to_lines = partial(
            rollout_metrics.to_lines,
            decode=partial(text_of, self.inputs.tokenizer, with_special=True),
            micro_groups=self.algorithm_at(step).micro_groups,
            replaced=replaced,
        )
        return [
            line for group in groups for line in to_lines(group, gold=self._gold_by_id[group.rollouts[0].problem_id])
        ]

    @contextlib.contextmanager
    def engine_asleep(self) -> Iterator[None]:
        """Give the memory of the engine's cache to the trainer inside the block; the next publish checks the engine."""
        if self.engine is None or not self.config.rollout.colocate:
            yield
            return
        self.engine.release()
        yield
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()  # the KV cache needs the memory that torch holds in reserve
        self.engine.resume()


def most_sequences(config: Config, *, num_eval_problems: int, num_ranks: int) -> int:
    """Return the most sequences that one rank's engine has at once, in a rollout phase or an evaluation.

    Schedule `speculative` may draw each rollout twice, with and without help.
    """
    per_problem = config.algorithm.largest_stage.group_size
    if config.rollout.schedule == "speculative":
        per_problem *= 2
    in_rollouts = math.ceil(config.rollout.num_problems / num_ranks) * per_problem
    in_eval = math.ceil(num_eval_problems / num_ranks) * config.eval.num_samples
    return max(in_rollouts, in_eval, 1)
