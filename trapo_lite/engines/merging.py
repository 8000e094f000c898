"""Merge an adapter into the weights of its layers, and restore the weights bit for bit.

    M = round(W + B A)       in float32, rounded once to the type of W

`round(M - B A)` restores W except for a few elements with a rounding step between; those are stored. So the cost is
about ten bytes for each of them, instead of a second copy of the base.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**22  # elements of a weight at a time, so that float32 copies stay small


class MergeError(RuntimeError):
    """Raised if the restored weights differ from the original: the engine must be started again."""


@dataclass(frozen=True)
class Update:
    """Hold B A for one weight: a (r, in), b (out, r) with the scale included."""

    a: Tensor
    b: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """Return these rows of B A: (stop - start, in), float32."""
        return self.b[start:stop].float() @ self.a.float()


@dataclass(frozen=True)
class Undo:
    """Hold what `restore` needs besides the update.

    It has the elements that subtraction does not restore, and a fingerprint of the weight's bits to check the result.
    """

    positions: Tensor
    values: Tensor
    bits: int


@dataclass(frozen=True)
class Kept:
    """Hold the part of the update in the merged weights: sums over elements of (M - W) * U and of U * U, U = B A."""

    along: float
    whole: float

    def __add__(self, other: "Kept") -> "Kept":
        return Kept(self.along + other.along, self.whole + other.whole)

    @property
    def share(self) -> float:
        """Return the kept share. 1: all; 0: rounding deleted the update. It is 1 if the update is empty."""
        return self.along / self.whole if self.whole > 0 else 1.0


@torch.no_grad()
def merge(weight: Tensor, update: Update) -> tuple[Undo, Kept]:
    """Add the update to `weight` (out, in; float32, bfloat16 or float16), in place."""
    bits = fingerprint(weight)
    positions, values, sums = [], [], []
    for start, rows in _chunks(weight):
        change = update.rows(start, start + len(rows))
        merged = (rows.float() + change).to(weight.dtype)
        lost = _bits((merged.float() - change).to(weight.dtype)).ne(_bits(rows)).flatten().nonzero().squeeze(1)
        positions.append(lost + start * weight.shape[1])
        values.append(rows.flatten()[lost])
        moved, change = (merged.float() - rows.float()).flatten(), change.flatten()
        sums.append(torch.stack([moved.dot(change), change.dot(change)]).double())
        rows.copy_(merged)
    along, whole = torch.stack(sums).sum(dim=0).tolist()
    return Undo(torch.cat(positions), torch.cat(values), bits), Kept(along, whole)


@torch.no_grad()
def restore(weight: Tensor, update: Update, undo: Undo) -> None:
    """Undo `merge` in place. Raise MergeError unless every bit is restored, for example if B A is not repeatable."""
    for start, rows in _chunks(weight):
        rows.copy_((rows.float() - update.rows(start, start + len(rows))).to(weight.dtype))
    weight.view(-1)[undo.positions] = undo.values
    if fingerprint(weight) != undo.bits:
        raise MergeError("merging: the base's weights did not come back bit for bit")


def fingerprint(weight: Tensor) -> int:
    """Sum, modulo 2^64, the bit patterns of (rows, columns), each times 2 n + 1 for position n.

    So the sum changes with any element, and if two elements change by as much or are swapped. It is computed from the
    sums of rows and columns, so that the weight is read twice and nothing of its size is written.

    >>> expected = fingerprint(torch.tensor([[1.0, 2.0]]))
    >>> [fingerprint(torch.tensor([row])) == expected for row in ([1.0, 2.0], [1.0, 2.0000002], [2.0, 1.0])]
    [True, False, False]
    """
    bits, (num_rows, num_columns) = _bits(weight), weight.shape
    by_row, by_column = (bits.sum(dim=dim, dtype=torch.int64) for dim in (1, 0))
    row, column = (torch.arange(count, device=weight.device) for count in (num_rows, num_columns))
    total = (by_row * (2 * num_columns * row + 1)).sum() + (by_column * 2 * column).sum()
    return int(total.item())


def _bits(weight: Tensor) -> Tensor:
    return weight.view({2: torch.int16, 4: torch.int32}[weight.element_size()])


def _chunks(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, rows) of the whole weight. Each chunk is a view."""
    size = max(1, CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], size):
        yield start, weight[start : start + size]
