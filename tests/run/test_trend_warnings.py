"""Warnings that need several steps come once, at the step that shows them, and not again after a resume."""

import random
from typing import Any

from trapo_lite.run.trend_warnings import TrendWarnings


def steps(num: int, **values: Any) -> list[dict[str, Any]]:
    names = {"gain": "reward/gain_by_help", "entropy": "policy/entropy", "solved": "rollout/solved_groups"}
    return [{names[name]: value for name, value in values.items()} for _ in range(num)]


def given(rows: list[dict[str, Any]], earlier: int = 0) -> list[tuple[int, str]]:
    """(step, what the warning begins with) of each."""
    trends = TrendWarnings(rows[:earlier])
    numbered = list(enumerate(rows, start=1))[earlier:]
    return [(step, line[:16]) for step, row in numbered for line in trends.after(row)]


def test_help_that_harms_is_told_once_after_ten_steps_with_help() -> None:
    rows = steps(2, gain=None) + [row for _ in range(10) for row in steps(1, gain=-0.1) + steps(1, gain=-0.2)]
    assert given(rows) == [(12, "guided rollouts ")]
    assert given(rows, earlier=11) == [(12, "guided rollouts ")]
    assert given(rows, earlier=12) == []
    assert given(steps(20, gain=0.0)) == [] == given(steps(20, gain=-1e-9))


def test_a_run_that_acts_on_the_use_of_help_is_not_warned_of_it() -> None:
    rows = [{**row, "utility/gain_2": -0.1} for _ in range(10) for row in steps(1, gain=-0.1) + steps(1, gain=-0.2)]
    assert given(rows) == []


def test_noise_around_a_gain_is_hardly_ever_taken_for_harm() -> None:
    """100 runs of 100 steps each: with a gain of 0.05 and noise of 0.2, and with a loss of 0.2 and the same noise."""
    rng = random.Random(0)

    def num_warned(mean: float) -> int:
        runs = [[row for _ in range(100) for row in steps(1, gain=rng.gauss(mean, 0.2))] for _ in range(100)]
        return sum(bool(given(run)) for run in runs)

    assert num_warned(0.05) <= 3
    assert num_warned(-0.2) == 100


def test_an_entropy_that_collapses_is_told_unless_most_problems_are_solved() -> None:
    def run(solved: float, last: float) -> list[dict[str, Any]]:
        return steps(5, entropy=0.6, solved=solved) + steps(8, entropy=last, solved=solved)

    assert given(run(0.1, 0.05)) == [(10, "policy/entropy f")]
    assert given(run(0.1, 0.07)) == [] == given(run(0.6, 0.0))
    assert given(run(0.1, 0.0)[:9]) == []
