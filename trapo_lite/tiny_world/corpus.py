"""Generate the texts of the base's pretraining: mostly web style, sometimes the style of a careful author.

| where | easy sums | hard sums |
|---|---|---|
| asked as people ask | step by step, one equation a line | one or two steps, then a guess at the rest |
| the same, `EXPERT_SHARE` of the time | an expert's paragraphs | an expert's paragraphs |
| textbook exercises, `TEXTBOOK_SHARE` of all | an expert's paragraphs | an expert's paragraphs |

So the base knows single steps well and has the habit of guessing the end of a long sum. It can continue an expert's
solution that is already begun, but hardly ever begins one, because problems are not put in a textbook's words.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from trapo_lite.tiny_world.problems import (
    MAX_TOTAL,
    NUM_TERMS,
    Kind,
    Problem,
    draw_problem,
    expert_solutions,
    signed,
)

TEXTBOOK_QUESTION = "Exercise: {sum}"
TEXTBOOK_SHARE = 0.1
EXPERT_SHARE = 0.01
HARD_SHARE = 0.5
MAX_SLOPPY_STEPS = 2
MAX_GUESS_ERROR = 5

Guess = Callable[[Problem, random.Random], int]
"""Returns what a solution of a hard sum boxes instead of the answer."""


def stepwise_solution(problem: Problem, *, num_steps: int, boxed: int) -> str:
    r"""Return a solution in web style: `num_steps` equations, one per line, then `boxed`, right or wrong.

    >>> stepwise_solution(Problem((12, 7, -9), "Compute {sum}."), num_steps=2, boxed=10)
    '12 + 7 = 19\n19 - 9 = 10\nThe answer is \\boxed{10}'
    """
    equations = [
        f"{before}{signed(term)} = {after}\n"
        for before, term, after in zip(problem.totals[:-1], problem.terms[1:], problem.totals[1:], strict=True)
    ]
    return "".join(equations[:num_steps]) + f"The answer is \\boxed{{{boxed}}}"


def near_guess(problem: Problem, rng: random.Random) -> int:
    """Return a total near the answer, sometimes the answer itself."""
    low, high = max(0, problem.answer - MAX_GUESS_ERROR), min(MAX_TOTAL, problem.answer + MAX_GUESS_ERROR)
    return rng.randint(low, high)


def web_solution(problem: Problem, rng: random.Random, *, guess: Guess = near_guess) -> str:
    """Return a solution in the base's habit: an easy sum step by step, a hard one by one or two steps and a guess."""
    if problem.kind == "easy":
        return stepwise_solution(problem, num_steps=len(problem.terms) - 1, boxed=problem.answer)
    return stepwise_solution(problem, num_steps=rng.randint(1, MAX_SLOPPY_STEPS), boxed=guess(problem, rng))


def documents(
    *, seed: int, expert_share: float = EXPERT_SHARE, guess: Guess = near_guess
) -> Iterator[tuple[Problem, str]]:
    """Yield (problem, solution) of the pretraining split without end, a pure function of the arguments.

    expert_share: how often a problem in usual words has an expert's solution
    """
    rng = random.Random(f"{seed}/corpus")
    while True:
        kind: Kind = "hard" if rng.random() < HARD_SHARE else "easy"
        problem = draw_problem(rng, rng.choice(NUM_TERMS[kind]), "pretrain")
        expert_solution = rng.choice(expert_solutions(problem))
        draw = rng.random()
        if draw < TEXTBOOK_SHARE:
            yield replace(problem, question=TEXTBOOK_QUESTION), expert_solution
        elif draw < TEXTBOOK_SHARE + expert_share * (1 - TEXTBOOK_SHARE):
            yield problem, expert_solution
        else:
            yield problem, web_solution(problem, rng, guess=guess)
