"""Merge an adapter into the base weights of vLLM's layers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trapo_lite.engines.merging import Kept, Undo, Update, merge, restore


@dataclass(frozen=True)
class _MergedSlice:
    """Hold rows of one layer's weight with one adapter's update. q, k and v have one slice each in the same weight."""

    rows: Tensor
    update: Update
    undo: Undo


class MergedAdapter:
    """Hold the adapter of one of vLLM's slots, merged at construction. The slot itself is unchanged."""

    def __init__(self, manager: Any, adapter_id: int) -> None:
        self.kept = Kept(0.0, 0.0)
        self._slices: list[_MergedSlice] = []
        self._layers: list[Any] = []
        slot = manager.lora_index_to_id.index(adapter_id)
        for module in manager.modules.values():
            if not isinstance(getattr(module, "lora_a_stacked", None), tuple):
                continue
            self._layers.append(module.base_layer)
            start = 0
            for a, b in zip(module.lora_a_stacked, module.lora_b_stacked, strict=True):
                # Copies, because a slot may lose its adapter while no request names it.
                update = Update(a[slot, 0].clone(), b[slot, 0].clone())
                if update.b.any():  # layers without an adapter may hold no matrix, as a convolution does
                    self._merge(module.base_layer.weight.data[start : start + len(update.b)], update)
                start += len(update.b)
        self._use_new_weights()

    def restore(self) -> None:
        for merged in self._slices:
            restore(merged.rows, merged.update, merged.undo)
        self._use_new_weights()

    def _merge(self, rows: Tensor, update: Update) -> None:
        undo, kept = merge(rows, update)
        self._slices.append(_MergedSlice(rows, update, undo))
        self.kept += kept

    def _use_new_weights(self) -> None:
        """Pack the new weights, because vLLM computes with a packed copy of each weight on the CPU."""
        for layer in self._layers:
            if hasattr(layer, "cpu_linear"):
                from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

                dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


def keep_plain_weights() -> None:
    """Make vLLM keep a layer's weight beside its packed copy. Call it in the engine's process before the engine."""
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm

    def pack_beside(layer: torch.nn.Module, remove_weight: bool) -> None:
        pack(layer, remove_weight=False)

    utils.dispatch_cpu_unquantized_gemm = pack_beside
