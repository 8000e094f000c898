"""Compute the order of problems from the seed and the step, so that no order needs saving."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from heapq import nsmallest


@dataclass(frozen=True)
class ProblemOrder:
    """A ProblemOrder says which problems a step draws, from each source as many as `split` says.

    sources: indices of the problems of each source; no source has fewer than it gives to a step
    """

    sources: Sequence[Sequence[int]]
    split: Sequence[int]
    seed: int

    def batch(self, step: int) -> list[int]:
        """Return the indices of the step's problems."""
        return [
            members[index]
            for members, count in zip(self.sources, self.split, strict=True)
            for index in batch_indices(step, batch_size=count, num_problems=len(members), seed=self.seed)
        ]

    def substitutes(self, step: int, *, most: int) -> list[list[int]]:
        """Return for each problem of `batch` up to `most` others of its source that may replace it, one by one."""
        return [
            [members[index] for index in others]
            for members, count in zip(self.sources, self.split, strict=True)
            for others in substitute_indices(
                step, batch_size=count, num_problems=len(members), seed=self.seed, most=most
            )
        ]


def batch_indices(step: int, *, batch_size: int, num_problems: int, seed: int) -> list[int]:
    """Return the indices of the problems of step `step` (counted from 0).

    >>> [batch_indices(step, batch_size=2, num_problems=5, seed=0) for step in range(5)]
    [[4, 2], [0, 1], [3, 1], [3, 4], [0, 2]]

    Every epoch visits every problem once, in an order of its own. A batch may span two epochs, as the third one above.
    No problem occurs twice in a batch unless the batch is larger than the number of problems.
    """
    start = step * batch_size
    return [_problem_at(position, batch_size, num_problems, seed) for position in range(start, start + batch_size)]


def substitute_indices(step: int, *, batch_size: int, num_problems: int, seed: int, most: int) -> list[list[int]]:
    """Return for each problem of step `step` the indices of up to `most` others that may replace it, one by one.

    >>> substitute_indices(0, batch_size=2, num_problems=7, seed=0, most=2)
    [[5, 6], [3, 0]]

    No index occurs twice, nor is it one of the step's problems. If the data is too small, the lists are shorter.
    """
    batch = set(batch_indices(step, batch_size=batch_size, num_problems=num_problems, seed=seed))
    others = (problem for problem in range(num_problems) if problem not in batch)
    drawn = nsmallest(batch_size * most, others, key=lambda problem: _hash(f"{seed}/{step}/substitute/{problem}"))
    return [drawn[position::batch_size] for position in range(batch_size)]


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
    return sorted(range(num_problems), key=lambda problem: _hash(f"{seed}/{epoch}/{problem}"))


def _hash(text: str) -> bytes:
    return sha256(text.encode()).digest()
