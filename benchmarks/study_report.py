"""Print what benchmarks/study.jsonl says: tables with 95 % intervals, and the hypotheses answered.

    python benchmarks/study_report.py     # Markdown, for docs/RESULTS.md

An interval is a bootstrap over seeds and, within each seed, over problems. Differences between two methods are paired:
both have the same problems for a seed. With one seed, an interval holds the problems' part alone. The intervals of the
hypotheses are not corrected for their number.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from expert_worlds import RARE, SOLVERS
from study import METHODS, RESULTS, Key, read_results, run_for, sees_experts

NUM_DRAWS = 4000
MIN_SEEDS = 3  # with fewer, intervals hold the truth too rarely (0.75 instead of 0.95, simulated)
Part = Literal["hard", "longer", "easy"]
Bits = np.ndarray
"""Holds a method's answers in a world as (seeds, problems), 1 = correct."""
WITH_BAD_EXPERTS = ("leaps_3", "leaps_4", "wordy", "wrong_50", "foreign")
WITH_RARE_SUCCESS = tuple(world for world in SOLVERS if world.startswith(RARE))
GROUPS = {
    "good experts": ("perfect", "absent", "few_256", "few_64", "few_16"),
    "experts with faults": ("leaps_2", "leaps_3", "leaps_4", "wordy", "wrong_10", "wrong_30", "wrong_50", "foreign"),
    "a base that solves none of the problems by itself": WITH_RARE_SUCCESS,
}


@dataclass(frozen=True)
class Hypothesis:
    """A Hypothesis says that one method is better than another, on the mean over some worlds. It was written first."""

    claim: str
    better: str
    worse: str
    worlds: tuple[str, ...] = tuple(SOLVERS)
    part: Part = "hard"


HYPOTHESES = (
    Hypothesis("TrSFT beats plain SFT as TRAPO's prefix loss (paper, ablation)", "trapo", "trapo, nll"),
    Hypothesis("TrSFT beats LUFFY's loss as TRAPO's prefix loss (paper, ablation)", "trapo", "trapo, luffy's loss"),
    Hypothesis("A prefix loss is better than none (paper, ablation)", "trapo", "trapo, no prefix loss"),
    Hypothesis("Prefixes help even without a loss (paper, ablation)", "trapo, no prefix loss", "dr_grpo"),
    Hypothesis("Help where the policy fails beats help always (paper)", "trapo", "trapo, help always"),
    *(
        Hypothesis(f"alpha 0.1 beats alpha {alpha} (paper)", "trapo", f"trapo, alpha {alpha}")
        for alpha in (0.001, 0.01, 0.03, 0.3, 1.0)
    ),
    Hypothesis("SFT and then RL beats TRAPO (arXiv:2604.23747)", "sft_then_rl", "trapo"),
    Hypothesis("TRAPO beats RL alone where success is rare", "trapo", "dr_grpo", worlds=WITH_RARE_SUCCESS),
    Hypothesis("RL alone beats TRAPO where experts are bad", "dr_grpo", "trapo", worlds=WITH_BAD_EXPERTS),
    Hypothesis("RL forgets less than SFT (easy problems)", "dr_grpo", "sft", part="easy"),
    Hypothesis("trapo_utility beats TRAPO where experts are bad", "trapo_utility", "trapo", worlds=WITH_BAD_EXPERTS),
    Hypothesis("trapo_utility beats TRAPO in all worlds", "trapo_utility", "trapo"),
)


class Study:
    """A Study holds the results of all runs; a method that sees no expert has one result for several worlds."""

    def __init__(self, rows: Mapping[Key, Mapping[str, Any]]) -> None:
        self._rows = rows
        self.seeds = sorted({seed for _, _, seed in rows})

    def rows(self, world: str, method: str) -> dict[int, Mapping[str, Any]]:
        """Return the results of a method in a world, by seed."""
        keys = {seed: run_for((world, method, seed)) for seed in self.seeds}
        return {seed: self._rows[key] for seed, key in keys.items() if key in self._rows}

    def methods(self) -> list[str]:
        return [name for name in METHODS if any(name == method for _, method, _ in self._rows)]

    def bits(self, world: str, method: str, part: Part) -> dict[int, np.ndarray]:
        return {seed: _bits(row["correct"][part]) for seed, row in self.rows(world, method).items()}


