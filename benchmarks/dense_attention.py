"""Compute attention over a packed tree by its definition, with the whole mask, as the reference for faster ways."""

import torch
from torch import Tensor

from trapo_lite.core.tree import PackedBatch
from trapo_lite.model.tree_attention import Scores, TreeLayout


def dense_mask(batch: PackedBatch, window: int | None = None) -> Tensor:
    """Return the (T, T) mask, bool: [q, k] is true if token q sees token k."""
    index = torch.arange(batch.num_tokens, device=batch.input_ids.device)
    mask = (index[None, :] <= index[:, None]) & (index[:, None] < batch.subtree_end[None, :])
    return mask if window is None else mask & (batch.position[:, None] - batch.position[None, :] < window)


def dense_layout(batch: PackedBatch) -> TreeLayout:
    """Return a layout that attends by the whole (T, T) mask."""

    def attend(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        logits = query @ key.transpose(2, 3) * scores.scaling
        if scores.softcap is not None:
            logits = torch.tanh(logits / scores.softcap) * scores.softcap
        logits = logits.masked_fill(~dense_mask(batch, scores.window), -torch.inf)
        if scores.sinks is not None:
            sinks = scores.sinks[None, :, None, None].expand(*logits.shape[:3], 1)
            logits = torch.cat([logits, sinks], dim=-1)
        return logits.softmax(dim=-1)[..., : key.shape[2]] @ value

    return TreeLayout(attend)
