"""Define the charts of a page: which metrics stand together, and in what words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Chart:
    """A Chart draws metrics over the steps.

    series:  metric -> its name in the legend; a name that ends in _N stands for all micro-groups
    unit:    of the vertical axis
    is_area: whether the series are parts of a whole, stacked
    is_log:  whether the vertical axis is logarithmic
    is_share: whether it goes from 0 to 1
    advice:  what to look for, in one sentence
    """

    title: str
    unit: str
    series: Mapping[str, str]
    advice: str
    is_area: bool = False
    is_log: bool = False
    is_share: bool = False


CHARTS = (
    Chart(
        "Reward",
        "mean reward",
        {"reward/own": "by itself", "reward/guided": "with a prefix", "reward/expert": "whole expert solutions"},
        "What the policy earns by itself should rise; with a prefix it should earn more than without.",
    ),
    Chart(
        "Evaluation during training",
        "share correct",
        {"eval/accuracy": "accuracy"},
        "Accuracy on the problems of eval.data, which are not trained.",
        is_share=True,
    ),
    Chart(
        "Loss on held-out expert solutions",
        "nats a token",
        {"eval/expert_loss": "eval.data"},
        "Where it rises again, imitation has learned enough.",
    ),
    Chart(
        "Rollouts with help, by micro-group",
        "share",
        {"rollout/helped_N": "micro-group"},
        "Help should become rarer as the policy solves problems by itself.",
        is_share=True,
    ),
    Chart(
        "Problems",
        "share of problems",
        {
            "rollout/solved_groups": "all rollouts right",
            "rollout/failed_groups": "all rollouts wrong",
            "rollout/uniform_groups": "all rewards equal",
        },
        "A problem whose rewards are all equal teaches RL nothing.",
        is_share=True,
    ),
    Chart(
        "Verdicts",
        "share of rollouts",
        {
            "verdict/correct": "correct",
            "verdict/wrong": "wrong",
            "verdict/no_answer": "no answer",
            "verdict/timeout": "timed out",
            "verdict/crash": "crashed",
            "verdict/unjudged": "unjudged",
            "verdict/failed": "failed",
        },
        "Answers that the verifier cannot read count as wrong.",
        is_area=True,
        is_share=True,
    ),
    Chart(
        "Length",
        "tokens",
        {"rollout/completion_tokens": "own tokens", "rollout/prefix_tokens": "prefix"},
        "Own tokens of a rollout, and expert tokens of a guided one.",
    ),
    Chart(
        "Cut at the length limit",
        "share of completions",
        {"rollout/truncated": "in training", "eval/truncated": "in evaluation"},
        "Above a tenth, raise rollout.max_response_tokens or look at rollout.truncated.",
        is_share=True,
    ),
    Chart(
        "Entropy",
        "nats",
        {"policy/entropy": "own tokens"},
        "A collapse to 0 means that all rollouts of a problem become the same.",
    ),
    Chart(
        "Losses",
        "per token",
        {"loss/completion": "own tokens", "loss/prefix": "prefixes", "loss/kl": "KL to the base"},
        "The loss on own tokens stays near 0 by construction; the prefix loss should fall.",
    ),
    Chart(
        "Utility of help",
        "probability that it raises the reward",
        {"utility/probability_N": "micro-group"},
        "Help is given less, and trained less, the likelier it is to harm.",
    ),
    Chart(
        "Gradient norm",
        "norm",
        {"optim/grad_norm": "before clipping"},
        "Where there is a gap, no problem taught anything.",
        is_log=True,
    ),
    Chart(
        "Mismatch of engine and trainer",
        "nats a token",
        {"mismatch/abs": "mean", "mismatch/p99": "99th percentile"},
        "Log-probs of the same tokens by both; a rise means that the engine serves something else.",
        is_log=True,
    ),
    Chart(
        "Speed",
        "tokens a second",
        {"speed/sampled_tokens_per_second": "sampled", "speed/trained_tokens_per_second": "trained"},
        "Tokens over the seconds of their stage.",
        is_log=True,
    ),
    Chart(
        "Time of a step",
        "seconds",
        {
            "time/sample": "sampling",
            "time/update": "update",
            "time/eval": "evaluation",
            "time/publish": "publishing",
            "time/score": "parity probe",
            "time/verdicts": "waiting for verdicts",
            "time/idle": "other",
        },
        "Where the time goes.",
        is_area=True,
    ),
    Chart("Memory", "GiB", {"memory/peak_gib": "peak of a process"}, "On a GPU, of tensors during the update."),
)


@dataclass(frozen=True)
class Drawn:
    """Drawn is a chart with the metrics that a run has of it: metric -> name in the legend."""

    chart: Chart
    series: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.chart), "series": self.series}


def drawn(rows_of_runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[Drawn]:
    """Return the charts of which some run has a value, with the metrics that have one."""
    values = [item for rows in rows_of_runs for row in rows for item in row.items() if item[1] is not None]
    measured = sorted({name for name, _ in values})
    not_zero = {name for name, value in values if value}
    charts = []
    for chart in CHARTS:
        series: dict[str, str] = {}
        for name, label in chart.series.items():
            if name.endswith("_N"):
                beginning = name.removesuffix("N")
                series |= {
                    each: f"{label} {each.removeprefix(beginning)}" for each in measured if each.startswith(beginning)
                }
            elif name in measured:
                series[name] = label
        if chart.is_area:  # a part that is always 0 cannot be seen
            series = {name: label for name, label in series.items() if name in not_zero}
        if series:
            charts.append(Drawn(chart, series))
    return charts
