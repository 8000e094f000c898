"""Merge PEFT's layers with their adapter, and undo it exactly (merging.py)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from trapo_lite.engines.merging import Kept, Undo, Update, merge, restore


class MergedAdapter:
    """Hold the active adapter of these layers (peft.tuners.lora.LoraLayer). It is merged at construction."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.kept = Kept(0.0, 0.0)
        self._merged: list[tuple[Any, Tensor, Update, Undo]] = []
        for layer in layers:
            [name] = layer.active_adapters
            a, b = (getattr(layer, part)[name].weight.detach() for part in ("lora_A", "lora_B"))
            update = Update(a.clone(), b * layer.scaling[name])
            weight = layer.get_base_layer().weight.data
            undo, kept = merge(weight, update)
            self._merged.append((layer, weight, update, undo))
            self.kept += kept
            layer.merged_adapters.append(name)  # PEFT then computes with the base's weight alone

    def restore(self) -> None:
        for layer, weight, update, undo in self._merged:
            restore(weight, update, undo)
            layer.merged_adapters.clear()
