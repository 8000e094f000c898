"""Compute recurrent layers over packed trees: every chain starts from the state that its parent chain ends with.

Gated DeltaNet, Mamba-2 and short convolutions are written in transformers as projections, a causal convolution and a
scan. The projections see all tokens at once; the convolution and the scan are called chain by chain. They stay
transformers' functions, which take the kernels of causal-conv1d, flash-linear-attention and mamba-ssm where these are
installed.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus
from torch.nn.utils.rnn import pad_sequence

from trapo_lite.core.errors import ModelError
from trapo_lite.core.tree import PackedBatch, chains_of

Scan = Callable[[list[Tensor], Tensor | None], tuple[Tensor, Tensor | None]]
"""Takes inputs (rows, length, ...) and the rows' states, or None where there are none yet; returns outputs (rows,
length, ...) and the states at the end. An input of zeros must leave the state as it is."""


class TreeRecurrence:
    """A TreeRecurrence runs causal convolutions and scans along the paths of a batch's trees.

    Chains with equally many chains above them are scanned at once, as rows of one call. Results at padding tokens mean
    nothing.
    """

    def __init__(self, batch: PackedBatch) -> None:
        end = batch.num_tokens - batch.num_padding
        chains = [chain for chain in chains_of(batch) if chain[0] < end]
        self._parent = batch.parent.tolist()
        depths = [(len(above), number) for number, (_, _, above) in enumerate(chains)]
        by_depth = itertools.groupby(sorted(depths), key=lambda item: item[0])
        self._levels = [[number for _, number in level] for _, level in by_depth]
        if batch.num_padding:
            chains.append((end, batch.num_tokens, []))  # all of it as one chain that no level scans
        self._lengths = [end - start for start, end, _ in chains]
        self._starts = [start for start, _, _ in chains]
        self._above = [above[-1] if above else None for _, _, above in chains]
        self._in_one_line = functools.cache(self._find_line)

    def convolve(self, convolution: Callable[[Tensor], Tensor], inputs: Tensor, *, num_before: int) -> Tensor:
        """Convolve (1, channels, T) inputs along each token's path.

        convolution: of (1, channels, any length), causal, with zeros before the first
        num_before:  how many tokens before its own a token's result depends on
        """
        source, result = self._in_one_line(num_before, inputs.device)
        line = pad(inputs, (0, 1))[:, :, source]  # the last column is zero
        return convolution(line)[:, :, result]

    def _find_line(self, num_before: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the tokens of a line that holds each chain behind the end of its path, and where each token stands.

        T stands for no token: a path begins later.
        """
        no_token = len(self._parent)
        source: list[int] = []
        result: list[int] = []
        for start, length in zip(self._starts, self._lengths, strict=True):
            before: list[int] = []
            token = start
            for _ in range(num_before):
                token = no_token if token == no_token or self._parent[token] < 0 else self._parent[token]
                before.insert(0, token)
            source.extend([*before, *range(start, start + length)])
            result.extend(range(len(source) - length, len(source)))
        return torch.tensor(source, device=device), torch.tensor(result, device=device)

    def scan(self, scan: Scan, inputs: Sequence[Tensor]) -> Tensor:
        """Scan (1, T, ...) inputs along the paths, level by level; return outputs of the first input's shape."""
        # Split once: the backward pass of a slice is a tensor of all T tokens, for each of them.
        pieces = [tensor[0].split(self._lengths) for tensor in inputs]
        outputs: list[Tensor] = list(pieces[0])
        states = None
        row_of: dict[int | None, int] = {}
        for level in self._levels:
            rows = [pad_sequence([piece[number] for number in level], batch_first=True) for piece in pieces]
            if states is not None:
                parents = [row_of[self._above[number]] for number in level]
                states = states[torch.tensor(parents, device=states.device)]
            computed, states = scan(rows, states)
            for number, row in zip(level, computed.unbind(), strict=True):
                outputs[number] = row[: self._lengths[number]]
            row_of = {number: row for row, number in enumerate(level)}
        return torch.cat(outputs)[None]


def reach_recurrent_layers(model: nn.Module) -> bool:
    """Let the convolutions and scans of the model's classes follow a tree's layout where the decoder is given one.

    The modules of transformers that define these classes look their functions up by name, so they are replaced there,
    once a process. Without a layout they do what they did before. Returns whether the classes have any.
    """
    has_any = False
    for module in {type(part).__module__ for part in model.modules()}:
        names = vars(sys.modules[module])
        if FUSED in names:
            names[FUSED] = _not_fused
        for name, over_tree in OVER_TREE.items():
            if name not in names:
                continue
            has_any = True
            if not hasattr(names[name], "over_tree"):
                names[name] = _by_layout(names[name], over_tree)
    return has_any


def _by_layout(original: Callable[..., Any], over_tree: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*arguments: Any, tree_layout: Any = None, **options: Any) -> Any:
        by_index = options.get("seq_idx")  # all that LFM2 hands on to its convolution
        layout = by_index if tree_layout is None and hasattr(by_index, "recurrence") else tree_layout
        if layout is None:
            return original(*arguments, **options)
        options.pop("seq_idx", None)
        return over_tree(original, layout.recurrence, *arguments, **options)

    vars(call)["over_tree"] = over_tree
    return call


def _causal_convolution(
    original: Callable[..., Tensor],
    recurrence: TreeRecurrence,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **options: Any,
) -> Tensor:
    _refuse(options)

    def convolution(line: Tensor) -> Tensor:
        return original(line, weight, bias, activation=activation)

    return recurrence.convolve(convolution, inputs, num_before=weight.shape[-1] - 1)


def _gated_delta_rule(
    original: Callable[..., tuple[Tensor, Tensor | None]],
    recurrence: TreeRecurrence,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    use_qk_l2norm_in_kernel: bool,
    **options: Any,
) -> tuple[Tensor, None]:
    _refuse(options)

    def scan(rows: list[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        value, query, key, g, beta = rows
        states = {"initial_state": state, "output_final_state": True}
        return original(query, key, value, g=g, beta=beta, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **states)

    return recurrence.scan(scan, [value, query, key, g, beta]), None


def _state_space(
    original: Callable[..., tuple[Tensor, Tensor]],
    recurrence: TreeRecurrence,
    inputs: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int,
    D: Tensor | None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    **options: Any,
) -> Tensor:
    _refuse(options)
    # The steps are computed here, because a padded step must be zero after its bias, softplus and limits.
    steps = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    steps = (softplus(steps) if dt_softplus else steps).clamp(*dt_limit)

    def scan(rows: list[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs, steps, B, C = rows
        states = {"initial_states": state, "return_final_states": True}
        return original(inputs, steps, A, B, C, chunk_size=chunk_size, D=D, z=None, **states)

    return recurrence.scan(scan, [inputs, steps, B, C])


def _refuse(options: dict[str, Any]) -> None:
    """Raise ModelError for an argument that asks for something; over a tree it would be ignored."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise ModelError(f"a recurrent layer computes with {name}, which packed trees do not have")


def _not_fused(*_: Any, **__: Any) -> None:
    """Make the class take its parts: the fused kernel knows no paths, and it reads past an adapter on `out_proj`."""


OVER_TREE: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _causal_convolution,
    "torch_chunk_gated_delta_rule": _gated_delta_rule,
    "mamba2_chunk_scan": _state_space,
}
"""The functions of transformers that mix tokens in recurrent layers, and what they become over a tree."""
FUSED = "mamba2_split_conv1d_scan_combined"
