"""Check the paths that a configuration names, without opening files of data or weights; read small JSON files."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trapo_lite.config.fields import possible_path
from trapo_lite.config.hub import require_hub
from trapo_lite.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trapo_lite.config.config import Config

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
# No hub id ends in one of these, so a missing file with such a suffix is reported as a missing file.
FILE_SUFFIXES = (*SUFFIXES, ".tsv", ".txt", ".gz", ".zip", ".zst", ".arrow", ".yaml")
HUB_NAME = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(:(?P<config>[^:/]*))?(:(?P<split>[^:/]+))?")


def check_paths(config: "Config") -> None:
    """Raise an error if a local model, data file or folder that the configuration names is missing; open none."""
    check_name(config.model.name)
    check_sources(config.data.train)
    if config.eval.data is not None:
        check_sources(config.eval.data)
    check_function_files(config)
    folder = config.rollout.server_adapter_dir
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"rollout.server_adapter_dir: no folder {folder!r}; create it where the servers see it too")


def check_function_files(config: "Config") -> None:
    """Raise ConfigError if a file that reward.functions names is missing."""
    for function in config.reward.own_functions:
        file = Path(function.path.rpartition(":")[0])
        if file.suffix == ".py" and not file.expanduser().is_file():
            where, cure = "", "correct the path"
            if not file.expanduser().is_absolute():
                where = f" in {Path.cwd()}"
                cure = (
                    "run the command in the folder that the path is relative to, or give reward.functions=[...] with "
                    "the path that is right here"
                )
            raise ConfigError(f"reward.functions: {function.path}: no file {str(file)!r}{where}; {cure}")


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
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(f"model.name: no folder {name!r}{where}; give a model's folder or hub id")


def check_sources(files: str | Sequence[str], *, option: str = "data") -> list[str]:
    """Return the sources as a list. Raise DataError unless each is a file of a known kind or looks like a hub id.

    No file is opened. option: the option that named the sources, for messages.
    """
    sources = [files] if isinstance(files, str) else list(files)
    if not sources:
        raise DataError(f"{option}: the list of files is empty; name at least one")
    for source in sources:
        try:
            possible_path(source)
        except ValueError as error:
            raise DataError(f"{option}: {error}") from None
        check_source(source, option)
    return sources


def check_source(source: str, option: str = "data") -> None:
    """Raise DataError unless the source is a file of a known kind or looks like a hub id."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"{option} {source}: is a folder; name the {', '.join(SUFFIXES)} files in it")
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{option} {source}: ends in {path.suffix!r}; give a {', '.join(SUFFIXES)} file or a hub id"
            )
        if path.stat().st_size == 0:
            raise DataError(f"{option} {source}: the file is empty; give one with rows")
    elif path.suffix in FILE_SUFFIXES or not HUB_NAME.fullmatch(source) or source.startswith("."):
        raise DataError(
            f"{option} {source}: no such file; {_written_as_list(source)}check the path (relative to {Path.cwd()}) or "
            "give a hub id: owner/name[@revision][:config][:split]"
        )


def _written_as_list(source: str) -> str:
    """Return the beginning of the advice for several sources that were given as one text."""
    return f"for several sources write [{source}]; " if "," in source else ""


def check_model_files(name: str) -> None:
    """Raise ConfigError if a JSON file of a model's folder is damaged, or if the hub is needed and does not answer.

    tokenizer.json is not read: it is large, and loading the tokenizer checks it.
    """
    if not Path(name).is_dir():
        require_hub(f"model.name: {name}", name=name)
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
