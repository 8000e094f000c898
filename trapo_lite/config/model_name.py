"""What model.name may be, as far as the file system can tell."""

from pathlib import Path

from trapo_lite.config.loading import ConfigError


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
