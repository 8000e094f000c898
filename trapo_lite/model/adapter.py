"""Own the weights that are trained, saved and published: one LoRA adapter."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trapo_lite.config import LoraSection
from trapo_lite.core.errors import ModelError
from trapo_lite.model.adapter_config import AdapterError, own_config
from trapo_lite.model.saved_adapter import WEIGHTS, check_start, load_by_name, lora_parameters, read_tensors
from trapo_lite.run.files import naming, save_tensors


class LoraAdapter:
    """A LoraAdapter owns the trained weights of a model whose base is frozen.

    model:      PEFT's model around the base, with the adapter enabled
    parameters: its tensors, float32, in a fixed order: what is optimised, all-reduced, saved and published
    """

    def __init__(self, base: PreTrainedModel, lora: LoraSection) -> None:
        """Add a fresh adapter to `base` (from torch's current seed), or the one that `lora.init_from` names."""
        from peft import get_peft_model

        start = None if lora.init_from is None else check_start(lora)
        self.model = get_peft_model(base, own_config(lora))
        self.model.peft_config["default"].base_model_name_or_path = _from_anywhere(base.config._name_or_path)
        if base.dtype != torch.float32:
            _keep_input_dtype(self.model)
        named = sorted(self.model.named_parameters(), key=lambda item: item[0])
        self.parameters = [parameter for _, parameter in named if parameter.requires_grad]
        if any(parameter.dtype != torch.float32 for parameter in self.parameters):
            raise ModelError("the adapter's weights are not float32; PEFT's autocast_adapter_dtype must be on")
        # Views of the parameters under PEFT's names, once: finding them takes a walk through the whole model.
        self._state = {name: parameter.detach() for name, parameter in lora_parameters(self.model).items()}
        if start is not None:
            load_by_name(self.model, read_tensors(start), where=start.where)

    def flat_gradient(self) -> Tensor:
        """Return the gradient as one vector, zeros where nothing reached: what is summed over ranks."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return torch.cat([grad.flatten() for grad in grads])

    def without_gradient(self) -> list[str]:
        """Return the last parts of the names of adapted layers, of which a backward pass reached none."""
        reached: dict[str, bool] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                kind = name.rpartition(".lora_")[0].rpartition(".")[2]
                reached[kind] = reached.get(kind, False) or parameter.grad is not None
        return sorted(kind for kind, is_reached in reached.items() if not is_reached)

    def clear_gradient(self) -> None:
        """Forget the gradient."""
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return the float32 master weights under PEFT's names; they move with the policy."""
        return dict(self._state)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave. Raise ModelError unless it is for exactly this adapter."""
        try:
            load_by_name(self.model, state, where="adapter state")
        except AdapterError as error:
            raise ModelError(str(error)) from None

    def save(self, folder: Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the adapter in PEFT's format. Raise OSError if that is not possible.

        dtype: of its weights in the file; None: float32, as they are trained

        Uses only two steps of PEFT's save_pretrained, because every publish saves, and its model card takes longer.
        """
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.model.peft_config["default"].save_pretrained(str(folder))
        save_tensors({name: tensor.to(dtype) for name, tensor in self._state.items()}, folder / WEIGHTS)


def _keep_input_dtype(model: nn.Module) -> None:
    """Stop PEFT from copying every input of an adapter to float32, the dtype of its weights: autocast casts it back."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010 - some of PEFT's layers do not declare it


def _from_anywhere(name: str) -> str:
    """Return a hub id as it is, and a folder's absolute path."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name
