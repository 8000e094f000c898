"""Problems of the tiny world: running sums of small numbers, with two expert solutions each.

    What is 12 + 7 - 9 + 4?          ->  \\boxed{14}

The first number is 1..20, every later term 1..9 with a sign, and every running total stays in 0..30, so that a single
step is trivial and only the number of steps is hard: easy problems have 2 to 4 terms, hard ones 6 to 9. The split of a
problem is a hash of its terms, so train, dev, test and the pretraining corpus are disjoint whatever the seeds.
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
MAX_FIRST, MAX_TERM, MAX_TOTAL = 20, 9, 30
QUESTIONS = ("What is {sum}?", "Compute {sum}.", "Evaluate {sum}.")
SPLIT_SHARES: dict[Split, int] = {"train": 5, "dev": 1, "test": 1, "pretrain": 13}
DATA_SIZES: dict[Split, dict[Kind, int]] = {
    "train": {"easy": 400, "hard": 1600},
    "dev": {"hard": 200},
    "test": {"hard": 200},
}


@dataclass(frozen=True)
class Problem:
    """A sum and the words it is asked in.

    >>> problem = Problem((12, 7, -9, 4), "What is {sum}?")
    >>> problem.text, problem.totals, problem.answer
    ('What is 12 + 7 - 9 + 4?', (12, 19, 10, 14), 14)
    """

    terms: tuple[int, ...]
    question: str

    @property
    def text(self) -> str:
        return self.question.format(sum=sum_text(self.terms))

    @property
    def totals(self) -> tuple[int, ...]:
        return tuple(accumulate(self.terms))

    @property
    def answer(self) -> int:
        return self.totals[-1]

    @property
    def kind(self) -> Kind:
        return "easy" if len(self.terms) in NUM_TERMS["easy"] else "hard"


def sum_text(terms: Sequence[int]) -> str:
    """The terms as people write them.

    >>> sum_text((12, 7, -9))
    '12 + 7 - 9'
    """
    return str(terms[0]) + "".join(f" {'-' if term < 0 else '+'} {abs(term)}" for term in terms[1:])


def split_of(terms: Sequence[int]) -> Split:
    """The one split these terms belong to, by their hash; the question's words play no part."""
    bucket = int.from_bytes(hashlib.sha256(sum_text(terms).encode()).digest()[:8]) % sum(SPLIT_SHARES.values())
    for split, share in SPLIT_SHARES.items():
        bucket -= share
        if bucket < 0:
            return split
    raise AssertionError("unreachable: the shares cover every bucket")


def draw_terms(rng: random.Random, num_terms: int) -> tuple[int, ...]:
    """Random terms whose running totals all stay in 0..MAX_TOTAL."""
    terms = [rng.randint(1, MAX_FIRST)]
    total = terms[0]
    while len(terms) < num_terms:
        term = rng.choice((-1, 1)) * rng.randint(1, MAX_TERM)
        if 0 <= total + term <= MAX_TOTAL:
            terms.append(term)
            total += term
    return tuple(terms)


def draw_problem(rng: random.Random, num_terms: int, split: Split) -> Problem:
    """A random problem of one split."""
    while split_of(terms := draw_terms(rng, num_terms)) != split:
        pass
    return Problem(terms, rng.choice(QUESTIONS))


def expert_solutions(problem: Problem) -> tuple[str, str]:
    """Two solutions by an expert: every step a paragraph of its own, the running total written out; two wordings.

    >>> expert_solutions(Problem((12, 7, -9), "Compute {sum}."))[0]
    'Start carefully at 12\\n\\nAdd 7, now 19\\n\\nTake 9, now 10\\n\\nSo \\\\boxed{10}'
    """
    return (
        _paragraphs(problem, plus="Add {term}, now {total}", minus="Take {term}, now {total}", end="So "),
        _paragraphs(problem, plus="Plus {term} makes {total}", minus="Minus {term} makes {total}", end="Finally "),
    )


def _paragraphs(problem: Problem, *, plus: str, minus: str, end: str) -> str:
    steps = [
        (minus if term < 0 else plus).format(term=abs(term), total=total)
        for term, total in zip(problem.terms[1:], problem.totals[1:], strict=True)
    ]
    return "\n\n".join([f"Start carefully at {problem.terms[0]}", *steps, f"{end}\\boxed{{{problem.answer}}}"])


def distinct_problems(split: Split, kind: Kind, num_problems: int, *, seed: int) -> list[Problem]:
    """`num_problems` problems with different terms, a pure function of the arguments."""
    rng = random.Random(f"{seed}/{split}/{kind}")
    problems: dict[tuple[int, ...], Problem] = {}
    while len(problems) < num_problems:
        problem = draw_problem(rng, rng.choice(NUM_TERMS[kind]), split)
        problems.setdefault(problem.terms, problem)
    return list(problems.values())


def rows(split: Split, *, seed: int = 0) -> Iterator[dict[str, object]]:
    """The shipped rows of a split, kinds mixed: problem, answer, solutions (two), kind."""
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
    """Rows as the text of a .jsonl file."""
    return "".join(json.dumps(line) + "\n" for line in lines)


def write_data(folder: Path = DATA_DIR) -> None:
    """Writes one .jsonl file a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in DATA_SIZES:
        (folder / f"{split}.jsonl").write_text(jsonl(rows(split)), encoding="utf-8", newline="\n")
