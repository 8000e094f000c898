"""Check model.name against the file system, and read JSON files that hold an object."""

import json
from pathlib import Path
from typing import Any

from trapo_lite.core.errors import ConfigError


def check_name(name: str) -> None:
    """Raise ConfigError if a model's name can only be a local folder, but no model is there."""
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


def check_model_files(name: str) -> None:
    """Raise ConfigError if a JSON file of a model's folder is damaged.

    tokenizer.json is not read: it is large, and loading the tokenizer checks it.
    """
    for part in ("config", "generation_config", "tokenizer_config", "special_tokens_map"):
        file = Path(name) / f"{part}.json"
        if not file.is_file():
            continue
        try:
            read_object(file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.name: {file} is damaged: {error}; copy the model's files again") from None


def read_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise ValueError if it holds anything else, OSError if it cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a huge number or too many levels
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} instead of an object")
    return content
