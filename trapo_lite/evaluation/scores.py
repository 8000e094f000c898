"""Compute an evaluation's numbers from verdicts: avg@k, pass@k, maj@k, intervals, and whether two runs differ.

A benchmark is a sequence of problems here, each with equally many independent draws.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 500
_Z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations


def pass_at_k(num_draws: int, num_correct: int, k: int) -> float:
    """Return the probability that k draws without replacement from these hold a correct one.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.25, 0.5, 1.0)

    Its mean over sets of draws is the probability that k fresh draws hold one, so it is unbiased. Raises ValueError
    unless 1 <= k <= num_draws. Source: Chen et al. 2021, arXiv:2107.03374.
    """
    if not 1 <= k <= num_draws:
        raise ValueError(f"pass_at_k: k={k} of {num_draws} draws; take 1 to {num_draws}")
    return 1.0 - math.comb(num_draws - num_correct, k) / math.comb(num_draws, k)


def majority_at_k(answers: Sequence[str | None], are_correct: Sequence[bool]) -> float:
    """Return 1 if the most frequent answer is correct, else 0. Of equally frequent answers, return the correct share.

    >>> majority_at_k(["7", "8", "7", None], [True, False, True, False])
    1.0
    >>> majority_at_k(["7", "8"], [True, False]), majority_at_k([None, None, "8"], [False, False, True])
    (0.5, 1.0)

    answers: the same spelling for the same answer; None has no vote, and without any vote the result is 0. Draws of one
    spelling with different verdicts (one timed out) count by their correct share.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    verdicts = list(zip(answers, are_correct, strict=True))
    leaders = [answer for answer, count in votes.items() if count == most]
    return sum(mean([is_right for answer, is_right in verdicts if answer == leader]) for leader in leaders) / len(
        leaders
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean, or NaN (never 0) of no values."""
    return sum(values) / len(values) if values else math.nan


def interval_95(values: Sequence[float], *, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean: bootstrap, or Wilson's if all values are 0 or all are 1.

    Every resample is the same then, and says nothing. Returns NaN without values.
    """
    if values and set(values) in ({0.0}, {1.0}):
        return wilson_interval(round(sum(values)), len(values))
    return bootstrap_interval(values, seed=seed)


def bootstrap_interval(values: Sequence[float], *, seed: int) -> tuple[float, float]:
    """Return percentiles 2.5 and 97.5 of the mean of `values` resampled with replacement.

    >>> bootstrap_interval([0.0, 1.0], seed=0)
    (0.0, 1.0)
    """
    if not values:
        return math.nan, math.nan
    return _percentiles(_resampled_means(values, torch.Generator().manual_seed(seed)))


def interval_of_mean(estimates: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the interval of the mean of independent estimates, from the interval of each.

    Distances to the ends add up as variances do (MOVER; Zou and Donner, Statistics in Medicine 27, 2008).

    >>> low, high = interval_of_mean([0.5, 0.5], [(0.2, 0.9), (0.1, 0.8)])
    >>> round(low, 3), round(high, 3)
    (0.25, 0.75)
    """
    below = math.hypot(*(value - low for value, (low, _) in zip(estimates, intervals, strict=True)))
    above = math.hypot(*(high - value for value, (_, high) in zip(estimates, intervals, strict=True)))
    return mean(estimates) - below / len(estimates), mean(estimates) + above / len(estimates)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share.

    >>> low, high = wilson_interval(10, 10)
    >>> round(low, 3), round(high, 3)
    (0.722, 1.0)
    """
    share = successes / trials
    centre = (share + _Z * _Z / (2 * trials)) / (1 + _Z * _Z / trials)
    half = _Z / (1 + _Z * _Z / trials) * math.sqrt(share * (1 - share) / trials + _Z * _Z / (4 * trials * trials))
    low = 0.0 if successes == 0 else centre - half  # exactly 0, without rounding; the other end likewise
    return low, 1.0 if successes == trials else centre + half


@dataclass(frozen=True)
class Difference:
    """Compare two runs on the same problems: second minus first.

    p_value: how often a difference at least as large results if each problem's two values are swapped at random, as
             if the runs were equally good (two-sided permutation test)
    """

    mean: float
    interval_95: tuple[float, float]
    p_value: float


def paired_difference(first: Sequence[float], second: Sequence[float], *, seed: int) -> Difference:
    """Compare the values of each problem under two runs, such as its avg@k. Raise ValueError without problems."""
    if not first or len(first) != len(second):
        raise ValueError(f"paired_difference: {len(first)} and {len(second)} values; give two of each problem")
    gaps = torch.tensor(second, dtype=torch.float64) - torch.tensor(first, dtype=torch.float64)
    observed = gaps.mean().abs().item()
    generator = torch.Generator().manual_seed(seed)
    # The observed difference is one of the possible ones, so that no p-value is 0.
    as_large = 1 + sum(
        int((_swapped_means(gaps, generator).abs() >= observed - 1e-12).sum())
        for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE)
    )
    return Difference(gaps.mean().item(), bootstrap_interval(gaps.tolist(), seed=seed), as_large / (NUM_RESAMPLES + 1))


def _resampled_means(values: Sequence[float], generator: torch.Generator) -> Tensor:
    pool = torch.tensor(values, dtype=torch.float64)
    means = []
    for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE):
        draws = torch.randint(len(values), (RESAMPLES_AT_ONCE, len(values)), generator=generator)
        means.append(pool[draws].mean(dim=1))
    return torch.cat(means)


def _percentiles(means: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _swapped_means(gaps: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(2, (RESAMPLES_AT_ONCE, len(gaps)), generator=generator) * 2 - 1
    return (gaps * signs).mean(dim=1)
