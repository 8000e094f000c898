"""Attention over packed trees: FlexAttention on CUDA, SDPA per segment elsewhere (DESIGN 5).

A `TreeLayout` is made once per batch and handed through the model to every attention layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trapo_lite.core import tree
from trapo_lite.core.errors import ModelError
from trapo_lite.core.tree import PackedBatch

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

COMPILE_WORKERS = 4  # processes, of each trainer process
ATTENTION = "packed_tree"
HARMLESS = (
    *("position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"),
    *("output_router_logits", "return_dict", "logits_to_keep", "num_items_in_batch", "deterministic"),
)
"""Arguments that transformers hands through to attention and that change nothing of what it computes."""
NEUTRAL = {"dropout": 0.0, "is_causal": True}
"""Others, with the value at which they change nothing; so does None, of every argument."""


@dataclass(frozen=True)
class TreeLayout:
    """A TreeLayout says how a batch's tokens may see each other; `attend` takes (1, heads, T, head size) tensors.

    is_grouped: `attend` takes keys and values with the model's own number of key-value heads. Otherwise they are
    repeated for it, once for every query head.
    """

    attend: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    is_grouped: bool = False


def segment_layout(batch: PackedBatch) -> TreeLayout:
    """Compute SDPA chain by chain over the keys of the chain and of its ancestors: no (T, T) mask, exact cost."""
    chains = tree.segments(batch)
    device = batch.input_ids.device
    is_grouped = device.type == "cpu"  # on CUDA none of the kernels that take a mask takes grouped heads
    lengths = [end - start for start, end, _ in chains]
    plan = []
    for number, (_, _, above) in enumerate(chains):
        num_above, length = sum(lengths[other] for other in above), lengths[number]
        mask = None
        if num_above and length > 1:
            mask = torch.ones(length, num_above + length, dtype=torch.bool, device=device).tril(num_above)
        plan.append(([*above, number], mask))

    def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        # Split once: the backward pass of a slice is a tensor of all T tokens, for each of them.
        queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
        outputs = []
        for path, mask in plan:
            own = path[-1]
            outputs.append(
                scaled_dot_product_attention(
                    queries[own],
                    torch.cat([keys[number] for number in path], dim=2),
                    torch.cat([values[number] for number in path], dim=2),
                    attn_mask=mask,
                    is_causal=len(path) == 1 and lengths[own] > 1,
                    scale=scaling,
                    enable_gqa=is_grouped,
                )
            )
        return torch.cat(outputs, dim=2)

    return TreeLayout(attend, is_grouped)


def flex_layout(batch: PackedBatch) -> TreeLayout:
    """Compute FlexAttention with the tree's visibility as a block mask. The caller pads T, so that few are compiled."""
    mask = block_mask(batch)

    def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        return _compiled_flex_attention()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)

    return TreeLayout(attend, is_grouped=True)


def block_mask(batch: PackedBatch) -> BlockMask:
    """Return the tree's visibility as FlexAttention's block mask; its memory grows with (T / 128)^2, not with T^2."""
    subtree_end = batch.subtree_end

    def is_visible(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < subtree_end[k])

    length = batch.num_tokens
    return _compiled_create_block_mask()(is_visible, None, None, length, length, device=str(subtree_end.device))


def packed_tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    tree_layout: TreeLayout | None = None,
    **options: object,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention in the place of transformers' own: (1, heads, T, D) in, (1, T, heads, D) out.

    Raises ModelError if the model asks for what the layout does not compute: a mask of its own, both directions, sinks,
    a window, a cap; and if the model does not hand the layout on.
    """
    refuse_unknown(module, options)
    name = type(module).__name__
    if tree_layout is None:
        raise ModelError(f"{name} is not given the tree's layout by its model, so it would see other rollouts")
    if attention_mask is not None:
        raise ModelError(f"{name} is given an attention_mask by its model, which packed trees replace")
    if not getattr(module, "is_causal", True):
        raise ModelError(f"{name} sees later tokens too")
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not tree_layout.is_grouped:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return tree_layout.attend(query, key, value, scaling).transpose(1, 2).contiguous(), None


def refuse_unknown(module: torch.nn.Module, options: Mapping[str, object]) -> None:
    """Raise ModelError for an argument of attention unless it is known to change nothing; it would be ignored."""
    for name, value in options.items():
        if value is None or name in HARMLESS or (name in NEUTRAL and value == NEUTRAL[name]):
            continue
        shown = "" if isinstance(value, Tensor) else f" {value!r}"
        raise ModelError(f"{type(module).__name__} attends with {name}{shown}, which is not computed here")


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_tree_attention)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)  # past it: dense scores
    _limit_compile_workers()
    return torch.compile(flex_attention, dynamic=False)


@functools.cache
def _compiled_create_block_mask() -> Callable[..., BlockMask]:
    from torch.nn.attention.flex_attention import create_block_mask

    _limit_compile_workers()
    return torch.compile(create_block_mask)


def _limit_compile_workers() -> None:
    """Keep Inductor from starting up to 32 processes for every trainer process: there are a few kernels to compile."""
    import torch._inductor.config as inductor

    inductor.compile_threads = min(inductor.compile_threads or COMPILE_WORKERS, COMPILE_WORKERS)
