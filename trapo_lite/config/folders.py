"""What model.name and lora.init_from may be, as far as the file system can tell."""

import json
from pathlib import Path

from trapo_lite.config.loading import ConfigError
from trapo_lite.config.sections import LoraSection


def check_name(name: str) -> None:
    """ConfigError where a model's name can only be a local folder, and is none: the hub is not worth asking."""
    path = Path(name)
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise ConfigError(f"model.name: {name!r} is an adapter; give the model it belongs to, or a merged checkpoint")
    if path.is_dir():
        if not (path / "config.json").is_file():
            near = sorted(str(file.parent) for file in path.glob("*/config.json"))
            hint = f"did you mean {near[0]}?" if near else "give the folder that holds it"
            raise ConfigError(f"model.name: {name!r} holds no config.json; {hint}")
        return
    if path.exists():
        raise ConfigError(f"model.name: {name!r} is a file; give the model's folder")
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and path.parent.is_dir())
    if is_path:
        raise ConfigError(f"model.name: no folder {name!r} ({path.absolute()}); give a model's folder or hub id")


def check_adapter(folder: Path, lora: LoraSection) -> None:
    """An adapter to start from must have the configured rank and scale: they are part of what is trained."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ConfigError(f"lora.init_from: {folder} holds no adapter_config.json; give the folder of a PEFT adapter")
    found = json.loads(file.read_text(encoding="utf-8"))
    for key, wanted in (("r", lora.r), ("lora_alpha", lora.alpha)):
        if found[key] != wanted:
            name = {"r": "r", "lora_alpha": "alpha"}[key]
            raise ConfigError(f"lora.{name}: {wanted}, but the adapter {folder} has {found[key]}; set it to that")
    neutral = {"use_dora": False, "bias": "none", "lora_dropout": 0.0, "use_rslora": False}
    neutral |= {"modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None}
    for key, value in neutral.items():
        if found.get(key, value) not in (value, None, [], {}):
            raise ConfigError(
                f"lora.init_from: the adapter {folder} has {key}: {found[key]!r}, which cannot be trained and served "
                "here; start from a plain LoRA adapter"
            )
    targets = found.get("target_modules") or []
    if isinstance(lora.target_modules, list) and set(targets) != set(lora.target_modules):
        raise ConfigError(
            f"lora.target_modules: {sorted(lora.target_modules)}, but the adapter {folder} has {sorted(targets)}; "
            "set it to that"
        )
