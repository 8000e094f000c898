"""Adaptive prefix selection: METHOD 3's table, its cut examples, and every verdict pattern there is."""

import itertools
import random
from collections.abc import Sequence

import pytest

from trapo_lite.core.micro_groups import PRESETS, MicroGroup, cut_prefix, prefix_ratio

PATTERNS = list(itertools.product([0.0, 1.0], repeat=8))
"""Every way in which the eight rollouts of a problem can turn out."""


def levels(micro_groups: Sequence[MicroGroup], returns: Sequence[float]) -> str:
    """One digit a micro-group: its number less one where it gets help, else 0. "0023": help from the third one on."""
    digits, start = "", 0
    for number, micro_group in enumerate(micro_groups):
        digits += str(number) if prefix_ratio(micro_group, returns[:start]) > 0 else "0"
        start += micro_group.num_rollouts
    return digits


def test_the_presets_are_the_methods_table() -> None:
    for name, ratios in (("paper", [0, 0.2, 0.5, 1.0]), ("reference_code", [0, 0.25, 0.5, 1.0])):
        assert [group.num_rollouts for group in PRESETS[name]] == [4, 2, 1, 1]
        assert [group.prefix_ratio for group in PRESETS[name]] == ratios
    assert [group.help_below for group in PRESETS["paper"]][1:] == [0.5, 0.7, 0.9]
    assert [group.trace for group in PRESETS["reference_code"]][1:] == [0, 0, 1]
    assert [group.num_trained for group in PRESETS["reference_code"]][1:] == [1, None, None]
    assert all(group.trace is None and group.num_trained is None for group in PRESETS["paper"][1:])


def test_reference_code_helps_below_exactly_two_four_and_seven_solved() -> None:
    _, second, third, fourth = PRESETS["reference_code"]
    for returns in PATTERNS:
        assert (prefix_ratio(second, returns[:4]) > 0) == (sum(returns[:4]) < 2)
        assert (prefix_ratio(third, returns[:6]) > 0) == (sum(returns[:6]) < 4)
        assert (prefix_ratio(fourth, returns[:7]) > 0) == (sum(returns[:7]) < 7)


def test_a_threshold_rounded_up_would_help_at_four_of_six() -> None:
    rounded = MicroGroup(1, 0.5, 0.667)
    assert prefix_ratio(rounded, [1, 1, 1, 1, 0, 0]) == 0.5
    assert prefix_ratio(PRESETS["reference_code"][2], [1, 1, 1, 1, 0, 0]) == 0.0


def test_paper_and_code_differ_at_four_of_six_only() -> None:
    """With 0/1 returns, as METHOD 3 says."""
    starts = (0, 4, 6, 7)
    for paper, code, start in zip(PRESETS["paper"], PRESETS["reference_code"], starts, strict=True):
        for returns in PATTERNS:
            so_far = returns[:start]
            differ = (prefix_ratio(paper, so_far) > 0) != (prefix_ratio(code, so_far) > 0)
            assert differ == (start == 6 and sum(so_far) == 4)


@pytest.mark.parametrize("preset", ["paper", "reference_code"])
def test_once_on_help_never_switches_off(preset: str) -> None:
    assert {levels(PRESETS[preset], returns) for returns in PATTERNS} == {"0000", "0003", "0023", "0123"}


def test_other_thresholds_may_switch_help_off() -> None:
    """All earlier rollouts count, guided ones included, and the rule is recomputed each time."""
    micro_groups = (MicroGroup(2, 0.0, 0.0), MicroGroup(2, 0.5, 0.5), MicroGroup(1, 1.0, 0.5))
    assert levels(micro_groups, [0, 0, 1, 1, 0]) == "010"
    assert levels(micro_groups, [0, 0, 1, 0, 0]) == "012"


@pytest.mark.parametrize(
    ("help_below", "returns", "helps"),
    [
        (None, [], True),
        (None, [1, 1], True),
        (0.5, [], False),  # no evidence that help is needed
        (0.0, [], False),
        (0.0, [0, 0], False),  # nothing is below 0
        (0.5, [0, 1], False),  # exactly at the threshold
        (0.5, [0, 0, 1], True),
        (1.0, [1, 1], False),
        (1.0, [1, 0], True),
    ],
)
def test_help_below(help_below: float | None, returns: list[float], helps: bool) -> None:
    assert prefix_ratio(MicroGroup(1, 0.25, help_below), returns) == (0.25 if helps else 0.0)


# ----- cutting


BOUNDARY = 0


def trace(length: int, *boundaries: int) -> list[int]:
    return [BOUNDARY if index in boundaries else 7 for index in range(length)]


def is_boundary(token: int) -> bool:
    return token == BOUNDARY


@pytest.mark.parametrize(("boundary", "length"), [(24, 25), (25, 25), (26, 27), (54, 55), (60, 25)])
def test_the_methods_cut_examples(boundary: int, length: int) -> None:
    assert cut_prefix(trace(100, boundary), 0.25, is_boundary) == length


@pytest.mark.parametrize(
    ("token_ids", "ratio", "length"),
    [
        (trace(100, 30, 40), 0.25, 31),  # the first boundary counts
        (trace(100, 10, 25, 70), 0.25, 25),  # too early, at the threshold, too late
        (trace(100), 0.25, 25),
        (trace(100, 30), 0.0, 0),
        (trace(100, 30), 1.0, 100),
        (trace(3), 0.25, 0),
        (trace(4), 0.25, 1),
        (trace(4, 2), 0.25, 3),
        (trace(10, 9), 0.8, 10),  # a boundary as the last token
        ([], 0.5, 0),
        ([], 1.0, 0),
    ],
)
def test_cuts(token_ids: list[int], ratio: float, length: int) -> None:
    assert cut_prefix(token_ids, ratio, is_boundary) == length


def test_slack_is_how_much_further_a_boundary_may_lie() -> None:
    assert cut_prefix(trace(100, 30), 0.25, is_boundary, slack=0.05) == 25
    assert cut_prefix(trace(100, 29), 0.25, is_boundary, slack=0.05) == 30


def by_the_book(token_ids: list[int], ratio: float) -> int:
    """METHOD 3, "Cutting a prefix", word by word."""
    threshold = int(len(token_ids) * ratio)
    after = [index for index, token in enumerate(token_ids) if is_boundary(token) and index > threshold]
    if after and after[0] < len(token_ids) * (ratio + 0.3):
        return after[0] + 1
    return threshold


def test_random_cuts_follow_the_rule() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        token_ids = [rng.randrange(8) for _ in range(rng.randint(0, 60))]
        ratio = rng.choice([0.1, 0.2, 0.25, 0.5, 0.7, 0.9])
        assert cut_prefix(token_ids, ratio, is_boundary) == by_the_book(token_ids, ratio)
