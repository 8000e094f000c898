"""Show at the start of a run what the reward functions say, before a model is loaded."""

from collections.abc import Callable, Sequence

from trapo_lite.config import RewardSection
from trapo_lite.core.errors import RewardError
from trapo_lite.core.types import Problem, Response
from trapo_lite.reward.pool import Judgement
from trapo_lite.reward.scorer import FAILURES, Scorer


def start_lines(
    section: RewardSection, scorer: Scorer, problems: Sequence[Problem], decode: Callable[[Sequence[int]], str]
) -> list[str]:
    """Return a line for each function: what it gives the first expert solution, and an empty response.

    decode: turns the tokens of a solution into its text
    Raises RewardError if a function of the user's cannot be loaded, or if it counts and fails on both.
    """
    problem = next((problem for problem in problems if problem.expert_ids), problems[0])
    responses = {"an empty response": Response(problem, "")}
    if problem.expert_ids:
        solution = problem.expert_ids[0]
        of_expert = Response(problem, decode(solution), num_tokens=len(solution))
        responses = {"its expert solution": of_expert, **responses}
    by_text = {name: scorer.judge(response) for name, response in responses.items()}
    lines = []
    for function in section.functions:
        said = {name: judgements[function.label] for name, judgements in by_text.items()}
        failures = [judged for judged in said.values() if judged.kind in FAILURES]
        if len(failures) == len(said) == 2 and function.type == "function" and function.weight > 0:
            raise RewardError(
                f"reward.functions: {function.label} fails on problem {problem.id}, with "
                f"{' and with '.join(said)}; correct it. It said: {failures[0].detail}"
            )
        spelt = ", ".join(f"{_spelt(judged)} for {name}" for name, judged in said.items())
        lines.append(f"reward {function.label}: problem {problem.id}: {spelt}")
        for name, judged in said.items():
            if judged.kind in FAILURES:
                lines.append(
                    f"warning: reward {function.label}: fails on {name}: {_last_line(judged)}; such a rollout gets no "
                    "advantage, so return a number if it should count as bad"
                )
        values = [judged.value for judged in said.values() if judged.value is not None]
        if len(values) == 2 and values[0] <= values[1] and function.type != "length":
            lines.append(f"warning: reward {function.label}: gives the expert solution no more than an empty response")
    return lines


def require_loadable(section: RewardSection) -> None:
    """Raise RewardError if a function of the user's cannot be loaded. It is not called with anything of the data."""
    if section.own_functions:
        with Scorer(section) as scorer:
            scorer.judge(Response(Problem("", (), ""), ""))


def _spelt(judged: Judgement) -> str:
    if judged.value is not None:
        return f"{judged.value:g}"
    return "no verdict" if judged.kind == "unjudged" else judged.kind


def _last_line(judged: Judgement) -> str:
    return (judged.detail or judged.kind).splitlines()[-1]
