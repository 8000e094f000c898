"""Watch what the chunked head makes: tables of logits, and tensors that are kept for the backward pass."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trapo_lite.model import logprobs as head_module

Shapes = list[tuple[int, ...]]


def watch_tables(monkeypatch: pytest.MonkeyPatch, *, chunk_elements: int) -> Shapes:
    """Return the shapes of the tables of logits, to which each new one is added."""
    shapes: Shapes = []
    compute = head_module._scaled_logits

    def watched(*arguments: object) -> Tensor:
        shapes.append(tuple((logits := compute(*arguments)).shape))
        return logits

    monkeypatch.setattr(head_module, "_scaled_logits", watched)
    monkeypatch.setitem(head_module.CHUNK_ELEMENTS, "cpu", chunk_elements)
    return shapes


@contextlib.contextmanager
def watch_saved() -> Iterator[Shapes]:
    """Yield the shapes of the tensors that are kept for a backward pass inside."""
    saved: Shapes = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved
