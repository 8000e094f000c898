"""Read an adapter's weights from a folder, and check that they fit a base.

    read_shapes     names and shapes of the weights, from the header of their file
    read_tensors    the weights themselves
    expected_shapes names and shapes on a model, from the model's config.json alone
    load_by_name    the weights into a model, each by its name

PEFT's own loading only warns about tensors that are missing or have no place, and starts from fresh weights there.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from trapo_lite.config import LoraSection
from trapo_lite.model.adapter_config import AdapterConfig, AdapterError, read_config, unreadable
from trapo_lite.model.shape import is_target, meta_model

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedConfig

WEIGHTS = "adapter_model.safetensors"
FLOATS = ("F32", "F16", "BF16")
LORA_WEIGHT = re.compile(r".+\.lora_[AB]\.weight")


def read_shapes(config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of the weights. Raise AdapterError if the file is missing, damaged or not LoRA alone."""
    file = config.folder / WEIGHTS
    if not file.is_file():
        pickle = file.with_suffix(".bin")
        if pickle.is_file():
            raise AdapterError(
                f"{config.where}: its weights are a pickle ({pickle.name}), which may run any code when it is read; "
                "where you trust it, convert it: PeftModel.from_pretrained(base, OLD).save_pretrained(NEW)"
            )
        raise AdapterError(f"{config.where}: holds no {WEIGHTS}; give a folder with the adapter's weights")
    try:
        with safe_open(file, framework="pt") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
            types = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise unreadable(config.where, file, error) from None
    if not shapes:
        raise AdapterError(f"{config.where}: {WEIGHTS} holds no tensors; give the folder of another adapter")
    for name, dtype in types.items():
        if LORA_WEIGHT.fullmatch(name) is None:
            raise AdapterError(
                f"{config.where}: holds {name}, which is no LoRA weight; use a plain LoRA adapter, saved by PEFT"
            )
        if dtype not in FLOATS:
            raise AdapterError(f"{config.where}: {name} is of type {dtype}; save it as float32, bfloat16 or float16")
    return shapes


def read_tensors(config: AdapterConfig) -> dict[str, Tensor]:
    """Read the weights, on the CPU, in the type they were saved in. Raise AdapterError unless all are finite."""
    read_shapes(config)
    file = config.folder / WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise unreadable(config.where, file, error) from None
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(
                f"{config.where}: {name} is not finite (NaN or infinite); take the adapter of an earlier checkpoint"
            )
    return tensors


def check_start(lora: LoraSection) -> AdapterConfig:
    """Read the adapter to start from, `lora.init_from`. Raise AdapterError unless it is what `lora` describes.

    Rank, scale and layers are part of what is trained. Needs neither the base nor the weights.
    """
    folder = Path(str(lora.init_from))
    config = read_config(folder, option="lora.init_from")
    for key, wanted, found in (("r", lora.r, config.r), ("alpha", lora.alpha, config.alpha)):
        if found != wanted:
            raise AdapterError(f"lora.{key}: {wanted}, but the adapter {folder} has {found:g}; set it to that")
    shapes = read_shapes(config)
    if isinstance(lora.target_modules, list) and not config.fields.get("target_parameters"):
        modules = {name.rpartition(".lora_")[0] for name in shapes}
        is_used = {target: any(is_target(module, [target]) for module in modules) for target in lora.target_modules}
        if not all(is_used.values()) or not all(is_target(module, lora.target_modules) for module in modules):
            raise AdapterError(
                f"lora.target_modules: {sorted(lora.target_modules)}, but the adapter {folder} has "
                f"{adapted_layers(shapes)}; set it to that"
            )
    return config


def adapted_layers(names: Collection[str]) -> list[str]:
    """Return the names of the adapted layers, such as q_proj.

    >>> adapted_layers(["model.layers.0.q_proj.lora_A.weight", "model.layers.1.q_proj.lora_A.weight"])
    ['q_proj']
    """
    return sorted({name.rpartition(".lora_")[0].removesuffix(".base_layer").rpartition(".")[2] for name in names})


def expected_shapes(base: "PreTrainedConfig", config: "LoraConfig") -> dict[str, tuple[int, ...]]:
    """Return names and shapes of this adapter's weights on this base; no weights are made.

    Raises ValueError if the base has none of the layers.
    """
    from peft import get_peft_model

    with torch.device("meta"):
        model = get_peft_model(meta_model(base), config)
    return {name: tuple(parameter.shape) for name, parameter in lora_parameters(model).items()}


def lora_parameters(model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
    """Return the adapter's weights in the model, under the names that PEFT saves them by."""
    end = f".{adapter}.weight"
    found = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name and name.endswith(end)}
    return {name.removesuffix(end) + ".weight": parameter for name, parameter in found.items()}


def require_fit(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, where: str, cure: str
) -> None:
    """Raise AdapterError, which says what is missing, left over or of another shape, unless both are the same."""
    missing, left_over = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(expected)} tensors are missing ({missing[0]})")
    if left_over:
        parts.append(f"{len(left_over)} tensors have no place in the model ({left_over[0]})")
    if wrong:
        shapes = f"{found[wrong[0]]} instead of {expected[wrong[0]]}"
        parts.append(f"{len(wrong)} tensors have another shape ({wrong[0]}: {shapes})")
    if not parts:
        return
    layers = adapted_layers(found)
    if layers != adapted_layers(expected):
        parts.append(f"it adapts {', '.join(layers)}, expected are {', '.join(adapted_layers(expected))}")
    raise AdapterError(f"{where}: does not fit the base: {'; '.join(parts)}; {cure}")


def check_fit(config: AdapterConfig, base: "PreTrainedConfig", *, wanted: "LoraConfig | None" = None) -> None:
    """Raise AdapterError unless the adapter fits this base, by names and shapes alone.

    wanted: the adapter that the configuration describes; None: the one that adapter_config.json describes
    """
    cure = "give an adapter of this model"
    try:
        expected = expected_shapes(base, wanted or config.to_peft())
    except (ValueError, re.error, OverflowError, RecursionError) as error:  # PEFT finds no layer, or no regex is given
        reason = str(error).splitlines()[0]
        raise AdapterError(f"{config.where}: does not fit the base: {reason}; {cure}") from None
    if wanted is not None:
        cure += ", or set lora.target_modules to the layers that it adapts"
    require_fit(read_shapes(config), expected, where=config.where, cure=cure)


@torch.no_grad()
def load_by_name(model: nn.Module, tensors: Mapping[str, Tensor], *, where: str, adapter: str = "default") -> None:
    """Copy the tensors into the model's adapter; raise AdapterError and copy nothing unless names and shapes agree."""
    own = lora_parameters(model, adapter)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in own.items()}
    require_fit(found, expected, where=where, cure="give an adapter of this model, of the same rank and layers")
    for name, parameter in own.items():
        parameter.copy_(tensors[name])
