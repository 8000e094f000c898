"""Compute attention over packed trees: by FlexAttention on CUDA, by SDPA chain by chain elsewhere (DESIGN 5).

A `TreeLayout` is made once per batch and handed through the model to every layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trapo_lite.core import tree
from trapo_lite.core.errors import ModelError
from trapo_lite.core.tree import PackedBatch
from trapo_lite.model.tree_recurrence import TreeRecurrence

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

COMPILE_WORKERS = 4  # processes, of each trainer process
ATTENTION = "packed_tree"
HARMLESS = (
    *("position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"),
    *("output_router_logits", "return_dict", "logits_to_keep", "num_items_in_batch", "deterministic"),
    "seq_idx",  # of convolutions
)
"""Arguments that transformers hands through to attention and that change nothing of what it computes."""
NEUTRAL = {"dropout": 0.0, "is_causal": True}
"""Others, with the value at which they change nothing; so does None, of every argument."""


@dataclass(frozen=True)
class Scores:
    """A Scores says how a layer's attention scores and weights follow from queries and keys.

    scaling: factor of query . key
    window:  a token sees at most so many tokens of its path, itself included; None: all
    softcap: a score s becomes softcap * tanh(s / softcap); None: it stays s
    sinks:   (heads,), a score of every head that takes a share of the weights and adds no value; None: there is none
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


Attend = Callable[[Tensor, Tensor, Tensor, Scores], Tensor]


@dataclass(frozen=True)
class TreeLayout:
    """A TreeLayout says how a batch's tokens may see each other; `attend` takes (1, heads, T, head size) tensors.

    is_grouped: `attend` takes keys and values with the model's own number of key-value heads. Otherwise they are
    repeated for it, once for every query head.
    recurrence: for recurrent layers; None: the model has none
    """

    attend: Attend
    is_grouped: bool = False
    recurrence: TreeRecurrence | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the layout as arguments of a decoder, by the names under which its layers hand it on."""
        return {"tree_layout": self} if self.recurrence is None else {"tree_layout": self, "seq_idx": self}


def chain_layout(batch: PackedBatch) -> TreeLayout:
    """Compute attention chain by chain over the keys of the chain and of its ancestors: no (T, T) mask, exact cost."""
    chains = tree.chains_of(batch)
    device = batch.input_ids.device
    is_grouped = device.type == "cpu"  # on CUDA none of the kernels that take a mask takes grouped heads
    lengths = [end - start for start, end, _ in chains]

    @functools.cache
    def plan(window: int | None) -> list[tuple[list[int], int, Tensor | None]]:
        """Return for each chain: its path, how many of the path's first tokens it does not see, and its mask."""
        planned = []
        for number, (_, _, above) in enumerate(chains):
            num_above, length = sum(lengths[other] for other in above), lengths[number]
            num_hidden = 0 if window is None else max(0, num_above + 1 - window)
            num_above -= num_hidden
            mask = None
            is_cut = window is not None and num_above + length > window
            if length > 1 and (num_above or is_cut):
                mask = torch.ones(length, num_above + length, dtype=torch.bool, device=device).tril(num_above)
                if window is not None:
                    mask = mask.triu(num_above - window + 1)
            planned.append(([*above, number], num_hidden, mask))
        return planned

    def attend(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        # Split once: the backward pass of a slice is a tensor of all T tokens, for each of them.
        queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
        outputs = []
        for path, num_hidden, mask in plan(scores.window):
            path_keys = torch.cat([keys[number] for number in path], dim=2)[:, :, num_hidden:]
            path_values = torch.cat([values[number] for number in path], dim=2)[:, :, num_hidden:]
            outputs.append(attend_rows(queries[path[-1]], path_keys, path_values, mask, scores))
        return torch.cat(outputs, dim=2)

    return TreeLayout(attend, is_grouped)


def attend_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scores: Scores) -> Tensor:
    """Compute attention of rows: by SDPA, or by the definition if scores are capped or have sinks.

    query: (B, heads, Q, D).   key, value: (B, heads or a divisor of them, K, D).
    mask:  bool, broadcast to (B, heads, Q, K), true where a key is seen; None: the last key is the last query's own,
           and each query sees what is not behind its own
    """
    is_causal = mask is None and query.shape[2] > 1
    groups = query.shape[1] // key.shape[1]
    if scores.softcap is None and scores.sinks is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=is_causal, scale=scores.scaling, enable_gqa=groups > 1
        )
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    products = query @ key.transpose(2, 3)
    logits = (products if products.dtype == torch.float64 else products.float()) * scores.scaling
    if scores.softcap is not None:
        logits = scores.softcap * torch.tanh(logits / scores.softcap)
    if is_causal:
        mask = torch.ones(logits.shape[2:], dtype=torch.bool, device=logits.device).tril(key.shape[2] - query.shape[2])
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)  # finite, for padding that sees nothing
    weights = logits.softmax(dim=-1)
    if scores.sinks is not None:
        weights = weights * _share_beside(scores.sinks, logits.logsumexp(dim=-1))
    return weights.to(value.dtype) @ value


