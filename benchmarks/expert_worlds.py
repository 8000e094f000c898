r"""Write training sets for the tiny base whose experts are good, bad or few, and the test sets that go with them.

    python benchmarks/expert_worlds.py worlds                    # all of them, some seconds
    python benchmarks/expert_worlds.py worlds --only wordy wrong_30 --seed 1

The problems are the tiny world's, hard ones of 6 to 8 terms. What differs is the expert:

| world                        | the expert's solutions                                                              |
|------------------------------|-------------------------------------------------------------------------------------|
| perfect                      | a paragraph for each step, as the shipped data has them                             |
| leaps_2, leaps_3, leaps_4    | a paragraph for every second, third or fourth running total only                    |
| wordy                        | two random words before each step                                                   |
| wrong_10, wrong_30, wrong_50 | right but for 10, 30, 50 % of the problems, where one step is wrong and carried on  |
| foreign                      | the total stands before its sum, a notation that the base has never read            |
| few_16, few_64, few_256      | perfect, of so many problems; the others are left out                               |
| absent                       | perfect for easy problems, none for hard ones                                       |
| rare_...                     | as the world of that name, for another base                                         |

The base of the worlds `rare_...` solves far less than one hard problem in a hundred by itself: it guesses answers that
cannot be right, and has read an expert's solution only behind a textbook's question, never behind one in usual words
(`write_rare_base`). So exploration is the bottleneck, where for the shipped base, which solves one in six, it is not.

OUT/WORLD/train.jsonl holds the rows. OUT/dev.jsonl has problems of 6 to 8 terms. OUT/held_out.jsonl has three sets,
each with its name at the beginning of its ids: `hard` (6 to 8 terms), `longer` (9 terms, more than any training
problem) and `easy` (2 to 4 terms, which the base could solve before: what was forgotten).
"""

import argparse
import functools
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from trapo_lite.tiny_world.corpus import documents
from trapo_lite.tiny_world.pretrain import pretrain
from trapo_lite.tiny_world.problems import (
    MAX_TOTAL,
    NUM_TERMS,
    Problem,
    Split,
    draw_problem,
    expert_solutions,
    jsonl,
    lettered,
    signed,
)

HARD_TERMS, LONGER_TERMS, EASY_TERMS = (6, 7, 8), (9,), NUM_TERMS["easy"]
NUM_HARD, NUM_EASY, NUM_TEST = 1440, 360, 200
WORDS = ("What is ", "Compute ", "Evaluate ", "Exercise: ", "The answer is ")  # each is one token of the base's
MAX_ERROR = 3
RARE = "rare_"

Solve = Callable[[Problem, random.Random], list[str]]
"""Maps a problem to the solutions of its row; random choices are made with the generator."""


def perfect(problem: Problem, rng: random.Random) -> list[str]:
    """Return the solutions that the shipped data have."""
    return list(expert_solutions(problem))


def leaps(problem: Problem, rng: random.Random, *, num_steps: int) -> list[str]:
    r"""Return solutions that show every `num_steps`-th running total, and the last one.

    >>> leaps(Problem((12, 7, -9, 4), ""), random.Random(0), num_steps=2)[0]
    'Start carefully at 12\n\n (a) + 7 (b) - 9 makes 10\n\n (c) + 4 makes 14\n\nSo \\boxed{14}'
    """
    steps = list(zip(lettered(problem.terms), problem.totals[1:], strict=True))
    parts = [steps[start : start + num_steps] for start in range(0, len(steps), num_steps)]
    joined = [("".join(term for term, _ in part), part[-1][1]) for part in parts]
    return _written(problem.terms[0], joined, boxed=problem.answer)


def wordy(problem: Problem, rng: random.Random) -> list[str]:
    """Return perfect solutions with two words before each step."""
    steps = zip(lettered(problem.terms), problem.totals[1:], strict=True)
    padded = [(f"{rng.choice(WORDS)}{rng.choice(WORDS)}{term}", total) for term, total in steps]
    return _written(problem.terms[0], padded, boxed=problem.answer)


def wrong(problem: Problem, rng: random.Random, *, share: float) -> list[str]:
    """Return perfect solutions, or with probability `share` ones with a wrong step and the answer that follows."""
    if rng.random() >= share:
        return perfect(problem, rng)
    while True:
        index = rng.randrange(1, len(problem.terms))
        totals = list(problem.totals)
        error = rng.choice((-1, 1)) * rng.randint(1, MAX_ERROR)
        totals[index:] = [total + error for total in totals[index:]]
        if all(0 <= total <= MAX_TOTAL for total in totals):
            steps = list(zip(lettered(problem.terms), totals[1:], strict=True))
            return _written(problem.terms[0], steps, boxed=totals[-1])


def foreign(problem: Problem, rng: random.Random) -> list[str]:
    r"""Return solutions that give a total before the sum it is of.

    >>> foreign(Problem((12, 7, -9), ""), random.Random(0))[0]
    '19 = 12 + 7\n\n10 = 19 - 9\n\nSo \\boxed{10}'
    """
    before = problem.totals[:-1]
    steps = zip(problem.totals[1:], before, problem.terms[1:], strict=True)
    lines = "\n\n".join(f"{total} = {last}{signed(term)}" for total, last, term in steps)
    return [f"{lines}\n\n{end}\\boxed{{{problem.answer}}}" for end in ("So ", "Finally ")]


