"""Find where vLLM holds the layers of a published adapter.

vLLM renames some modules. It stacks q, k, v and gate, up in one layer each, and some projections of recurrent layers
in several slices. It ignores tensors of an adapter that it finds no layer for.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from trapo_lite.engines.parity import PEFT_PREFIX
from trapo_lite.model.saved_adapter import WEIGHTS

if TYPE_CHECKING:
    from vllm.v1.worker.worker_base import WorkerBase

LORA_B = ".lora_B.weight"
WHOLE_LAYERS = {"Glm4ForCausalLM": ("gate_up_proj",)}
"""Layers that transformers holds as one and vLLM 0.32 lists by its parts, by vLLM's class."""


@dataclass(frozen=True)
class BoundModule:
    """Hold vLLM's layer for one adapted module, and which slices of its stacked weights are that module's."""

    layer: Any
    slices: range

    def pair(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return (A, scaled B) of the adapter in this slot. vLLM repeats A for each slice and splits B by rows."""
        parts_a = [self.layer.lora_a_stacked[index][slot, 0].cpu() for index in self.slices]
        parts_b = [self.layer.lora_b_stacked[index][slot, 0].cpu() for index in self.slices]
        is_repeated = all(torch.equal(part, parts_a[0]) for part in parts_a)
        return parts_a[0] if is_repeated else torch.cat(parts_a), torch.cat(parts_b)


def rows_by_module(adapter_dir: Path) -> dict[str, int]:
    """Return the number of rows of B for each module of a saved adapter, by the trainer's names."""
    with safe_open(adapter_dir / WEIGHTS, framework="pt") as content:
        shapes = {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118
    return {
        name.removeprefix(PEFT_PREFIX).removesuffix(LORA_B): shape[0]
        for name, shape in shapes.items()
        if name.endswith(LORA_B)
    }


def bound_modules(manager: Any, num_rows: Mapping[str, int]) -> dict[str, BoundModule]:
    """Return vLLM's layer for each adapted module that has one, by the trainer's names.

    num_rows: rows of B for each adapted module (`rows_by_module`)
    """
    name_by_vllm_name = {vllm_name(manager.model, name): name for name in num_rows}
    bound = {}
    for stacked_name, layer in manager.modules.items():
        if not isinstance(getattr(layer, "lora_a_stacked", None), tuple):
            continue
        parent, _, leaf = stacked_name.rpartition(".")
        leaves = manager.packed_modules_mapping.get(leaf, [leaf])
        widths = [b.shape[-2] for b in layer.lora_b_stacked]
        start = 0
        for index, leaf in enumerate(leaves):
            name = name_by_vllm_name.get(f"{parent}.{leaf}" if parent else leaf)
            stop = len(widths) - (len(leaves) - index - 1)  # leaves one slice to each of the others
            if name is not None:
                stops = [end for end in range(start + 1, stop + 1) if sum(widths[start:end]) == num_rows[name]]
                if stops:
                    [stop] = stops
                    bound[name] = BoundModule(layer, range(start, stop))
            start = stop
    return bound


def lora_manager(worker: "WorkerBase") -> Any:
    return worker.model_runner.lora_manager._adapter_manager  # type: ignore[union-attr]


def active_pairs(
    worker: "WorkerBase", adapter_id: int, num_rows: Mapping[str, int]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (A, scaled B) by module name, read from the slot that the kernels use, or {} if the adapter has no slot.

    num_rows: rows of B for each adapted module
    """
    manager = lora_manager(worker)
    if adapter_id not in manager.lora_index_to_id:
        return {}
    slot = manager.lora_index_to_id.index(adapter_id)
    return {name: bound.pair(slot) for name, bound in bound_modules(manager, num_rows).items()}


def unbound_modules(worker: "WorkerBase", num_rows: Mapping[str, int]) -> list[str]:
    """Return the adapted modules that vLLM has no layer for."""
    return sorted(num_rows.keys() - bound_modules(lora_manager(worker), num_rows).keys())


def bind_whole_layers() -> None:
    """Make vLLM look for WHOLE_LAYERS under their own names. Call it in the engine's process before the engine."""
    model_manager: Any = importlib.import_module("vllm.lora.model_manager")
    process = model_manager.process_packed_modules_mapping

    def corrected(model: Any, **options: Any) -> dict[str, list[str]]:
        return process(model, **options) | {name: [name] for name in WHOLE_LAYERS.get(type(model).__name__, ())}

    model_manager.process_packed_modules_mapping = corrected


def vllm_name(model: Any, name: str) -> str:
    """Return the name under which vLLM looks for a module of an adapter."""
    from vllm.lora.utils import parse_fine_tuned_lora_name

    mapper = getattr(model, "hf_to_vllm_mapper", None)
    renames = None if mapper is None else mapper.get_rename_mapper()
    return parse_fine_tuned_lora_name(f"{PEFT_PREFIX}{name}{LORA_B}", renames)[0]
