"""Read an adapter's adapter_config.json, and take only what this project's own configuration would make."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trapo_lite.config import LoraSection
from trapo_lite.config.paths import read_object
from trapo_lite.core.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig

CONFIG = "adapter_config.json"

IGNORED_FIELDS = {"peft_version", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"}
IGNORED_FIELDS |= {"runtime_config", "megatron_core", "qalora_group_size"}  # act only beside other fields
IGNORED_FIELDS |= {"lora_dropout"}  # acted while the adapter was trained; here it is 0
LAYER_FIELDS = {"r", "lora_alpha", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern"}
PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),  # any other changes the base, or may
}
"""Values of a plain LoRA adapter. Every field that is in none of these lists must be empty: null, false, 0, [], {}."""

MAX_NUMBER = 1e9  # of ranks and alphas: far beyond any, and what a float can hold


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
            **{key: self.fields[key] for key in LAYER_FIELDS - {"r", "lora_alpha"} if self.fields.get(key)},
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
        near = ", ".join(sorted(path.name for path in folder.parent.glob("*") if (path / CONFIG).is_file())[-5:])
        missing = "" if folder.is_dir() else f"; there is no such folder{f', there are {near}' if near else ''}"
        raise AdapterError(
            f"{where}: holds no {CONFIG}; give the folder of a PEFT adapter (RUN/adapter after a finished run, "
            f"RUN/checkpoints/step-... before){missing}"
        )
    try:
        fields = read_object(file)
    except (OSError, ValueError) as error:
        raise unreadable(where, file, error) from None
    for key, value in sorted(fields.items(), key=lambda field: field[0] not in PLAIN):  # the kind of adapter first
        if key in PLAIN:
            is_plain = any(type(value) is type(plain) and value == plain for plain in PLAIN[key])
        else:
            is_plain = key in IGNORED_FIELDS or key in LAYER_FIELDS or value in (None, False, 0, "", [], {})
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


def unreadable(where: str, file: Path, error: Exception) -> AdapterError:
    """Return the error for a file of the adapter that cannot be read, or not understood."""
    reason = f"is damaged: {error}"
    if isinstance(error, OSError):
        reason = f"cannot be read ({error.strerror or error})"
    return AdapterError(f"{where}: {file.name} {reason}; give the folder of another adapter")
