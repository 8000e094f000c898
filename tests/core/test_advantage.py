"""Group-relative advantages against hand-written tables."""

import math

import pytest
import torch

from trapo_lite.core.advantage import group_advantages


def advantages(
    rewards: list[list[float]], in_baseline: list[list[bool]] | None = None, *, std: bool
) -> list[list[float]]:
    mask = None if in_baseline is None else torch.tensor(in_baseline)
    return group_advantages(torch.tensor(rewards), mask, divide_by_std=std).tolist()


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 0, 0, 0], [3 / 4, -1 / 4, -1 / 4, -1 / 4]),
        ([1, 1, 1, 0], [1 / 4, 1 / 4, 1 / 4, -3 / 4]),
        ([1, 1, 1, 1], [0, 0, 0, 0]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        # METHOD 3: all seven own rollouts fail and the expert's verifies, so each own rollout gets -1/8
        ([0, 0, 0, 0, 0, 0, 0, 1], [-1 / 8] * 7 + [7 / 8]),
        ([1], [0]),
        ([0], [0]),
    ],
)
def test_reward_minus_the_groups_mean(rewards: list[float], expected: list[float]) -> None:
    assert advantages([rewards], std=False) == [pytest.approx(expected)]


def test_each_problem_has_its_own_baseline() -> None:
    found = advantages([[1, 0], [1, 1]], std=False)
    assert found == [[0.5, -0.5], [0.0, 0.0]]
    with pytest.raises(AssertionError):  # one mean over the batch, as a missing group key gives (METHOD 6)
        assert found == [[0.25, -0.75], [0.25, 0.25]]


def test_division_by_the_unbiased_deviation_plus_a_millionth() -> None:
    rewards = [1.0, 0.0, 0.0, 0.0]
    deviation = math.sqrt(((3 / 4) ** 2 + 3 * (1 / 4) ** 2) / 3)
    expected = [(reward - 1 / 4) / (deviation + 1e-6) for reward in rewards]
    assert advantages([rewards], std=True) == [pytest.approx(expected)]
    biased = math.sqrt(((3 / 4) ** 2 + 3 * (1 / 4) ** 2) / 4)
    assert advantages([rewards], std=True) != [pytest.approx([(r - 1 / 4) / (biased + 1e-6) for r in rewards])]


def test_the_millionth_counts_where_the_deviation_is_small() -> None:
    found = group_advantages(torch.tensor([[0.0, 2e-6]]), divide_by_std=True)
    deviation = math.sqrt(2.0) * 1e-6
    torch.testing.assert_close(found, torch.tensor([[-1e-6, 1e-6]]) / (deviation + 1e-6))


@pytest.mark.parametrize("rewards", [[1.0, 1.0, 1.0], [0.0, 0.0], [1.0]], ids=["solved", "failed", "group-of-one"])
def test_without_spread_the_deviation_is_one(rewards: list[float]) -> None:
    assert advantages([rewards], std=True) == [[0.0] * len(rewards)]


def test_rollouts_outside_the_baseline_have_an_advantage_but_no_say() -> None:
    """count_expert_in_baseline: false. Own rewards 1 0 0, the expert's 1: the mean is 1/3, not 1/2."""
    mask = [[True, True, True, False]]
    assert advantages([[1, 0, 0, 1]], mask, std=False) == [pytest.approx([2 / 3, -1 / 3, -1 / 3, 2 / 3])]
    deviation = math.sqrt(((2 / 3) ** 2 + 2 * (1 / 3) ** 2) / 2) + 1e-6
    expected = [2 / 3 / deviation, -1 / 3 / deviation, -1 / 3 / deviation, 2 / 3 / deviation]
    assert advantages([[1, 0, 0, 1]], mask, std=True) == [pytest.approx(expected)]


@pytest.mark.parametrize("std", [False, True])
def test_a_deviation_over_one_counted_rollout_is_one_and_without_any_the_mean_is_zero(std: bool) -> None:
    assert advantages([[0, 1]], [[True, False]], std=std) == [[0.0, 1.0]]
    assert advantages([[0, 1]], [[False, False]], std=std) == [[0.0, 1.0]]


def test_all_counted_is_the_default() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    for std in (False, True):
        every = group_advantages(rewards, torch.ones(2, 3, dtype=torch.bool), divide_by_std=std)
        assert torch.equal(every, group_advantages(rewards, divide_by_std=std))


def test_integer_rewards_give_float32_and_are_left_alone() -> None:
    rewards = torch.tensor([[1, 0]])
    assert group_advantages(rewards, divide_by_std=False).dtype == torch.float32
    assert rewards.tolist() == [[1, 0]]


def test_rewards_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        group_advantages(torch.tensor([1.0, 0.0]), divide_by_std=False)


@pytest.mark.parametrize("divide_by_std", [False, True])
@pytest.mark.parametrize("reward", [0.1, 0.2, 1.2, 1e6 / 3])
def test_equal_rewards_have_no_advantage_whatever_rounding_does(reward: float, divide_by_std: bool) -> None:
    rewards = torch.full((1, 8), reward)
    assert group_advantages(rewards, divide_by_std=divide_by_std).tolist() == [[0.0] * 8]
    in_baseline = torch.tensor([[True] * 7 + [False]])
    rewards[0, 7] = 5.0
    assert group_advantages(rewards, in_baseline, divide_by_std=divide_by_std)[0, :7].tolist() == [0.0] * 7
