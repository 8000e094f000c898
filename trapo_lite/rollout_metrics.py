"""What a step's rollouts look like: metrics of the group, and the line of the rollout log."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

from trapo_lite.tree import Group
from trapo_lite.types import Mean, VerdictKind


def describe(groups: Sequence[Group]) -> dict[str, Mean]:
    """Means over this rank's rollouts; names from `metrics.TABLE`."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    own = [r for r in rollouts if not r.is_guided]
    expert = [r for r in rollouts if r.finish_reason == "expert"]
    guided = [r for r in rollouts if r.is_guided and r.finish_reason != "expert"]
    sampled = [r for r in rollouts if r.finish_reason != "expert"]
    metrics = {
        "reward/mean": _mean([r.reward for r in rollouts]),
        "reward/own": _mean([r.reward for r in own]),
        "reward/guided": _mean([r.reward for r in guided]),
        "reward/expert": _mean([r.reward for r in expert]),
        "rollout/guided": _mean([r.is_guided for r in rollouts]),
        "rollout/solved_groups": _mean([all(r.reward == 1.0 for r in g.rollouts) for g in groups]),
        "rollout/failed_groups": _mean([all(r.reward == 0.0 for r in g.rollouts) for g in groups]),
        "rollout/truncated": _mean([r.finish_reason == "length" for r in sampled]),
        "rollout/completion_tokens": _mean([len(r.completion_ids) for r in sampled]),
        "rollout/prefix_tokens": _mean([len(r.prefix_ids) for r in rollouts if r.is_guided]),
    }
    for kind in get_args(VerdictKind):
        metrics[f"verdict/{kind}"] = _mean([r.verdict.kind == kind for r in rollouts])
    return metrics


def token_counts(groups: Sequence[Group], *, num_packed: int) -> dict[str, Mean | int]:
    """What the groups' rollouts cost as `num_packed` tokens of packed trees, and as rows."""
    rows = sum(len(r.prompt_ids) + len(r.response_ids) for g in groups for r in g.rollouts)
    return {
        "train/tokens": num_packed,
        "train/padded_tokens": padded_tokens(groups),
        "train/shared": Mean(float(rows - num_packed), rows),
    }


def padded_tokens(groups: Sequence[Group]) -> int:
    """Tokens of the same rollouts as rows padded to the longest of their group."""
    return sum(len(g.rollouts) * max(len(r.prompt_ids) + len(r.response_ids) for r in g.rollouts) for g in groups)


def to_lines(group: Group, decode: Callable[[Sequence[int]], str]) -> list[dict[str, Any]]:
    """A group's lines of rollouts/step-N.jsonl: text for people, token ids for machines."""
    return [
        {
            "problem_id": rollout.problem_id,
            "slot": rollout.slot,
            "prompt": decode(rollout.prompt_ids),
            "prefix": decode(rollout.prefix_ids),
            "completion": decode(rollout.completion_ids),
            "verdict": rollout.verdict.kind,
            "answer": rollout.verdict.answer,
            "reward": rollout.reward,
            "advantage": advantage,
            "finish_reason": rollout.finish_reason,
            "trace": rollout.trace,
            "train_prefix": rollout.train_prefix,
            "adapter_version": rollout.adapter_version,
            "prefix_ids": list(rollout.prefix_ids),
            "completion_ids": list(rollout.completion_ids),
            "completion_logprobs": list(rollout.completion_logprobs),
        }
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
    ]


def _mean(values: Sequence[float | int | bool]) -> Mean:
    return Mean(float(sum(values)), len(values))
