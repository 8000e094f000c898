"""Scores against enumeration and against what they estimate."""

import itertools
import random
import statistics

import pytest

from trapo_lite.evaluation import scores


@pytest.mark.parametrize(("draws", "correct"), [(5, 0), (5, 2), (6, 5), (4, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_draw(draws: int, correct: int) -> None:
    pool = [True] * correct + [False] * (draws - correct)
    for k in range(1, draws + 1):
        subsets = list(itertools.combinations(pool, k))
        assert scores.pass_at_k(draws, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_unbiased_where_the_plain_estimate_is_not() -> None:
    """1 - (1 - c/n)^k, from the share of correct draws, is too low: at p = 0.2, n = 6, k = 4 by about 0.09."""
    rng, p, n, k = random.Random(0), 0.2, 6, 4
    counts = [sum(rng.random() < p for _ in range(n)) for _ in range(20_000)]
    truth = 1 - (1 - p) ** k
    assert statistics.mean(scores.pass_at_k(n, c, k) for c in counts) == pytest.approx(truth, abs=0.01)
    assert statistics.mean(1 - (1 - c / n) ** k for c in counts) < truth - 0.05


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_of_draws_that_there_are_not(k: int) -> None:
    with pytest.raises(ValueError, match="take 1 to 4"):
        scores.pass_at_k(4, 2, k)


def test_no_answer_has_no_vote() -> None:
    assert scores.majority_at_k([None, None, None], [False] * 3) == 0.0
    assert scores.majority_at_k(["a", "b", "b", "a", "c"], [True, False, False, True, False]) == 0.5
    assert scores.majority_at_k(["7", "7"], [True, False]) == scores.majority_at_k(["7", "7"], [False, True]) == 0.5


def test_a_paired_test_sees_what_two_intervals_do_not() -> None:
    """Problems differ much, runs a little, always in the same direction."""
    rng = random.Random(1)
    first = [rng.random() * 0.9 for _ in range(60)]
    second = [value + rng.choice([0.0, 0.05]) for value in first]
    assert scores.interval_95(first, seed=0)[1] > scores.interval_95(second, seed=0)[0]
    found = scores.paired_difference(first, second, seed=0)
    assert found.mean == pytest.approx(statistics.mean(second) - statistics.mean(first))
    assert found.interval_95[0] > 0 and found.p_value < 0.001


@pytest.mark.slow
def test_a_paired_test_of_equals_says_so_and_rejects_as_often_as_it_may() -> None:
    assert scores.paired_difference([0.0, 1.0], [0.0, 1.0], seed=0).p_value == 1.0
    rng = random.Random(2)
    rejected = 0
    for _ in range(200):
        first, second = ([float(rng.random() < 0.5) for _ in range(40)] for _ in range(2))
        rejected += scores.paired_difference(first, second, seed=0).p_value <= 0.05
    assert rejected <= 20  # 5 % of 200 are 10; more than 20 has a chance under 0.2 %


def test_paired_values_must_pair() -> None:
    with pytest.raises(ValueError, match="two of each problem"):
        scores.paired_difference([0.0], [0.0, 1.0], seed=0)


@pytest.mark.slow
def test_the_interval_of_an_average_is_that_of_resampling_each_set_and_never_empty() -> None:
    rng = random.Random(3)
    groups = [[float(rng.random() < p) for _ in range(n)] for p, n in ((0.5, 30), (0.3, 80), (0.8, 500))]
    low, high = scores.interval_of_mean(
        [statistics.mean(values) for values in groups], [scores.interval_95(values, seed=0) for values in groups]
    )
    means = sorted(statistics.fmean(statistics.fmean(rng.choices(g, k=len(g))) for g in groups) for _ in range(2000))
    assert low == pytest.approx(means[50], abs=0.01) and high == pytest.approx(means[1950], abs=0.01)
    none = scores.interval_of_mean([0.0] * 5, [scores.interval_95([0.0] * 40, seed=0)] * 5)
    assert none[0] == 0.0 and none[1] > 0.03
