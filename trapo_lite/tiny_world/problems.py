r"""Draw problems of the tiny world: running sums of small numbers, with two expert solutions each.

    What is 12 (a) + 7 (b) - 9 (c) + 4?          ->  \boxed{14}

The first number is 1..15, every later term is 1..6 with a sign, and every running total stays in 0..20. So a single
step is easy, and the difficulty is to keep one's place: easy problems have 2 to 4 terms, hard ones 6 to 9. An expert
keeps his place by the terms' letters. The split of a problem is a hash of its terms, so that train, dev, test and the
pretraining corpus are disjoint for all seeds.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

from trapo_lite.tiny_world import DATA_DIR

Kind = Literal["easy", "hard"]
Split = Literal["train", "dev", "test", "pretrain"]

NUM_TERMS: dict[Kind, tuple[int, ...]] = {"easy": (2, 3, 4), "hard": (6, 7, 8, 9)}
LETTERS = "abcdefgh"
MAX_FIRST, MAX_TERM, MAX_TOTAL = 15, 6, 20
QUESTIONS = ("What is {sum}?", "Compute {sum}.", "Evaluate {sum}.")
SPLIT_SHARES: dict[Split, int] = {"train": 5, "dev": 1, "test": 1, "pretrain": 13}
DATA_SIZES: dict[Split, dict[Kind, int]] = {
    "train": {"easy": 360, "hard": 1440},
    "dev": {"hard": 200},
    "test": {"hard": 200},
}


@dataclass(frozen=True)
class Problem:
    """A Problem is a sum and its question.

    >>> problem = Problem((12, 7, -9, 4), "What is {sum}?")
    >>> problem.text, problem.totals, problem.answer
    ('What is 12 (a) + 7 (b) - 9 (c) + 4?', (12, 19, 10, 14), 14)
    """

    terms: tuple[int, ...]
    question: str

    @property
    def text(self) -> str:
        return self.question.format(sum=str(self.terms[0]) + "".join(lettered(self.terms)))

    @property
    def totals(self) -> tuple[int, ...]:
        return tuple(accumulate(self.terms))

    @property
    def answer(self) -> int:
        return self.totals[-1]

    @property
    def kind(self) -> Kind:
        return "easy" if len(self.terms) in NUM_TERMS["easy"] else "hard"


def signed(term: int) -> str:
    """Return a term as it follows other terms.

    >>> signed(7), signed(-9)
    (' + 7', ' - 9')
    """
    return f" {'-' if term < 0 else '+'} {abs(term)}"


def lettered(terms: Sequence[int]) -> list[str]:
    """Return the terms after the first, each behind its letter.

    >>> lettered((12, 7, -9))
    [' (a) + 7', ' (b) - 9']
    """
    return [f" ({letter}){signed(term)}" for letter, term in zip(LETTERS, terms[1:], strict=False)]


def split_of(terms: Sequence[int]) -> Split:
    """Return the split of these terms, by their hash. The question's words have no influence."""
    bucket = int.from_bytes(hashlib.sha256(str(terms).encode()).digest()[:8]) % sum(SPLIT_SHARES.values())
    for split, share in SPLIT_SHARES.items():
        bucket -= share
        if bucket < 0:
            return split
    raise AssertionError("unreachable: the shares cover every bucket")


def draw_terms(rng: random.Random, num_terms: int) -> tuple[int, ...]:
    """Draw terms whose running totals all stay in 0..MAX_TOTAL."""
    terms = [rng.randint(1, MAX_FIRST)]
    total = terms[0]
    while len(terms) < num_terms:
        term = rng.choice((-1, 1)) * rng.randint(1, MAX_TERM)
        if 0 <= total + term <= MAX_TOTAL:
            terms.append(term)
            total += term
    return tuple(terms)


def draw_problem(rng: random.Random, num_terms: int, split: Split) -> Problem:
    """Draw a problem of one split."""
    while split_of(terms := draw_terms(rng, num_terms)) != split:
        pass
    return Problem(terms, rng.choice(QUESTIONS))


def expert_solutions(problem: Problem) -> tuple[str, str]:
    r"""Return two expert solutions in two wordings: one paragraph per step, with the term's letter and the total.

    >>> expert_solutions(Problem((12, 7, -9), "Compute {sum}."))[0]
    'Start carefully at 12\n\n (a) + 7 makes 19\n\n (b) - 9 makes 10\n\nSo \\boxed{10}'
    """
    return _paragraphs(problem, gives=" makes ", end="So "), _paragraphs(problem, gives=", now ", end="Finally ")


def _paragraphs(problem: Problem, *, gives: str, end: str) -> str:
    steps = [f"{term}{gives}{total}" for term, total in zip(lettered(problem.terms), problem.totals[1:], strict=True)]
    return "\n\n".join([f"Start carefully at {problem.terms[0]}", *steps, f"{end}\\boxed{{{problem.answer}}}"])


def distinct_problems(split: Split, kind: Kind, num_problems: int, *, seed: int) -> list[Problem]:
    """Return `num_problems` problems with different terms, a pure function of the arguments."""
    rng = random.Random(f"{seed}/{split}/{kind}")
    problems: dict[tuple[int, ...], Problem] = {}
    while len(problems) < num_problems:
        problem = draw_problem(rng, rng.choice(NUM_TERMS[kind]), split)
        problems.setdefault(problem.terms, problem)
    return list(problems.values())


def rows(split: Split, *, seed: int = 0) -> Iterator[dict[str, object]]:
    """Yield the shipped rows of a split, kinds mixed: problem, answer, solutions (two), kind."""
    problems = [
        problem
        for kind, num_problems in DATA_SIZES[split].items()
        for problem in distinct_problems(split, kind, num_problems, seed=seed)
    ]
    random.Random(f"{seed}/{split}/order").shuffle(problems)
    for problem in problems:
        yield {
            "problem": problem.text,
            "answer": str(problem.answer),
            "solutions": list(expert_solutions(problem)),
            "kind": problem.kind,
        }


def jsonl(lines: Iterable[dict[str, object]]) -> str:
    """Return rows as the text of a .jsonl file."""
    return "".join(json.dumps(line) + "\n" for line in lines)


def write_data(folder: Path = DATA_DIR) -> None:
    """Write one .jsonl file per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in DATA_SIZES:
        (folder / f"{split}.jsonl").write_text(jsonl(rows(split)), encoding="utf-8", newline="\n")
