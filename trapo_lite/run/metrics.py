"""Define the one table of metric names, and turn a step's metrics into a line of metrics.jsonl.

Every metric is a `Mean` (sum and count, added up over batches and ranks) or a plain number until it is written.
Without data it is null, never 0. docs/metrics.md shows the table to users.
"""

import math
import re
from collections.abc import Mapping

from trapo_lite.core.types import Mean

TABLE: dict[str, str] = {
    "step": "updates done when the line was written",
    "reward/mean": "mean reward of all rollouts, expert ones included",
    "reward/own": "mean reward of the first micro-group: the policy by itself; null if the schedule guides it",
    "reward/guided": "mean reward of guided rollouts that the policy completed",
    "reward/expert": "mean reward of whole expert traces",
    "reward/gain_by_help": "reward of guided less that of unguided rollouts, mean over problems with both",
    "reward/group_N": "mean reward of the rollouts of micro-group N, with and without help",
    "reward/helped_N": "mean reward of the rollouts of micro-group N that got help, whole expert traces included",
    "reward/none": "share of rollouts without a reward: a function of yours failed, or none returned a number",
    "score/NAME": "mean of what the reward function NAME returned, before its weight",
    "verdict/correct": "share of rollouts with this verdict of the first reward function: 1 or more",
    "verdict/wrong": "share of rollouts with this verdict: less than 1",
    "verdict/no_answer": "share of rollouts with this verdict: there was nothing to compare",
    "verdict/timeout": "share of rollouts with this verdict; above 0, the run may not be repeatable bit for bit",
    "verdict/crash": "share of rollouts with this verdict: the process that judged died",
    "verdict/unjudged": "share of rollouts with this verdict: your function returned None",
    "verdict/failed": "share of rollouts with this verdict: your function raised an error or returned no number",
    "rollout/guided": "share of rollouts that start from an expert prefix",
    "rollout/helped_N": "share of the rollouts of micro-group N that start from an expert prefix",
    "rollout/ratio_N": "mean share of the expert solution that these were given (prefix_ratio)",
    "rollout/solved_groups": "share of problems whose rollouts all succeeded",
    "rollout/failed_groups": "share of problems whose rollouts all failed",
    "rollout/uniform_groups": "share of problems whose rollouts all got the same reward, from which nothing is learned",
    "rollout/replaced": "share of the drawn problems that were given up for others (rollout.replace_uninformative)",
    "rollout/truncated": "share of completions cut at the length limit",
    "rollout/discarded": "share of the requests to the engine that verdicts made unnecessary (schedule: speculative)",
    "rollout/cached": "share of prompt and prefix tokens that the engine found in its prefix cache",
    "rollout/completion_tokens": "mean tokens of a completion",
    "rollout/prefix_tokens": "mean expert tokens of a guided rollout",
    "utility/gain_N": "estimated reward with the help of micro-group N less that without (algorithm.utility)",
    "utility/probability_N": "probability that this help raises the reward; it decides on the help of the next step",
    "loss/completion": "policy-gradient loss per own token, before its weight",
    "loss/prefix": "prefix loss per trained expert token, before its weight",
    "loss/completion_weight": "weight of the step, if it is a course over steps",
    "loss/prefix_weight": "weight of the step, if it is a course over steps",
    "loss/kl": "k3 estimate of KL(policy || reference) per own token",
    "teacher/divergence": "KL(policy || teacher) per own token, in nats, before the clip; sampled: its estimate",
    "teacher/clipped": "share of own tokens whose divergence is above algorithm.teacher.clip",
    "prefix/probability": "mean probability of trained expert tokens",
    "policy/entropy": "mean entropy at own tokens, nats",
    "mismatch/abs": "mean |log pi(trainer) - log pi(sampler)| at own tokens",
    "mismatch/p99": "99th percentile of the same over the step",
    "mismatch/masked": "share of own tokens whose rollout algorithm.sequence_bound masks",
    "mismatch/k3": "k3 estimate of KL(sampler || trainer) per own token",
    "optim/lr": "learning rate of the update",
    "optim/grad_norm": "norm of the gradient before clipping",
    "train/tokens": "packed tokens of the policy's forward passes, prompts and shared tokens once; no teacher's",
    "train/padded_tokens": "tokens of the same rollouts as rows padded to the longest of their group",
    "train/shared": "share of the tokens of the same rollouts, as rows without padding, that sharing saved",
    "train/padding": "share of the forward passes' tokens that are padding",
    "train/batches": "forward passes of the step, of all processes",
    "train/tflop": "10^12 operations of the step's forward and backward passes; recomputation is not counted",
    "train/tokens_per_batch": "token budget of a forward pass, lowered when memory ran out",
    "train/out_of_memory": "times the step was repeated with smaller batches because memory ran out",
    "train/skipped_groups": "problems that could not move the weights and cost no forward pass",
    "engine/probe_projection": "parity probe: 1 = the adapter is applied, 0 = it is not; null: too small to tell",
    "engine/probe_undecided": "1 if the adapter's effect was too small to be judged by size; the checksum was",
    "engine/probe_mismatch": "root mean square of log pi(engine) - log pi(trainer) on the probe, nats, merged or not",
    "engine/merged": "1 if the engine serves the adapter merged into its base (rollout.merge)",
    "engine/merge_kept": "share of the adapter's update that is left after merging and rounding; null: nothing merged",
    "engine/publish_bytes": "bytes of the published adapter",
    "time/publish": "seconds to hand the adapter to the engine, merging included",
    "time/score": "seconds of the parity probe, engine and trainer together",
    "time/sample": "seconds in the engine, of the slowest process",
    "time/verdicts": "most seconds that a process only waited for verdicts",
    "time/first_token": "seconds of time/publish and the first engine step, which samples first tokens; null: servers",
    "time/update": "seconds for forward, backward and optimizer",
    "time/eval": "seconds of the evaluation on eval.data, publishing included",
    "time/idle": "seconds of the step outside these stages: logging, waiting for others, the engine's sleep",
    "time/step": "seconds for the whole step",
    "time/unix": "when the line was written, in seconds since 1970-01-01 UTC; not in TensorBoard and wandb",
    "speed/sampled_tokens_per_second": "sampled tokens of all processes over time/sample",
    "speed/trained_tokens_per_second": "train/tokens, times optim.updates_per_batch, over time/update",
    "speed/flop_utilisation": "train/tflop over time/update, as a share of the GPUs' bfloat16 peak; null: not known",
    "memory/peak_gib": "most memory of a process: tensors on its GPU during the update, or resident on the CPU so far",
    "eval/accuracy": "share of answers on eval.data that the first reward function calls correct: 1 or more",
    "eval/reward": "mean reward of the answers on eval.data that have one",
    "eval/timeout": "share of evaluation answers whose verdict timed out",
    "eval/truncated": "share of evaluation answers cut at the length limit",
    "eval/expert_loss": "mean -log pi of a token of the expert solutions in eval.data, the first one of each problem",
}

