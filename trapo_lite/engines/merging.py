"""An adapter folded into the weights of its layers, and the weights restored bit for bit.

    M = round(W + B A)       in float32, rounded once to the type of W

`round(M - B A)` gives W back but for a few elements where the rounding went across; those are kept. So the price of
going back is some ten bytes for each of them, instead of a second copy of the base.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**22  # of a weight at a time, so that float32 copies stay small


class MergeError(RuntimeError):
    """The weights that came back are not those that went in: the engine must be started again."""


@dataclass(frozen=True)
class Update:
    """B A for one weight: a (r, in), b (out, r) with the scale in it."""

    a: Tensor
    b: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, in), float32."""
        return self.b[start:stop].float() @ self.a.float()


@dataclass(frozen=True)
class Undo:
    """What `restore` needs besides the update: the elements that subtraction does not bring back, and a fingerprint of
    the whole weight's bits to know whether it has."""

    positions: Tensor
    values: Tensor
    bits: int


@dataclass(frozen=True)
class Kept:
    """How much of the update is in the merged weights: sums over elements of (M - W) * U and of U * U, U = B A."""

    along: float
    whole: float

    def __add__(self, other: "Kept") -> "Kept":
        return Kept(self.along + other.along, self.whole + other.whole)

    @property
    def share(self) -> float:
        """1: all; 0: rounding has deleted the update. 1 where there is nothing to keep."""
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
    """Undo `merge`, in place; MergeError unless every bit is back (the matrix product was not repeatable, say)."""
    for start, rows in _chunks(weight):
        rows.copy_((rows.float() - update.rows(start, start + len(rows))).to(weight.dtype))
    weight.view(-1)[undo.positions] = undo.values
    if fingerprint(weight) != undo.bits:
        raise MergeError("merging: the base's weights did not come back bit for bit")


def fingerprint(weight: Tensor) -> int:
    """A sum, modulo 2^64, of the bit patterns of (rows, columns), each times 2 n + 1 for the n-th place.

    So neither an element that differs goes unseen, nor two that differ by as much or have changed places. It is made
    of the sums of rows and columns, so that the weight is read twice and nothing as large as it is written.

    >>> one = fingerprint(torch.tensor([[1.0, 2.0]]))
    >>> [fingerprint(torch.tensor([other])) == one for other in ([1.0, 2.0], [1.0, 2.0000002], [2.0, 1.0])]
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
    """(first row, rows) over the whole of it, each a view."""
    size = max(1, CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], size):
        yield start, weight[start : start + size]
