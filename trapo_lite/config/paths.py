"""What model.name may be, as far as the file system can tell, and JSON files as objects."""

import json
from pathlib import Path
from typing import Any

from trapo_lite.core.errors import ConfigError


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


def check_model_files(name: str) -> None:
    """Raise ConfigError if a JSON file of a model's folder is damaged; tokenizer.json, a large one, loading checks."""
    for part in ("config", "generation_config", "tokenizer_config", "special_tokens_map"):
        file = Path(name) / f"{part}.json"
        if not file.is_file():
            continue
        try:
            read_object(file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.name: {file} is damaged: {error}; copy the model's files again") from None


def read_object(file: Path) -> dict[str, Any]:
    """Read the object in a JSON file; ValueError says what is there instead, OSError that it cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number or a nesting without end
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} instead of an object")
    return content