STAGE_TIMES = ("time/publish", "time/score", "time/sample", "time/verdicts", "time/update", "time/eval")


def entry(name: str) -> str:
    """Return the table's name for a metric: with N for the number of a micro-group, NAME for a reward function.

    >>> entry("reward/group_2"), entry("reward/own"), entry("score/math")
    ('reward/group_N', 'reward/own', 'score/NAME')
    """
    if name.startswith("score/"):
        return "score/NAME"
    return re.sub(r"_[0-9]+$", "_N", name)


def to_row(metrics: Mapping[str, Mean | float | int]) -> dict[str, float | int | None]:
    """Return one line of metrics.jsonl: in table order, means divided out, null without data.

    >>> to_row({"reward/own": Mean(3.0, 4), "step": 7, "loss/prefix": Mean(0.0, 0)})
    {'step': 7, 'reward/own': 0.75, 'loss/prefix': None}

    Raises KeyError for a name that is not in the table.
    """
    unknown = sorted(name for name in metrics if entry(name) not in TABLE)
    if unknown:
        raise KeyError(f"metrics: {unknown} are not in metrics.TABLE; add them there")
    order = {name: position for position, name in enumerate(TABLE)}
    values = {name: metrics[name] for name in sorted(metrics, key=lambda name: order[entry(name)])}
    plain = {name: value.value if isinstance(value, Mean) else value for name, value in values.items()}
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in plain.items()}


def add(left: Mapping[str, Mean], right: Mapping[str, Mean]) -> dict[str, Mean]:
    """Return the sums of two sets of means, name by name."""
    return {name: left.get(name, Mean(0.0, 0)) + right.get(name, Mean(0.0, 0)) for name in [*left, *right]}
