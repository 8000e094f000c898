"""LoRA adapters in a folder: read, and taken only if they are what this project's own configuration would make.

    read_config     adapter_config.json: plain LoRA and nothing else
    read_shapes     names and shapes of the weights, from the header of their file
    read_tensors    the weights themselves
    expected_shapes names and shapes on a model, from the model's config.json alone
    load_by_name    the weights into a model, each by its name

PEFT's own loading only warns about tensors that are missing or have no place, and starts from fresh weights there.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from trapo_lite.config import LoraSection
from trapo_lite.config.paths import read_object
from trapo_lite.core.errors import ConfigError
from trapo_lite.model.shape import is_target, meta_model

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

SAYS_NOTHING = {"peft_version", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"}
SAYS_NOTHING |= {"runtime_config", "megatron_core", "qalora_group_size"}  # act only beside other fields
SAYS_NOTHING |= {"lora_dropout"}  # acted while the adapter was trained; here it is 0
WHERE = {"r", "lora_alpha", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern"}
PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),  # any other changes the base, or may
}
"""Values of a plain LoRA adapter. Every field that is in none of these lists must be empty: null, false, 0, [], {}."""

MAX_NUMBER = 1e9  # of ranks and alphas: far beyond any, and what a float can hold
FLOATS = ("F32", "F16", "BF16")
LORA_WEIGHT = re.compile(r".+\.lora_[AB]\.weight")


class AdapterError(ConfigError):
    """An AdapterError says why a folder holds no adapter that can be used here, and what to do."""


@dataclass(frozen=True)
class AdapterConfig:
    """An AdapterConfig is the adapter_config.json of a plain LoRA adapter; `fields` is all of it.

    where: option and folder, for messages
    """

    where: str
    folder: Path
    r: int
    alpha: float
    fields: Mapping[str, Any]

    def to_peft(self) -> "LoraConfig":
        """Return PEFT's configuration that makes a model ready for this adapter's weights."""
        return _lora_config(
            self.r,
            self.alpha,
            **{key: self.fields[key] for key in WHERE - {"r", "lora_alpha"} if self.fields.get(key)},
        )


def own_config(lora: LoraSection) -> "LoraConfig":
    """Return PEFT's configuration of the adapter that the `lora` section describes."""
    return _lora_config(lora.r, lora.alpha, target_modules=lora.target_modules)


def _lora_config(r: int, alpha: Any, **layers: Any) -> "LoraConfig":
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=alpha, lora_dropout=0.0, **layers)


def read_config(folder: Path, *, option: str) -> AdapterConfig:
    """Read adapter_config.json; raise AdapterError unless it describes a plain LoRA adapter.

    option: what named the folder, such as --adapter
    """
    where, file = f"{option} {folder}", folder / CONFIG
    if not file.is_file():
        missing = "" if folder.is_dir() else f"; there is no folder {folder.absolute()}"
        raise AdapterError(
            f"{where}: holds no {CONFIG}; give the folder of a PEFT adapter (RUN/adapter after a finished run, "
            f"RUN/checkpoints/step-... before){missing}"
        )
    try:
        fields = read_object(file)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{where}: {_reason(error, file)}; give the folder of another adapter") from None
    for key, value in sorted(fields.items(), key=lambda field: field[0] not in PLAIN):  # the kind of adapter first
        if key in PLAIN:
            is_plain = any(type(value) is type(plain) and value == plain for plain in PLAIN[key])
        else:
            is_plain = key in SAYS_NOTHING or key in WHERE or value in (None, False, 0, "", [], {})
        if not is_plain:
            raise AdapterError(
                f"{where}: the adapter has {key}: {value!r}, which cannot be trained and served here; use a plain LoRA "
                "adapter (peft_type LORA, every other option at its default)"
            )
    for key in ("peft_type", "r", "lora_alpha"):
        if key not in fields:
            raise AdapterError(f"{where}: {CONFIG} has no {key}; give the folder of a LoRA adapter as PEFT saves it")
    r, alpha = fields["r"], fields["lora_alpha"]
    _require(type(r) is int and 1 <= r <= MAX_NUMBER, where, "r", r, "a whole number from 1")
    _require(_is_positive(alpha), where, "lora_alpha", alpha, "a number above 0")
    for key in ("target_modules", "target_parameters"):
        names = fields.get(key)
        is_text = names is None or (isinstance(names, str) and key == "target_modules")
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        _require(is_text or is_list, where, key, names, "a list of names")
    _require_plain_patterns(where, fields)
    return AdapterConfig(where, folder, r, float(alpha), fields)


def _require(is_right: bool, where: str, key: str, value: Any, wanted: str) -> None:
    if not is_right:
        raise AdapterError(f"{where}: {CONFIG}: {key} is {value!r:.80}; it must be {wanted}")


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= MAX_NUMBER


def _require_plain_patterns(where: str, fields: Mapping[str, Any]) -> None:
    """Refuse every pattern but PEFT's own, a larger rank at the same scale for experts that share one weight."""
    ranks, alphas = fields.get("rank_pattern") or {}, fields.get("alpha_pattern") or {}
    for key, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        is_right = isinstance(pattern, dict) and all(map(_is_positive, pattern.values()))
        _require(is_right, where, key, pattern, "a mapping from names to numbers")
    scale = fields["lora_alpha"] / fields["r"]
    is_fused = bool(fields.get("target_parameters")) and ranks.keys() == alphas.keys()
    if (ranks or alphas) and not (is_fused and all(alphas[name] == scale * ranks[name] for name in ranks)):
        key = "rank_pattern" if ranks else "alpha_pattern"
        raise AdapterError(
            f"{where}: the adapter has {key}: {fields[key]!r}, which cannot be trained and served here; use an adapter "
            "with one r and one lora_alpha"
        )


def read_shapes(config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of the weights; AdapterError if the file is missing, damaged or holds more than LoRA."""
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
        raise AdapterError(f"{config.where}: {_reason(error, file)}; give the folder of another adapter") from None
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
    """Read the weights, on the CPU, in the type they were saved in; AdapterError unless all of them are finite."""
    read_shapes(config)
    file = config.folder / WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{config.where}: {_reason(error, file)}; give the folder of another adapter") from None
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(
                f"{config.where}: {name} is not finite (NaN or infinite); take the adapter of an earlier checkpoint"
            )
    return tensors


def _reason(error: Exception, file: Path) -> str:
    if isinstance(error, OSError):
        return f"{file.name} cannot be read ({error.strerror or error})"
    return f"{file.name} is damaged: {error}"


def check_start(lora: LoraSection) -> AdapterConfig:
    """Read the adapter to start from, `lora.init_from`; AdapterError unless it is of the kind that `lora` describes.

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

    ValueError if the base has none of the layers.
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
