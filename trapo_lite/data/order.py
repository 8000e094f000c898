"""The order of problems: a function of the seed and the step, so that nothing of it needs saving."""

import math
from functools import lru_cache
from hashlib import sha256


def batch_indices(step: int, *, batch_size: int, num_problems: int, seed: int) -> list[int]:
    """Which problems step `step` (from 0) works on.

    >>> [batch_indices(step, batch_size=2, num_problems=5, seed=0) for step in range(5)]
    [[4, 2], [0, 1], [3, 1], [3, 4], [0, 2]]

    Every epoch goes through every problem once, in its own order; a batch may lie across two epochs (above: the third).
    No problem stands twice in a batch unless it holds more than there are problems.
    """
    start = step * batch_size
    return [_problem_at(place, batch_size, num_problems, seed) for place in range(start, start + batch_size)]


def _problem_at(place: int, batch_size: int, num_problems: int, seed: int) -> int:
    epoch, offset = divmod(place, num_problems)
    return _epoch_order(epoch, batch_size, num_problems, seed)[offset]


@lru_cache(maxsize=4)
def _epoch_order(epoch: int, batch_size: int, num_problems: int, seed: int) -> tuple[int, ...]:
    """An epoch's problems. Those still in the batch begun before it wait until that batch is full.

    They depend on the epoch before and so on, back to one that began with a batch of its own; or on the epoch before
    alone, where an epoch is long enough for that wait to leave its last batch as it was.
    """
    period = batch_size // math.gcd(batch_size, num_problems)
    first = epoch - epoch % period
    if num_problems >= 2 * batch_size:
        first = max(first, epoch - 1)
    order = _shuffled(first, num_problems, seed)
    for later in range(first + 1, epoch + 1):
        num_begun = later * num_problems % batch_size
        begun = set(order[max(0, num_problems - num_begun) :])
        order = _shuffled(later, num_problems, seed)
        fill = [problem for problem in order if problem not in begun][: batch_size - num_begun]
        filling = set(fill)
        order = fill + [problem for problem in order if problem not in filling]
    return tuple(order)


def _shuffled(epoch: int, num_problems: int, seed: int) -> list[int]:
    """By hash, not by a library's generator, whose shuffle may change between versions."""
    return sorted(range(num_problems), key=lambda problem: sha256(f"{seed}/{epoch}/{problem}".encode()).digest())
