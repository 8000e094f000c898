"""Provide batches, attention and a key-value cache that copy little, for the transformers engine."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trapo_lite.model.shape import NOT_MIXING
from trapo_lite.model.tree_attention import Scores, attend_rows, refuse_unknown

ATTENTION = "grouped_heads"  # without "sdpa" in it, which some classes refuse in any name
IN_MASK = ("sliding_window", "is_causal")  # attention's arguments that the mask contains, or that SDPA takes
BLOCK = 64  # columns by which a cache grows
MAX_SCORES = 2**24  # entries per head of the attention matrix of prompts read at once, including their padding

Reader = TypeVar("Reader")


def read_at_once(
    rows: Sequence[Reader], prompt_of: Callable[[Reader], tuple[int, ...]], *, equal_lengths: bool = False
) -> Iterator[list[Reader]]:
    """Yield the rows, as many at a time as the attention over their different prompts has memory for.

    equal_lengths: sort them by the length of their prompts, and yield only equal lengths together
    """
    batch: list[Reader] = []
    prompts: set[tuple[int, ...]] = set()
    for row in sorted(rows, key=lambda row: len(prompt_of(row))) if equal_lengths else rows:
        wider = {*prompts, prompt_of(row)}
        is_too_much = len(wider) * max(map(len, wider)) ** 2 > MAX_SCORES
        if batch and (is_too_much or (equal_lengths and len(prompt_of(row)) != len(prompt_of(batch[0])))):
            yield batch
            batch, wider = [], {prompt_of(row)}
        batch.append(row)
        prompts = wider
    if batch:
        yield batch


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' SDPA. For one query per row, heads that share keys and values do not copy them.

    The heads of a group replace the queries: (B, heads, 1, D) in, (B, 1, heads, D of the values) out.
    s_aux: transformers' name for attention sinks.   Raises ModelError if the model asks for more.
    """
    refuse_unknown(module, {name: value for name, value in options.items() if name not in IN_MASK})
    rows, heads, length, size = query.shape
    if softcap is not None or s_aux is not None:
        scores = Scores(size**-0.5 if scaling is None else scaling, softcap=softcap, sinks=s_aux)
        return attend_rows(query, key, value, attention_mask, scores).transpose(1, 2), None
    if length > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    groups = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    output = scaled_dot_product_attention(groups, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, value.shape[-1]), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, grouped_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)


class GrowingLayer(DynamicLayer):
    """Hold one layer's keys and values, (rows, heads, columns, D), with room for `BLOCK` more columns at a time.

    `keys` and `values` are views of that room, or the tensors that they were set to.
    """

    keys: Tensor  # type: ignore[assignment]
    values: Tensor  # type: ignore[assignment]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self._room: dict[str, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            GrowingLayer.lazy_initialization(self, key_states, value_states)  # `HybridLayer` has another
        self.keys = self._longer("keys", self.keys, key_states)
        self.values = self._longer("values", self.values, value_states)
        return self.keys, self.values

    def _longer(self, name: str, states: Tensor, new: Tensor) -> Tensor:
        width, wanted = states.shape[2], states.shape[2] + new.shape[2]
        room = self._room.get(name)
        if room is None or room.data_ptr() != states.data_ptr() or wanted > room.shape[2]:
            room = self._room[name] = pad(states, (0, 0, 0, new.shape[2] + BLOCK))
        room[:, :, width:wanted] = new
        return room[:, :, :wanted]


class HybridLayer(LinearAttentionAndFullAttentionLayer, GrowingLayer):
    """Hold keys and values like `GrowingLayer`, and the states of a recurrence or a convolution."""


class RowCache(Cache):
    """Cache rows that come and go: keys and values by column, right-aligned, and the states of recurrent layers by row.

    The caller masks the columns that a row lacks on the left. A state has no columns to mask, so it must not see them.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(layers=[_as_rows(layer) for layer in DynamicCache(config=config).layers])
        kinds = getattr(config, "layer_types", None) or [""] * len(self.layers)
        self._used = [layer for layer, kind in zip(self.layers, kinds, strict=False) if kind not in NOT_MIXING]

    @property
    def has_columns(self) -> bool:
        return any(isinstance(layer, GrowingLayer) for layer in self.layers)

    @property
    def has_states(self) -> bool:
        return any(isinstance(layer, LinearAttentionLayer) for layer in self.layers)

    @property
    def num_empty(self) -> int:
        """Return how many layers hold nothing, those aside whose tokens see no others."""
        return sum(not _holds_something(layer) for layer in self._used)

    def select(self, rows: Tensor, *, width: int) -> None:
        """Keep the last `width` columns of these rows, in this order, each as often as it is named."""
        for layer in self.layers:
            if isinstance(layer, GrowingLayer):
                layer.keys, layer.values = layer.keys[rows, :, -width:], layer.values[rows, :, -width:]
            for states in _states_of(layer):
                states.update({i: state[rows] for i, state in states.items() if state is not None})

    def append(self, below: "RowCache") -> None:
        """Append other rows. The narrower cache is padded on the left."""
        for ours, theirs in zip(self.layers, below.layers, strict=True):
            if isinstance(ours, GrowingLayer) and isinstance(theirs, GrowingLayer):
                width = max(ours.keys.shape[2], theirs.keys.shape[2])
                ours.keys = torch.cat([_widened(ours.keys, width), _widened(theirs.keys, width)])
                ours.values = torch.cat([_widened(ours.values, width), _widened(theirs.values, width)])
            for states, more in zip(_states_of(ours), _states_of(theirs), strict=True):
                states.update({i: torch.cat([state, more[i]]) for i, state in states.items() if state is not None})


def _as_rows(layer: Any) -> LinearAttentionLayer | GrowingLayer:
    """Return a layer for the same states. A sliding window is in the mask, so that its layer keeps all columns."""
    if not isinstance(layer, LinearAttentionLayer):
        return GrowingLayer()
    return HybridLayer(layer.number_of_states) if isinstance(layer, DynamicLayer) else layer


def _states_of(layer: Any) -> list[dict[int, Any]]:
    return [layer.conv_states, layer.recurrent_states] if isinstance(layer, LinearAttentionLayer) else []


def _holds_something(layer: Any) -> bool:
    has_columns = isinstance(layer, GrowingLayer) and layer.is_initialized
    return has_columns or any(state is not None for states in _states_of(layer) for state in states.values())


def _widened(states: Tensor, width: int) -> Tensor:
    return pad(states, (0, 0, width - states.shape[2], 0))
