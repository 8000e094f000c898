"""vLLM's LoRA on the CPU, for batches that use one adapter."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
else:
    PunicaWrapperCPU = object  # a mix-in: this module can be imported without vLLM


def use_one_adapter_lora() -> None:
    """In the engine's process, before the engine is made: vLLM's CPU platform takes OneAdapterLora from now on."""
    from vllm.lora.punica_wrapper import punica_cpu

    punica_cpu.PunicaWrapperCPU = type("PunicaWrapperCPU", (OneAdapterLora, punica_cpu.PunicaWrapperCPU), {})


class OneAdapterLora(PunicaWrapperCPU):
    """Two matrix products a layer, instead of vLLM's copy of A and B for every token of the batch.

    All our requests use the published adapter, so this is the only case; a mixed batch would go vLLM's way. Measured on
    a 0.9M-parameter base, 64 sequences, one thread: the LoRA part of a step falls from half of it to a tenth.
    """

    slot: int | None = None
    """Where the batch's one adapter lies; -1: the batch uses none; None: it uses several."""

    def update_metadata(self, mapping: Any, lora_index_to_id: list[int | None], *args: Any, **kwargs: Any) -> None:
        super().update_metadata(mapping, lora_index_to_id, *args, **kwargs)
        adapter_ids = set(mapping.index_mapping)
        self.slot = None
        if adapter_ids == {0}:
            self.slot = -1
        elif len(adapter_ids) == 1:
            self.slot = lora_index_to_id.index(adapter_ids.pop())

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y += scale * (x A^T) B^T, slice by slice of the stacked projections; y (T, out) and x (T, in) of one type."""
        if self.slot is None:
            return super().add_lora_linear(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **kwargs)
        if self.slot < 0:
            return None
        start = 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            y[:, start : start + width].addmm_(x @ a[self.slot, 0].T, b[self.slot, 0, :width].T, alpha=scale)
            start += width
        return None
