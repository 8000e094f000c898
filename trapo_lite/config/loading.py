"""Merge YAML files and overrides, validate once, and report for every mistake where it is and what to do."""

import copy
import difflib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from trapo_lite.config import old_form, plain_yaml
from trapo_lite.config.choice import by_name
from trapo_lite.config.config import Config
from trapo_lite.config.fields import IDLE_KEY
from trapo_lite.config.mistakes import (
    CHOICES,
    MICRO_GROUP,
    describe,
    did_you_mean,
    is_unknown,
    nearest,
    shown,
)
from trapo_lite.config.overrides import annotation_of, parse_override
from trapo_lite.config.shipped import config_file, config_names
from trapo_lite.core.errors import ConfigError

logger = logging.getLogger(__name__)
DEFAULT_ALGORITHM = "trapo"
LAST = 10**6  # number of the overrides among the sources of keys: after all files

# Keys of other libraries that have no other name here; each gets a better message than "unknown key".
REFUSED_KEYS = {
    "rollout.num_generations": "is the sum of num_rollouts over algorithm.schedule; remove the key",
    "lora.use_dora": "vLLM does not serve DoRA adapters; remove the key",
    "lora.bias": "vLLM does not serve adapters with biases; remove the key",
    "lora.dropout": "a token shared by several rollouts has one mask, so dropout is always 0; remove the key",
    "lora.lora_dropout": "a token shared by several rollouts has one mask, so dropout is always 0; remove the key",
    "lora.modules_to_save": "vLLM does not serve fully trained modules beside an adapter; remove the key",
}


def load_config(
    files: str | Path | Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    *,
    notify: Callable[[str], None] = logger.info,
) -> Config:
    """Merge YAML files from left to right and `section.key=value` overrides, then validate once.

    A key that a later file or an override leaves without effect is dropped. The override `section.key=null` goes back
    to the default.

    files:  one file or several; a shipped one can be given by its name, such as tiny_cpu.yaml
    notify: told of each key that is dropped
    Raises ConfigError with every wrong key, what was found and what to do.
    """
    merged: dict[str, Any] = {}
    sources: dict[tuple[str, str], int] = {}  # number of the file or override that set a key last
    method: str | Path | None = None
    for number, file in enumerate([files] if isinstance(files, str | Path) else files):
        content = read_yaml(file)
        if content.get("algorithm") is not None:
            if method is not None:
                raise ConfigError(
                    f"--config {method}: its method is replaced by that of {file}, which is given later; give one file "
                    "with a method, after the others"
                )
            method = None if "model" in content else file  # a whole configuration may be followed by a method
        if _was_written_by_a_run(file, content):
            content = _without_idle_keys(old_form.translated(content), notify)
        merged = _merge(merged, content)
        sources |= {(section, key): number for section, values in content.items() for key in _keys_in(values)}
    for override in overrides:
        section, key, parameter, value = parse_override(override)
        trained = _algorithm_of(merged)
        names_another = value != trained and f"algorithm/{value}.yaml" in config_names()
        if (section, key) == ("algorithm", "name") and names_another:
            raise ConfigError(
                f"algorithm.name: is a label, and {value!r} would be trained as {trained!r}; add --config "
                f"configs/algorithm/{value}.yaml instead"
            )
        values = merged.get(section)
        values = values if isinstance(values, dict) else {}
        if parameter is not None:
            part = by_name(values.get(key, {"type": CHOICES[key].type} if key in CHOICES else {}))
            value = (part if isinstance(part, dict) else {}) | {parameter: value}
        merged[section] = values | {key: value}
        sources[section, key] = LAST
        if value is None and override.partition("=")[2].strip() and not _takes_null(section, key):
            del merged[section][key]
    return validate(_without_retired_keys(merged, sources, notify))


def _keys_in(values: Any) -> Collection[str]:
    return values.keys() if isinstance(values, dict) else ()


def _takes_null(section: str, key: str) -> bool:
    """Return whether null is a value of the option, or no option has this name."""
    annotation = annotation_of(section, key)
    return annotation is None or type(None) in get_args(annotation)


def _without_retired_keys(
    merged: dict[str, Any], sources: Mapping[tuple[str, str], int], notify: Callable[[str], None]
) -> dict[str, Any]:
    """Drop the keys that something later in the same section leaves without effect, and tell of each."""
    left: dict[Any, Any] = {name: dict(part) if isinstance(part, dict) else part for name, part in merged.items()}
    while True:
        try:
            Config.model_validate(left)
        except ValidationError as error:
            problems = error.errors()
        else:
            return left
        idle = [(str(p["loc"][0]), p.get("ctx", {})) for p in problems if p["type"] == IDLE_KEY and len(p["loc"]) == 1]
        last = {
            section: max((n for (name, _), n in sources.items() if name == section), default=0) for section, _ in idle
        }
        retired = [
            (section, found) for section, found in idle if sources.get((section, found["key"]), 0) < last[section]
        ]
        if not retired:
            return left  # with its mistakes, which `validate` reports
        for section, found in retired:
            del left[section][found["key"]]
            notify(f"{section}.{found['key']}: dropped, because it acts only with {found['condition']}")


