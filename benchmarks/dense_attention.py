"""Compute attention over a packed tree by its definition, with the whole mask, as the reference for faster ways."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trapo_lite.core.tree import PackedBatch
from trapo_lite.model.tree_attention import TreeLayout


def dense_mask(batch: PackedBatch) -> Tensor:
    """Return the (T, T) mask, bool: [q, k] is true if token q sees token k."""
    index = torch.arange(batch.num_tokens, device=batch.input_ids.device)
    return (index[None, :] <= index[:, None]) & (index[:, None] < batch.subtree_end[None, :])


def dense_layout(batch: PackedBatch) -> TreeLayout:
    """Return a layout that attends by the whole (T, T) mask."""
    mask = dense_mask(batch)

    def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)

    return TreeLayout(attend)
