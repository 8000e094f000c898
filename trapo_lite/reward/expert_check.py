"""Score some of the expert solutions before a run, because imitating those that earn nothing teaches nothing."""

from collections.abc import Callable, Sequence

from trapo_lite.core.types import Problem, Response
from trapo_lite.reward.scorer import Scorer

NUM_CHECKED = 32  # fewer than the failures after which a function is taken to fail always
FEW = 0.5  # share of correct ones, below which there is a warning


def expert_lines(scorer: Scorer, problems: Sequence[Problem], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Return a line on how many expert solutions earn a reward, of up to 32 problems spread over the data.

    decode: turns the tokens of a solution into its text

    Further lines warn of functions that fail on them, and if fewer than half are correct by the first function. The
    failures are not counted in the run's first step.
    """
    with_expert = [problem for problem in problems if problem.expert_ids]
    if not with_expert:
        return []
    checked = with_expert[:: -(-len(with_expert) // NUM_CHECKED)]
    scores = scorer.score(
        [Response(problem, decode(problem.expert_ids[0]), num_tokens=len(problem.expert_ids[0])) for problem in checked]
    )
    failures = scorer.take_failures()
    num_correct = sum(score.verdict.is_correct for score in scores)
    rewards = [score.reward for score in scores if score.reward is not None]
    mean = f", mean reward {sum(rewards) / len(rewards):.3g}" if rewards else ""
    lines = [f"expert solutions: {num_correct} of {len(checked)} looked at are correct{mean}"]
    lines += [
        f"warning: reward {name}: fails on {num_failed} of these {len(checked)}; such a rollout gets no advantage"
        for name, num_failed in failures.num_failed.items()
    ]
    if num_correct < FEW * len(checked):
        lines.append(
            f"warning: most expert solutions get less than 1 from {scorer.decides}, the first of reward.functions, and "
            "so count as not correct; if 1 is not its best value, divide by that, otherwise compare the solutions with "
            "data.expert_text and the rows' answers (trapo-lite prepare --verify)"
        )
    return lines
