"""Show at the start of a run what the reward functions give, before a model is loaded."""

from collections.abc import Callable, Sequence

from trapo_lite.config import RewardSection
from trapo_lite.core.errors import RewardError
from trapo_lite.core.types import Problem, Response
from trapo_lite.reward.scorer import FAILURES, Scorer
from trapo_lite.reward.worker_process import Judgement


def start_lines(
    section: RewardSection,
    scorer: Scorer,
    problems: Sequence[Problem],
    decode: Callable[[Sequence[int]], str],
    *,
    option: str = "data.train",
) -> list[str]:
    """Return a line for each function: what it gives the first expert solution, and an empty response.

    decode: turns the tokens of a solution into its text
    option: what names the problems, for messages
    Raises RewardError if a function of the user's cannot be loaded, or if it counts and fails on both.
    """
    problem = next((problem for problem in problems if problem.expert_ids), problems[0])
    responses = {"an empty response": Response(problem, "")}
    if problem.expert_ids:
        solution = problem.expert_ids[0]
        of_expert = Response(problem, decode(solution), num_tokens=len(solution))
        responses = {"its expert solution": of_expert, **responses}
    judgements_by_text = {name: scorer.judge(response) for name, response in responses.items()}
    lines = []
    for function in section.functions:
        by_text = {name: judgements[function.label] for name, judgements in judgements_by_text.items()}
        failures = [judgement for judgement in by_text.values() if judgement.kind in FAILURES]
        if len(failures) == len(by_text) == 2 and function.type == "function" and function.weight > 0:
            raise RewardError(
                f"reward.functions: {function.label} fails on problem {problem.id}, with "
                f"{' and with '.join(by_text)}; correct it, or name data that it can judge in {option}. The first "
                f"time: {failures[0].detail}"
            )
        values_text = ", ".join(f"{_value_text(judgement)} for {name}" for name, judgement in by_text.items())
        lines.append(f"reward {function.label}: problem {problem.id}: {values_text}")
        for name, judgement in by_text.items():
            if judgement.kind in FAILURES:
                lines.append(
                    f"warning: reward {function.label}: fails on {name}: {_last_line(judgement)}; such a rollout gets "
                    "no advantage, so return a number if it should count as bad"
                )
        if len(by_text) == 2 and all(judgement.kind == "unjudged" for judgement in by_text.values()):
            lines.append(
                f"warning: reward {function.label}: returns None for both, and such a rollout gets no reward from it; "
                "is its `return` missing?"
            )
        values = [judgement.value for judgement in by_text.values() if judgement.value is not None]
        if len(values) == 2 and values[0] <= values[1] and function.type != "length":
            lines.append(f"warning: reward {function.label}: gives the expert solution no more than an empty response")
    return lines


def require_loadable(section: RewardSection) -> None:
    """Raise RewardError if a function of the user's cannot be loaded. It is not called with anything of the data."""
    if section.own_functions:
        with Scorer(section) as scorer:
            scorer.judge(Response(Problem("", (), ""), ""))


def _value_text(judgement: Judgement) -> str:
    if judgement.value is not None:
        return f"{judgement.value:g}"
    return "no verdict" if judgement.kind == "unjudged" else judgement.kind


def _last_line(judgement: Judgement) -> str:
    return (judgement.detail or judgement.kind).splitlines()[-1]
