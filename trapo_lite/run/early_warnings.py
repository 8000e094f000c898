"""Look at the first step of a run, or of its second stage, for what keeps it from learning, and say what to change."""

from collections.abc import Mapping

from trapo_lite.config import Config

MANY = 0.5  # share of completions or rollouts


def early_warnings(row: Mapping[str, float | int | None], config: Config) -> list[str]:
    """Return a line for each thing in the first step's metrics that keeps a run from learning.

    row: the line of metrics.jsonl
    """
    lines = []
    limit = config.rollout.max_response_tokens
    if (cut := row.get("rollout/truncated") or 0.0) > MANY:
        lines.append(
            f"{cut:.0%} of the completions were cut at rollout.max_response_tokens ({limit}); raise it, or ask for "
            "shorter answers in data.instruction or data.system_text"
        )
    if (without := row.get("reward/none") or 0.0) > 0.0:
        lines.append(
            f"{without:.0%} of the rollouts have no reward, because a reward function failed on them or gave no "
            "number, so nothing is learned from them; let it return a number"
        )
    solved, failed = row.get("rollout/solved_groups") or 0.0, row.get("rollout/failed_groups") or 0.0
    samples = config.algorithm.stage_at(int(row.get("step") or 1) - 1).samples
    if samples and row.get("rollout/uniform_groups") == 1.0 and without == 0.0:
        how = "solved" if solved > failed else "not solved"
        lines.append(
            f"all rollouts of a problem got the same reward, in every problem (most are {how}), so rewards teach "
            "nothing; choose problems that the model solves sometimes (data.filter), or more of them "
            "(rollout.num_problems)"
        )
    if row.get("reward/expert") == 0.0:
        lines.append(
            "the expert solutions earn nothing (reward/expert is 0), so they teach what is not rewarded; compare "
            "reward.functions, data.expert_text and the rows' answers: trapo-lite prepare --verify"
        )
    return lines
