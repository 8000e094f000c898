"""Compute the order of problems from the seed and the step, so that no order needs saving."""

import math
from functools import lru_cache
from hashlib import sha256


def batch_indices(step: int, *, batch_size: int, num_problems: int, seed: int) -> list[int]:
    """Return the indices of the problems of step `step` (counted from 0).

    >>> [batch_indices(step, batch_size=2, num_problems=5, seed=0) for step in range(5)]
    [[4, 2], [0, 1], [3, 1], [3, 4], [0, 2]]

    Every epoch visits every problem once, in an order of its own. A batch may span two epochs, as the third one above.
    No problem occurs twice in a batch unless the batch is larger than the number of problems.
    """
    start = step * batch_size
    return [_problem_at(position, batch_size, num_problems, seed) for position in range(start, start + batch_size)]


def _problem_at(position: int, batch_size: int, num_problems: int, seed: int) -> int:
    epoch, offset = divmod(position, num_problems)
    return _epoch_order(epoch, batch_size, num_problems, seed)[offset]


@lru_cache(maxsize=4)
def _epoch_order(epoch: int, batch_size: int, num_problems: int, seed: int) -> tuple[int, ...]:
    """Return an epoch's problems in order. Problems of the batch begun in the epoch before come after that batch.

    An order depends on the epoch before it, and so on back to an epoch that begins with a new batch. If an epoch has
    at least two batches, the epoch before is enough, because this rule does not change its last batch.
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
    """Return problem indices in the order of their hashes. A library's shuffle may change between its versions."""
    return sorted(range(num_problems), key=lambda problem: sha256(f"{seed}/{epoch}/{problem}".encode()).digest())