def absent(problem: Problem, rng: random.Random) -> list[str]:
    """Return perfect solutions of an easy problem, and none of a hard one."""
    return perfect(problem, rng) if problem.kind == "easy" else []


def _written(start: int, steps: Sequence[tuple[str, int]], *, boxed: int) -> list[str]:
    """Return both wordings of the steps, as `expert_solutions` has them."""
    solutions = []
    for gives, end in ((" makes ", "So "), (", now ", "Finally ")):
        paragraphs = [f"{step}{gives}{total}" for step, total in steps]
        solutions.append("\n\n".join([f"Start carefully at {start}", *paragraphs, f"{end}\\boxed{{{boxed}}}"]))
    return solutions


SOLVERS: dict[str, Solve] = {
    "perfect": perfect,
    **{f"leaps_{n}": lambda problem, rng, n=n: leaps(problem, rng, num_steps=n) for n in (2, 3, 4)},
    "wordy": wordy,
    **{f"wrong_{n}": lambda problem, rng, n=n: wrong(problem, rng, share=n / 100) for n in (10, 30, 50)},
    "foreign": foreign,
    **{f"few_{n}": perfect for n in (16, 64, 256)},
    "absent": absent,
}
SOLVERS |= {RARE + world: SOLVERS[world] for world in ("perfect", "leaps_3", "wordy", "wrong_50")}


def impossible_guess(problem: Problem, rng: random.Random) -> int:
    """Return a number that no answer is."""
    return rng.randint(MAX_TOTAL + 1, 2 * MAX_TOTAL)


def write_rare_base(folder: Path) -> None:
    """Pretrain the base of the worlds `rare_...`, some minutes of one core, unless it is there."""
    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    texts = functools.partial(documents, expert_share=0.0, guess=impossible_guess)
    pretrain(unfinished, documents=texts)
    unfinished.rename(folder)


def problems(split: Split, num_terms: Sequence[int], num_problems: int, *, seed: int) -> list[Problem]:
    """Return different problems of a split."""
    rng = random.Random(f"{seed}/{split}/{num_terms}")
    distinct: dict[tuple[int, ...], Problem] = {}
    while len(distinct) < num_problems:
        problem = draw_problem(rng, rng.choice(num_terms), split)
        distinct.setdefault(problem.terms, problem)
    return list(distinct.values())


def training_rows(world: str, *, seed: int) -> Iterator[dict[str, object]]:
    """Yield the rows of a world: problem, answer, solutions, kind. All worlds have the same problems in one order."""
    chosen = problems("train", HARD_TERMS, NUM_HARD, seed=seed) + problems("train", EASY_TERMS, NUM_EASY, seed=seed)
    random.Random(f"{seed}/order").shuffle(chosen)
    if world.startswith("few_"):
        hard = [problem for problem in chosen if problem.kind == "hard"]
        chosen = hard[: int(world.removeprefix("few_"))]
    for problem in chosen:
        rng = random.Random(f"{seed}/{world}/{problem.terms}")
        solutions = SOLVERS[world](problem, rng)
        yield _row(problem) | ({"solutions": solutions} if solutions else {})


def held_out_sets(*, seed: int) -> dict[str, list[Problem]]:
    """Return the problems that no run is trained on, by the name of their set."""
    return {
        "dev": problems("dev", HARD_TERMS, NUM_TEST, seed=seed),
        "hard": problems("test", HARD_TERMS, NUM_TEST, seed=seed),
        "longer": problems("test", LONGER_TERMS, NUM_TEST, seed=seed),
        "easy": problems("test", EASY_TERMS, NUM_TEST, seed=seed),
    }


def _row(problem: Problem) -> dict[str, object]:
    return {"problem": problem.text, "answer": str(problem.answer), "kind": problem.kind}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--only", nargs="+", choices=sorted(SOLVERS), default=list(SOLVERS), metavar="WORLD")
    parser.add_argument("--seed", type=int, default=0, help="of the problems and of the expert's choices")
    args = parser.parse_args()
    for world in args.only:
        write_world(args.out, world, seed=args.seed)
    write_held_out(args.out, seed=args.seed)


def write_world(out: Path, world: str, *, seed: int) -> None:
    _write(out / world / "train.jsonl", training_rows(world, seed=seed))


def write_held_out(out: Path, *, seed: int) -> None:
    sets = {
        name: [{"id": f"{name}-{index}", **_row(problem)} for index, problem in enumerate(chosen)]
        for name, chosen in held_out_sets(seed=seed).items()
    }
    _write(out / "dev.jsonl", iter(sets.pop("dev")))
    _write(out / "held_out.jsonl", (row for rows in sets.values() for row in rows))


def _write(file: Path, rows: Iterator[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = jsonl(rows)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")  # another run of this world and seed may read it now
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
    print(f"{file}: {text.count(chr(10))} rows")


if __name__ == "__main__":
    main()