def _bits(text: str) -> np.ndarray:
    return np.array([int(bit) for bit in text], dtype=np.int8)


def interval(bits: Bits) -> tuple[float, float, float]:
    """Return the mean of (seeds, problems) and its 95 % interval."""
    draws = _means(bits, np.random.default_rng(0))
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(bits.mean()), float(low), float(high)


def difference(pairs: Sequence[tuple[Bits, Bits]]) -> tuple[float, float, float]:
    """Return the mean over worlds of (first - second) with its 95 % interval; all pairs have the same seeds.

    Worlds share their problems, and a method without experts has one run for several worlds. So the mean over worlds is
    taken for each seed and problem first.
    """
    return interval(np.mean([first.astype(float) - second for first, second in pairs], axis=0))


def _means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return bootstrapped means (NUM_DRAWS,) of values (seeds, problems): seeds are drawn, then each one's problems."""
    num_seeds, num_problems = values.shape
    seeds = rng.integers(num_seeds, size=(NUM_DRAWS, num_seeds))
    means = np.empty((NUM_DRAWS, num_seeds))
    for seed, row in enumerate(values):
        chosen = seeds == seed
        problems = rng.integers(num_problems, size=(int(chosen.sum()), num_problems))
        means[chosen] = row[problems].mean(axis=1)
    return means.mean(axis=1)


def table(study: Study, methods: Sequence[str], part: Part, worlds: Sequence[str]) -> Iterator[str]:
    """Yield accuracy with its interval and the number of seeds, methods down and worlds across."""
    cells = {name: [list(study.bits(world, name, part).values()) for world in worlds] for name in methods}
    if any(map(any, cells.values())):
        yield f"| method | {' | '.join(worlds)} |"
        yield "|---|" + "---|" * len(worlds)
        yield from (f"| {name} | {' | '.join(map(_cell, row))} |" for name, row in cells.items() if any(row))


def _cell(bits: Sequence[np.ndarray]) -> str:
    if not bits:
        return ""
    mean, low, high = interval(np.stack(bits))
    return f"{mean:.2f} ({low:.2f}–{high:.2f}; {len(bits)})"


def means(study: Study, methods: Sequence[str], part: Part) -> Iterator[str]:
    """Yield mean accuracy alone, methods down and all worlds across."""
    worlds = [world for world in SOLVERS if any(study.rows(world, name) for name in methods if sees_experts(name))]
    yield f"| method | {' | '.join(worlds)} |"
    yield "|---|" + "---|" * len(worlds)
    for name in methods:
        found = [list(study.bits(world, name, part).values()) for world in worlds]
        yield f"| {name} | " + " | ".join(f"{np.mean(bits):.2f}" if bits else "" for bits in found) + " |"


def answers(study: Study) -> Iterator[str]:
    """Yield a row for each hypothesis: holds, fails or cannot tell, by the interval of the mean difference.

    Worlds with fewer than MIN_SEEDS seeds are left out, if there are others.
    """
    yield "| hypothesis | difference (95 %) | worlds, seeds | better in | worse in | answer |"
    yield "|---|---|---|---|---|---|"
    for hypothesis in HYPOTHESES:
        pairs = _pairs(study, hypothesis)
        pairs = {world: pair for world, pair in pairs.items() if len(pair[0]) >= MIN_SEEDS} or pairs
        if not pairs:
            yield f"| {hypothesis.claim} | | 0 | | | not run |"
            continue
        seeds = _common_seeds(study, hypothesis, list(pairs))
        mean, low, high = difference([_pair(study, hypothesis, world, seeds) for world in pairs])
        answer = "holds" if low > 0 else "fails" if high < 0 else "cannot tell"
        if len(seeds) < MIN_SEEDS:
            answer = f"cannot tell with {len(seeds)} of {MIN_SEEDS} seeds"
        alone = {world: difference([pair]) for world, pair in pairs.items()}
        better = ", ".join(world for world, (_, low, _) in alone.items() if low > 0)
        worse = ", ".join(world for world, (_, _, high) in alone.items() if high < 0)
        yield (
            f"| {hypothesis.claim} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) | {len(pairs)}, {len(seeds)} | "
            f"{better} | {worse} | {answer} |"
        )


