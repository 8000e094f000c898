"""Correct vLLM's rotary embedding on the CPU for queries and keys with a dimension of their own for the heads."""

from typing import Any

from torch import Tensor


def rotate_all_heads() -> None:
    """Pass vLLM's kernel its heads in one dimension. Call it in the engine's process, before the engine is made.

    vLLM 0.32 rotates the heads wrongly if they have a dimension of their own, as in LFM2: its results differ from those
    that it computes for (tokens, heads * head size), which are right.
    """
    from vllm import _custom_ops

    rotate = _custom_ops.rotary_embedding

    def rotate_flat(positions: Tensor, query: Tensor, key: Tensor | None, *arguments: Any) -> None:
        flat_query = query.flatten(1) if query.dim() == 3 else query
        flat_key = key.flatten(1) if key is not None and key.dim() == 3 else key
        rotate(positions, flat_query, flat_key, *arguments)
        if flat_query is not query:  # a copy, if the heads were not contiguous
            query.copy_(flat_query.view_as(query))
        if key is not None and flat_key is not None and flat_key is not key:
            key.copy_(flat_key.view_as(key))

    _custom_ops.rotary_embedding = rotate_flat
