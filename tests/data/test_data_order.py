"""The order of problems: every one once an epoch, none twice in a batch, nothing but seed and step decides."""

from collections import Counter
from itertools import chain

import pytest

from trapo_lite.data.order import batch_indices, substitute_indices


def dealt(num_steps: int, batch_size: int, num_problems: int, seed: int = 0) -> list[list[int]]:
    return [
        batch_indices(step, batch_size=batch_size, num_problems=num_problems, seed=seed) for step in range(num_steps)
    ]


@pytest.mark.parametrize(("batch_size", "num_problems"), [(4, 12), (4, 10), (3, 5), (4, 5), (5, 5), (7, 11), (1, 3)])
def test_every_problem_once_an_epoch_and_never_twice_in_a_batch(batch_size, num_problems):
    num_epochs = 3 * batch_size
    batches = dealt(num_epochs * num_problems // batch_size, batch_size, num_problems)
    assert all(len(set(batch)) == batch_size for batch in batches)
    order = [problem for batch in batches for problem in batch]
    for epoch in range(num_epochs):
        assert sorted(order[epoch * num_problems : (epoch + 1) * num_problems]) == list(range(num_problems))


def test_a_batch_larger_than_the_data_repeats_it():
    assert sorted(batch_indices(0, batch_size=5, num_problems=2, seed=0)) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


def test_steps_can_be_asked_for_in_any_order():
    in_order = dealt(60, 4, 10)
    assert [batch_indices(step, batch_size=4, num_problems=10, seed=0) for step in reversed(range(60))] == in_order[
        ::-1
    ]


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = [tuple(chain.from_iterable(dealt(4, 5, 20, seed))) for seed in range(3)]
    orders.append(tuple(chain.from_iterable(dealt(8, 5, 20)[4:])))
    assert len(set(orders)) == 4


def test_places_are_evenly_taken():
    """Over 400 seeds each of 5 problems is first about 80 times (binomial, deviation 8: 48 to 112 is four of them)."""
    first = [batch_indices(0, batch_size=1, num_problems=5, seed=seed)[0] for seed in range(400)]
    assert all(48 <= first.count(problem) <= 112 for problem in range(5))


@pytest.mark.parametrize(("batch_size", "num_problems", "most"), [(4, 40, 3), (4, 10, 3), (3, 3, 2), (2, 9, 0)])
def test_substitutes_are_other_problems_and_none_stands_in_twice(batch_size, num_problems, most):
    for step in range(30):
        batch = batch_indices(step, batch_size=batch_size, num_problems=num_problems, seed=0)
        lists = substitute_indices(step, batch_size=batch_size, num_problems=num_problems, seed=0, most=most)
        drawn = [*batch, *chain.from_iterable(lists)]
        assert len(lists) == batch_size and max(map(len, lists)) <= most
        assert len(drawn) == len(set(drawn)) == min(num_problems, batch_size * (1 + most))


def test_all_problems_are_equally_often_substitutes():
    most, num_steps, num_problems = 2, 600, 20
    lists = [substitute_indices(step, batch_size=2, num_problems=20, seed=3, most=most) for step in range(num_steps)]
    counts = Counter(chain.from_iterable(chain.from_iterable(lists)))
    expected = num_steps * 2 * most / num_problems  # 120, with a standard deviation of 10
    assert all(abs(counts[problem] - expected) < 50 for problem in range(num_problems)), counts
