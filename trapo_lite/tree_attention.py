"""Attention over packed trees: FlexAttention on CUDA, SDPA per segment elsewhere (DESIGN 5).

A `TreeLayout` is made once per batch and handed through the model to every attention layer.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trapo_lite import tree
from trapo_lite.types import PackedBatch


@dataclass(frozen=True)
class TreeLayout:
    """How the tokens of one batch may see each other; `attend` takes (1, heads, T, head size) tensors."""

    attend: Callable[[Tensor, Tensor, Tensor, float], Tensor]


def segment_layout(batch: PackedBatch) -> TreeLayout:
    """SDPA chain by chain over the keys of the chain and of its ancestors: no (T, T) mask, exact cost."""
    chains = tree.segments(batch)
    device = batch.input_ids.device
    plan = []
    for start, end, above in chains:
        num_above, length = sum(stop - begin for begin, stop in above), end - start
        mask = None
        if num_above and length > 1:
            mask = torch.ones(length, num_above + length, dtype=torch.bool, device=device).tril(num_above)
        plan.append((start, end, above, mask))

    def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        outputs = []
        for start, end, above, mask in plan:
            spans = [*above, (start, end)]
            keys = torch.cat([key[:, :, a:b] for a, b in spans], dim=2)
            values = torch.cat([value[:, :, a:b] for a, b in spans], dim=2)
            is_root = not above and end - start > 1
            outputs.append(
                scaled_dot_product_attention(
                    query[:, :, start:end], keys, values, attn_mask=mask, is_causal=is_root, scale=scaling
                )
            )
        return torch.cat(outputs, dim=2)

    return TreeLayout(attend)


def flex_layout(batch: PackedBatch) -> TreeLayout:
    """FlexAttention with the tree's visibility as a block mask; compiled once, T padded by the caller to a bucket."""
    from torch.nn.attention.flex_attention import create_block_mask

    subtree_end = batch.subtree_end

    def is_visible(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < subtree_end[k])

    length = batch.num_tokens
    mask = create_block_mask(is_visible, None, None, length, length, device=str(subtree_end.device), _compile=True)

    def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        return _compiled_flex_attention()(query, key, value, block_mask=mask, scale=scaling)

    return TreeLayout(attend)


def dense_layout(batch: PackedBatch) -> TreeLayout:
    """The (T, T) mask itself: the definition, for tests."""
    mask = tree.dense_mask(batch)

    def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)

    return TreeLayout(attend)


def packed_tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    tree_layout: TreeLayout,
    **_unused: object,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention: (1, heads, T, D) in, (1, T, heads, D) out."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return tree_layout.attend(query, key, value, scaling).transpose(1, 2).contiguous(), None


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)  # past it: dense scores
    return torch.compile(flex_attention, dynamic=False)