def _was_written_by_a_run(file: str | Path, content: dict[str, Any]) -> bool:
    return Path(file).name == "config.yaml" and content.keys() >= Config.model_fields.keys()  # resolved: all sections


def _without_idle_keys(written: Mapping[str, Any], notify: Callable[[str], None]) -> dict[str, Any]:
    """Drop the keys without effect from what a run wrote, perhaps when more keys had one; tell of values of its own."""
    defaults = Config().model_dump(mode="json")
    left = copy.deepcopy(dict(written))
    while True:
        try:
            Config.model_validate(left)
        except ValidationError as error:
            idle = [problem for problem in error.errors() if problem["type"] == IDLE_KEY]
        else:
            return left
        if not idle:
            return left
        for problem in idle:
            section, key, loc = left, problem.get("ctx", {})["key"], list(map(str, problem["loc"]))
            for part in loc:
                section = section[part]
            if section.pop(key) != defaults[loc[0]].get(key):
                notify(f"{'.'.join([*loc, key])}: dropped, because it has no effect")


def _algorithm_of(merged: dict[str, Any]) -> str:
    block = merged.get("algorithm")
    return block.get("name", DEFAULT_ALGORITHM) if isinstance(block, dict) else DEFAULT_ALGORITHM


def validate(raw: dict[str, Any]) -> Config:
    """Return the Config of plain data; raise one ConfigError that names all mistakes."""
    _check_keys(raw)
    try:
        return Config(**raw)
    except ValidationError as error:
        problems = error.errors()
        # A misspelt key would also be reported as missing; report it once.
        misspelt = {(*p["loc"][:-1], nearest(str(p["loc"][-1]), MICRO_GROUP)) for p in problems if is_unknown(p)}
        lines = [describe(p) for p in problems if p["type"] != "missing" or p["loc"] not in misspelt]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, which may be the name of a shipped one.

    Raises ConfigError if there is no file, or no mapping of sections in it.
    """
    if not str(file).strip():
        raise ConfigError("--config: names no file; give the path of a YAML file")
    path = Path(file)
    if not path.is_file():
        shipped = None if path.is_dir() else config_file(path)
        if shipped is None:
            found = "is a folder" if path.is_dir() else "no such file"
            raise ConfigError(f"--config {path}: {found}; {nearest_files(path)}")
        path = shipped
    cure = "correct the file" if path.suffix in (".yaml", ".yml") else "give a YAML file with options"
    try:
        content = plain_yaml.parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: is not UTF-8 ({error}); {cure}") from None
    except ValueError as error:
        raise ConfigError(f"--config {path}: {error}; {cure}") from None
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror}); give a file you may read") from None
    if content is None:
        raise ConfigError(f"--config {path}: holds nothing; write sections with keys (lora: ...), or leave it out")
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: holds a {type(content).__name__}; write sections with keys (lora: ...)")
    return content


def nearest_files(path: Path) -> str:
    """Return advice for a configuration that is nowhere: the files with the most similar names, here and shipped."""
    names = {file.name: str(file) for folder in (path.parent, Path("configs")) for file in folder.glob("*.yaml")}
    names = {Path(name).name: name for name in config_names() if not name.startswith("accelerate/")} | names
    near = [repr(names[name]) for name in difflib.get_close_matches(path.name, names, n=3)]
    if near:
        return f"did you mean {' or '.join(near)}? `trapo-lite configs` lists all"
    return "give the path of a YAML file, or a name that `trapo-lite configs` lists"


def _merge(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Merge the keys of each section; a later `algorithm:` block replaces the whole earlier one."""
    merged = dict(earlier)
    for section, values in later.items():
        if section != "algorithm" and isinstance(values, dict) and isinstance(merged.get(section), dict):
            merged[section] = merged[section] | values
        else:
            merged[section] = values
    return merged


def _check_keys(raw: dict[str, Any]) -> None:
    problems = old_form.advice(raw)
    if problems:
        raise ConfigError("\n".join(problems))
    for section, values in raw.items():
        if section not in Config.model_fields:
            problems.append(f"{section}: unknown section{did_you_mean(str(section), Config.model_fields)}")
            continue
        if values is None:
            values = {}
        if not isinstance(values, dict):
            problems.append(f"{section}: found {shown(values)}; write keys below it")
            continue
        known = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        for key in values:
            where = f"{section}.{key}"
            if where in REFUSED_KEYS:
                problems.append(f"{where}: {REFUSED_KEYS[where]}")
            elif key not in known:
                problems.append(f"{where}: unknown key{did_you_mean(str(key), known)}")
    if problems:
        raise ConfigError("\n".join(problems))
