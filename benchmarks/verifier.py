"""Measure verdicts per second and core: this verifier and math-verify directly, on answers of 8,000 characters.

    python benchmarks/verifier.py --quick --json verifier.json     # half a minute
    python benchmarks/verifier.py                                  # more answers, more rounds

An answer is a chain of thought with arithmetic and a box at its end. Golds are integers, fractions, decimals, roots,
expressions, intervals, lists and words; half of the answers are wrong. Every round has new answers, so that a worker's
cache does not help. "repeated" are the same answers again, as the rollouts of a group repeat their gold and often their
answer. This verifier has one worker process and gets all answers at once, so that the whole cost of a verdict is
included. math-verify parses and verifies in this process as the official reward calls it, with its timers, which need
the main thread. The two take turns. The pool has graded 1,000 other answers before.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from trapo_lite.reward import MathVerifier

NUM_CHARACTERS = 8_000
NUM_WARM = 1_000
Pair = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 answers, three rounds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    num, rounds = (500, 3) if args.quick else (2_000, 5)
    ours_rates, repeated_rates, theirs_rates, agreements = [], [], [], []
    with MathVerifier(num_workers=1) as verifier:
        verifier.grade(make_pairs(NUM_WARM, seed=0))
        for number in range(1, rounds + 1):
            pairs = make_pairs(num, seed=number)
            ours, rate = timed(partial(by_ours, verifier, pairs), num)
            ours_rates.append(rate)
            _, rate = timed(partial(by_ours, verifier, pairs), num)
            repeated_rates.append(rate)
            theirs, rate = timed(partial(by_math_verify, pairs), num)
            theirs_rates.append(rate)
            agreements.append(sum(a == b for a, b in zip(ours, theirs, strict=True)) / num)
    figures = {
        "verdicts_per_second_per_core": round(statistics.median(ours_rates), 1),
        "math_verify_per_second": round(statistics.median(theirs_rates), 1),
        "ours_over_math_verify": round(
            statistics.median(a / b for a, b in zip(ours_rates, theirs_rates, strict=True)), 2
        ),
        "repeated_per_second": round(statistics.median(repeated_rates), 1),
        "agreement": round(statistics.mean(agreements), 4),
        "characters": NUM_CHARACTERS,
        "answers": num,
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def timed(grade: Callable[[], list[bool]], num: int) -> tuple[list[bool], float]:
    """Return (verdicts, verdicts per second)."""
    started = time.perf_counter()
    verdicts = grade()
    return verdicts, num / (time.perf_counter() - started)


def by_ours(verifier: MathVerifier, pairs: Sequence[Pair]) -> list[bool]:
    return [verdict.is_correct for verdict in verifier.grade(pairs)]


def by_math_verify(pairs: Sequence[Pair]) -> list[bool]:
    """Grade as the official reward does: the gold in dollar signs, everything else by default."""
    from math_verify import parse, verify

    return [bool(verify(parse(f"${gold}$"), parse(answer))) for answer, gold in pairs]


def make_pairs(num: int, *, seed: int) -> list[Pair]:
    rng = random.Random(seed)
    return [make_pair(rng) for _ in range(num)]


def make_pair(rng: random.Random) -> Pair:
    gold, right, wrong = rng.choice(KINDS)(rng)
    lines: list[str] = []
    while sum(map(len, lines)) < NUM_CHARACTERS - 200:
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        lines.append(
            rng.choice(
                [
                    f"First, ${a} \\cdot {b} = {a * b}$, so the sum becomes $x + {a * b}$.\n",
                    f"Wait, let me check that again: $\\frac{{{a}}}{{{b}}}$ is not an integer.\n\n",
                    f"If we set $y = {a} - {b}$, then the condition $y^2 \\le {a * a}$ holds for every case.\n",
                    "Therefore it remains to look at the second case, which is symmetric to the first one.\n",
                ]
            )
        )
    answer = right if rng.random() < 0.5 else wrong
    return f"<think>\n{''.join(lines)}</think>\nThe final answer is $\\boxed{{{answer}}}$.", gold


def _integer(rng: random.Random) -> Sequence[str]:
    n = rng.randint(-999, 9999)
    return str(n), str(n), str(n + 1)


def _fraction(rng: random.Random) -> Sequence[str]:
    a, b = rng.randint(1, 50), rng.randint(2, 50)
    return f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{2 * a}}}{{{2 * b}}}", f"\\frac{{{a + 1}}}{{{b}}}"


def _decimal(rng: random.Random) -> Sequence[str]:
    n = rng.randint(1, 9999)
    return f"{n / 100}", f"{n / 100}", f"{n / 100 + 0.5}"


def _root(rng: random.Random) -> Sequence[str]:
    n = rng.choice([n for n in range(2, 999) if math.isqrt(n) ** 2 != n])
    return f"2\\sqrt{{{n}}}", f"\\sqrt{{{4 * n}}}", f"\\sqrt{{{4 * n + 1}}}"


def _expression(rng: random.Random) -> Sequence[str]:
    n = rng.randint(2, 199)
    return f"x^2 + {2 * n}x + {n * n}", f"(x + {n})^2", f"(x - {n})^2"


def _interval(rng: random.Random) -> Sequence[str]:
    n, m = rng.randint(1, 400), rng.randint(401, 999)
    return f"({n}, {m}]", f"({n}, {m}]", f"[{n}, {m}]"


def _list(rng: random.Random) -> Sequence[str]:
    n = rng.randint(1, 999)
    return f"{n}, {n + 3}", f"{n + 3}, {n}", f"{n}, {n + 4}"


def _words(rng: random.Random) -> Sequence[str]:
    name, other = rng.sample(["Evelyn", "Angela", "Briana", "Carla"], 2)
    return f"\\text{{{name}}}", name, other


KINDS = (_integer, _integer, _integer, _fraction, _decimal, _root, _expression, _interval, _list, _words)

if __name__ == "__main__":
    main()