def _share_beside(sinks: Tensor, log_sum_exp: Tensor) -> Tensor:
    """Return the share of the weights (B, heads, Q, 1) that the heads' sinks leave to the tokens.

    exp(s_k) / (sum_j exp(s_j) + exp(sink)) is softmax(s)_k * sigmoid(log_sum_exp(s) - sink).
    """
    return torch.sigmoid(log_sum_exp - sinks.to(log_sum_exp.dtype)[None, :, None])[..., None]


def flex_layout(batch: PackedBatch) -> TreeLayout:
    """Compute FlexAttention with the tree's visibility as a block mask. The caller pads T, so that few are compiled."""
    from torch.nn.attention.flex_attention import AuxRequest

    mask_of = functools.cache(functools.partial(block_mask, batch))

    def attend(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        options = {"block_mask": mask_of(scores.window), "scale": scores.scaling, "enable_gqa": True}
        if scores.softcap is not None:
            options["score_mod"] = _capped(scores.softcap)
        if scores.sinks is None:
            return _compiled_flex_attention()(query, key, value, **options)
        output, more = _compiled_flex_attention()(query, key, value, return_aux=AuxRequest(lse=True), **options)
        return (output * _share_beside(scores.sinks, more.lse)).to(output.dtype)

    return TreeLayout(attend, is_grouped=True)


@functools.cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    """Return FlexAttention's change of a score; one function for each cap, because kernels are kept by function."""

    def cap(score: Tensor, _batch: Tensor, _head: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def block_mask(batch: PackedBatch, window: int | None = None) -> BlockMask:
    """Return the tree's visibility as FlexAttention's block mask; its memory grows with (T / 128)^2, not with T^2."""
    subtree_end, position = batch.subtree_end, batch.position

    def is_visible(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < subtree_end[k])

    def is_near(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < subtree_end[k]) & (position[q] < position[k] + (window or 0))

    length = batch.num_tokens
    sees = is_visible if window is None else is_near
    return _compiled_create_block_mask()(sees, None, None, length, length, device=str(subtree_end.device))


def packed_tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    tree_layout: TreeLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: object,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention in the place of transformers' own: (1, heads, T, D) in, (1, T, heads, D) out.

    s_aux: transformers' name for attention sinks

    Raises ModelError if the model asks for what the layout does not compute, such as a mask of its own or both
    directions, and if the model does not hand the layout on.
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
    scores = Scores(scaling, window=sliding_window, softcap=softcap, sinks=s_aux)
    return tree_layout.attend(query, key, value, scores).transpose(1, 2).contiguous(), None


def refuse_unknown(module: torch.nn.Module, options: Mapping[str, object]) -> None:
    """Raise ModelError for an argument of attention unless it is known to change nothing; it would be ignored."""
    for name, value in options.items():
        if value is None or name in HARMLESS or (name in NEUTRAL and value == NEUTRAL[name]):
            continue
        shown = "" if isinstance(value, Tensor) else f" {value!r}"
        raise ModelError(f"{type(module).__name__} attends with {name}{shown}, which is not computed here")


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_tree_attention)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
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