def _pairs(study: Study, hypothesis: Hypothesis) -> dict[str, tuple[Bits, Bits]]:
    """Return, for each world that has them, both methods' results in the seeds that both have."""
    pairs = {}
    for world in hypothesis.worlds:
        if seeds := _common_seeds(study, hypothesis, [world]):
            pairs[world] = _pair(study, hypothesis, world, seeds)
    return pairs


def _common_seeds(study: Study, hypothesis: Hypothesis, worlds: Sequence[str]) -> list[int]:
    """Return the seeds that both methods have in all these worlds."""
    methods = (hypothesis.better, hypothesis.worse)
    of_runs = [study.bits(world, name, hypothesis.part).keys() for world in worlds for name in methods]
    return [seed for seed in study.seeds if all(seed in seeds for seeds in of_runs)]


def _pair(study: Study, hypothesis: Hypothesis, world: str, seeds: Sequence[int]) -> tuple[Bits, Bits]:
    first, second = (study.bits(world, name, hypothesis.part) for name in (hypothesis.better, hypothesis.worse))
    return np.stack([first[seed] for seed in seeds]), np.stack([second[seed] for seed in seeds])


def costs(study: Study, methods: Sequence[str]) -> Iterator[str]:
    """Yield what a run of each method costs and does on the mean over its runs."""
    yield "| method | seconds | tokens trained | share helped | gain by help | entropy, last 4 steps | tokens |"
    yield "|---|---|---|---|---|---|---|"
    for method in methods:
        rows = [row for world in SOLVERS for row in study.rows(world, method).values() if row["num_steps"]]
        if rows:
            curves = [row["curves"] for row in rows]
            shown = [
                f"{np.mean([row['time/step'] for row in rows]):.0f}",
                f"{np.mean([row['train/tokens'] for row in rows]):.0f}",
                *(
                    _mean_of([value for curve in curves for value in curve[name]])
                    for name in ("rollout/guided", "reward/gain_by_help")
                ),
                _mean_of([curve["policy/entropy"][-1] for curve in curves]),
                _mean_of([value for curve in curves for value in curve["rollout/completion_tokens"]], digits=0),
            ]
            yield f"| {method} | " + " | ".join(shown) + " |"


def _mean_of(values: Sequence[float | None], *, digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.{digits}f}" if known else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD")
    args = parser.parse_args()
    study = Study(read_results(args.results))
    methods = args.methods or study.methods()
    blocks = [name for name in methods if "," not in name]
    for title, worlds in GROUPS.items():
        if rows := list(table(study, blocks, "hard", worlds)):
            print(f"\nAccuracy on hard problems, {title}: mean (95 % interval; seeds)\n")
            print("\n".join(rows))
    print("\nAccuracy on longer problems than any that was trained: means\n")
    print("\n".join(means(study, blocks, "longer")))
    print("\nAccuracy on easy problems, which the base solves before training: means\n")
    print("\n".join(means(study, blocks, "easy")))
    for block in ("trapo", "trapo_utility"):
        variants = [block, *(name for name in methods if name.startswith(f"{block}, "))]
        worlds = [world for world in SOLVERS if any(study.rows(world, name) for name in variants[1:])]
        print(f"\nVariants of {block}, hard problems: mean (95 % interval; seeds)\n")
        print("\n".join(table(study, variants, "hard", worlds)))
    print("\nHypotheses\n")
    print("\n".join(answers(study)))
    print("\nWhat a run costs\n")
    print("\n".join(costs(study, methods)))


if __name__ == "__main__":
    main()
