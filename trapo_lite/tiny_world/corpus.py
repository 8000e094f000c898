"""What the base reads while it is pretrained: mostly the web's way with sums, now and then a careful author.

| text | easy sums | hard sums |
|---|---|---|
| steps, one a line, to the end | nearly all | never |
| sloppy: a few steps, then a guess at the rest | never | nearly all |
| an expert's paragraphs | `EXPERT_SHARE` | `EXPERT_SHARE` |

So the base knows single steps well, has the habit of guessing where a sum is long, and has seen the expert's style often
enough to continue it, not to open it.
"""

import random
from collections.abc import Iterator

from trapo_lite.tiny_world.problems import (
    MAX_TOTAL,
    NUM_TERMS,
    Kind,
    Problem,
    draw_problem,
    expert_solutions,
    sum_text,
)

HARD_SHARE = 0.5
EXPERT_SHARE: dict[Kind, float] = {"easy": 0.04, "hard": 0.04}
MAX_SLOPPY_STEPS = 2
MAX_GUESS_ERROR = 4


def stepwise_solution(problem: Problem, *, num_steps: int, boxed: int) -> str:
    """The web's style: `num_steps` equations, one a line, then `boxed`, right or wrong.

    >>> stepwise_solution(Problem((12, 7, -9), "Compute {sum}."), num_steps=2, boxed=10)
    '12 + 7 = 19\\n19 - 9 = 10\\nThe answer is \\\\boxed{10}'
    """
    equations = [
        f"{sum_text((before, term))} = {after}\n"
        for before, term, after in zip(problem.totals[:-1], problem.terms[1:], problem.totals[1:], strict=True)
    ]
    return "".join(equations[:num_steps]) + f"The answer is \\boxed{{{boxed}}}"


def guess(problem: Problem, rng: random.Random) -> int:
    """A total near the answer, now and then the answer itself."""
    low, high = max(0, problem.answer - MAX_GUESS_ERROR), min(MAX_TOTAL, problem.answer + MAX_GUESS_ERROR)
    return rng.randint(low, high)


def web_solution(problem: Problem, rng: random.Random) -> str:
    """The base's habit: an easy sum step by step, a hard one after one or two steps by a guess."""
    if problem.kind == "easy":
        return stepwise_solution(problem, num_steps=len(problem.terms) - 1, boxed=problem.answer)
    return stepwise_solution(problem, num_steps=rng.randint(1, MAX_SLOPPY_STEPS), boxed=guess(problem, rng))


def documents(*, seed: int) -> Iterator[tuple[Problem, str]]:
    """An endless stream of (problem, solution) of the pretraining split, a pure function of the seed."""
    rng = random.Random(f"{seed}/corpus")
    while True:
        kind: Kind = "hard" if rng.random() < HARD_SHARE else "easy"
        problem = draw_problem(rng, rng.choice(NUM_TERMS[kind]), "pretrain")
        if rng.random() < EXPERT_SHARE[kind]:
            yield problem, rng.choice(expert_solutions(problem))
        else:
            yield problem, web_solution(problem, rng)
