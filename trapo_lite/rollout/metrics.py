"""Describe a step's rollouts: metrics of the groups, and lines of the rollout log."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

from trapo_lite.core.micro_groups import MicroGroup, micro_group_of_slots
from trapo_lite.core.types import Group, Mean, Rollout, VerdictKind


def describe(groups: Sequence[Group], micro_groups: Sequence[MicroGroup]) -> dict[str, Mean]:
    """Return means over this rank's rollouts; their names are in `run/metrics.py`.

    reward/own is the mean of the first micro-group, in which every problem has equally many rollouts. A later
    micro-group is unguided only if the earlier ones succeeded, so the mean of all unguided rollouts would count easy
    problems more often.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    own = [r for r in rollouts if r.slot < micro_groups[0].num_rollouts]
    expert = [r for r in rollouts if r.finish_reason == "expert"]
    guided = [r for r in rollouts if r.is_guided and r.finish_reason != "expert"]
    sampled = [r for r in rollouts if r.finish_reason != "expert"]
    metrics = {
        "reward/mean": _mean_reward(rollouts),
        "reward/own": _mean_reward(own if micro_groups[0].prefix_ratio == 0.0 else []),
        "reward/guided": _mean_reward(guided),
        "reward/expert": _mean_reward(expert),
        "reward/gain_by_help": _mean(_gains_by_help(groups)),
        "reward/none": _mean([r.reward is None for r in rollouts]),
        "rollout/guided": _mean([r.is_guided for r in rollouts]),
        "rollout/solved_groups": _mean([all(r.verdict.is_correct for r in g.rollouts) for g in groups]),
        "rollout/failed_groups": _mean([not any(r.verdict.is_correct for r in g.rollouts) for g in groups]),
        "rollout/uniform_groups": _mean([len({r.reward for r in g.rollouts} - {None}) < 2 for g in groups]),
        "rollout/truncated": _mean([r.finish_reason == "length" for r in sampled]),
        "rollout/completion_tokens": _mean([len(r.completion_ids) for r in sampled]),
        "rollout/prefix_tokens": _mean([len(r.prefix_ids) + r.num_shown for r in rollouts if r.is_guided]),
    }
    for kind in get_args(VerdictKind):
        metrics[f"verdict/{kind}"] = _mean([r.verdict.kind == kind for r in rollouts])
    for name in dict.fromkeys(name for r in rollouts for name, _ in r.parts):
        values = [value for r in rollouts for part, value in r.parts if part == name and value is not None]
        metrics[f"score/{name}"] = _mean(values)
    return metrics | _describe_micro_groups(groups, micro_groups)


def _gains_by_help(groups: Sequence[Group]) -> list[float]:
    """Return the mean reward of guided less that of unguided rollouts, for each problem that has both."""
    gains = []
    for group in groups:
        drawn = [r for r in group.rollouts if r.finish_reason != "expert" and r.reward is not None]
        guided, alone = (_mean_reward([r for r in drawn if r.is_guided is helped]) for helped in (True, False))
        if guided.count and alone.count:
            gains.append(guided.value - alone.value)
    return gains


def _describe_micro_groups(groups: Sequence[Group], micro_groups: Sequence[MicroGroup]) -> dict[str, Mean]:
    """Return the means of each micro-group, numbered from 1, and its share of helped rollouts if it can give help."""
    metrics, indices = {}, micro_group_of_slots(micro_groups)
    for number, micro_group in enumerate(micro_groups, start=1):
        members = [r for group in groups for r in group.rollouts if indices[r.slot] == number - 1]
        metrics[f"reward/group_{number}"] = _mean_reward(members)
        if micro_group.prefix_ratio > 0.0:
            metrics[f"reward/helped_{number}"] = _mean_reward([r for r in members if r.is_guided])
            metrics[f"rollout/helped_{number}"] = _mean([r.is_guided for r in members])
            metrics[f"rollout/ratio_{number}"] = _mean([r.prefix_ratio for r in members if r.is_guided])
    return metrics


def token_counts(groups: Sequence[Group], *, num_packed: int) -> dict[str, Mean | int]:
    """Return how many tokens the groups' rollouts are as packed trees (`num_packed`), and as padded rows."""
    rows = sum(len(r.prompt_ids) + len(r.response_ids) for g in groups for r in g.rollouts)
    return {
        "train/tokens": num_packed,
        "train/padded_tokens": padded_tokens(groups),
        "train/shared": Mean(float(rows - num_packed), rows),
    }


def padded_tokens(groups: Sequence[Group]) -> int:
    """Return the number of tokens if each rollout were a row padded to the longest rollout of its group."""
    return sum(len(g.rollouts) * max(len(r.prompt_ids) + len(r.response_ids) for r in g.rollouts) for g in groups)


def to_lines(
    group: Group,
    decode: Callable[[Sequence[int]], str],
    *,
    gold: str,
    micro_groups: Sequence[MicroGroup],
    replaced: bool = False,
) -> list[dict[str, Any]]:
    """Return a group's lines of rollouts/step-N.jsonl: text for people, token ids for machines.

    gold:     the correct answer to the problem
    replaced: whether another problem replaced this one

    docs/metrics.md lists the fields.
    """
    indices = micro_group_of_slots(micro_groups)
    return [
        {
            "problem_id": rollout.problem_id,
            "replaced": replaced,
            "slot": rollout.slot,
            "micro_group": indices[rollout.slot] + 1,
            "ratio": rollout.prefix_ratio,
            "prompt": decode(rollout.prompt_ids),
            "prefix": decode(rollout.prefix_ids),
            "completion": decode(rollout.completion_ids),
            "verdict": rollout.verdict.kind,
            "answer": rollout.verdict.answer,
            "gold": gold,
            "reward": rollout.reward,
            "scores": dict(rollout.parts),
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


def _mean_reward(rollouts: Sequence[Rollout]) -> Mean:
    """Return the mean of those that have a reward."""
    return _mean([rollout.reward for rollout in rollouts if rollout.reward is not None])


def _mean(values: Sequence[float | int | bool]) -> Mean:
    return Mean(float(sum(values)), len(values))
