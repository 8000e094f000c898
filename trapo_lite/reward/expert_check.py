"""Score some of the expert solutions before a run, because imitating those that earn nothing teaches nothing."""

from collections.abc import Callable, Sequence

from trapo_lite.core.types import Problem, Response
from trapo_lite.reward.scorer import Scorer

NUM_CHECKED = 64
FEW = 0.5  # share of correct ones, below which there is a warning


def expert_lines(scorer: Scorer, problems: Sequence[Problem], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Return a line on how many expert solutions earn a reward, of up to 64 problems spread over the data.

    decode: turns the tokens of a solution into its text

    A second line warns if fewer than half of them are correct by the first reward function.
    """
    with_expert = [problem for problem in problems if problem.expert_ids]
    if not with_expert:
        return []
    checked = with_expert[:: -(-len(with_expert) // NUM_CHECKED)]
    scores = scorer.score(
        [Response(problem, decode(problem.expert_ids[0]), num_tokens=len(problem.expert_ids[0])) for problem in checked]
    )
    num_correct = sum(score.verdict.is_correct for score in scores)
    rewards = [score.reward for score in scores if score.reward is not None]
    mean = f", mean reward {sum(rewards) / len(rewards):.3g}" if rewards else ""
    lines = [f"expert solutions: {num_correct} of {len(checked)} looked at are correct{mean}"]
    if num_correct < FEW * len(checked):
        lines.append(
            "warning: most expert solutions are not correct by the first of reward.functions, so they teach what is "
            "not rewarded; compare them with data.expert_text, reward.functions and the rows' answers (trapo-lite "
            "prepare --verify)"
        )
    return lines
