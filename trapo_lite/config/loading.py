"""Merge YAML files and overrides, validate once, and say of every mistake where it is and what to do."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trapo_lite.config import plain_yaml
from trapo_lite.config.algorithm import MicroGroupSection
from trapo_lite.config.sections import Config

MAX_SHOWN = 200  # characters of a value in a message

# What users ask for and is not an option here, or by another name: they deserve better than "unknown key".
REFUSED_KEYS = {
    "optim.learning_rate": "unknown key; did you mean 'lr'?",
    "lora.rank": "unknown key; did you mean 'r'?",
    "lora.lora_r": "unknown key; did you mean 'r'?",
    "lora.lora_alpha": "unknown key; did you mean 'alpha'?",
    "rollout.num_generations": "is the sum of num_rollouts over algorithm.schedule; remove the key",
    "lora.use_dora": "vLLM does not serve DoRA adapters; remove the key",
    "lora.bias": "vLLM does not serve adapters with biases; remove the key",
    "lora.dropout": "a token shared by several rollouts has one mask, so dropout is always 0; remove the key",
    "lora.lora_dropout": "a token shared by several rollouts has one mask, so dropout is always 0; remove the key",
    "lora.modules_to_save": "vLLM does not serve fully trained modules beside an adapter; remove the key",
}


class ConfigError(ValueError):
    """Something in the configuration is wrong; the message says where, what was found and what to do."""


def load_config(files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> Config:
    """Merge YAML files left to right and `section.key=value` overrides, then validate once.

    Raises ConfigError naming every wrong key, what was found and what to do.
    """
    merged: dict[str, Any] = {}
    for file in files:
        merged = _merge(merged, read_yaml(file))
    for override in overrides:
        section, key, value = _parse_override(override)
        values = merged.get(section)
        merged[section] = (values if isinstance(values, dict) else {}) | {key: value}
    return validate(merged)


def validate(raw: dict[str, Any]) -> Config:
    """One validation of plain data; every problem found stands in the ConfigError."""
    _check_keys(raw)
    try:
        return Config(**raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(problem) for problem in error.errors())) from None


def read_yaml(file: str | Path) -> dict[str, Any]:
    """A mapping of sections; a missing file, bad YAML or another top level is a ConfigError."""
    path = Path(file)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {str(path.parent / near[0])!r}?" if near else "; give the path of a YAML file"
        raise ConfigError(f"--config {path}: {'is a folder' if path.is_dir() else 'no such file'}{hint}")
    try:
        content = plain_yaml.parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: is not UTF-8 ({error}); save the file as UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"--config {path}: {error}; correct the file") from None
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror}); give a file you may read") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: holds a {type(content).__name__}; write sections with keys (lora: ...)")
    return content


def _merge(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Key by key within a section; a later `algorithm:` block replaces the earlier one whole."""
    merged = dict(earlier)
    for section, values in later.items():
        if section != "algorithm" and isinstance(values, dict) and isinstance(merged.get(section), dict):
            merged[section] = merged[section] | values
        else:
            merged[section] = values
    return merged


def _parse_override(text: str) -> tuple[str, str, Any]:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        if text.endswith((".yaml", ".yml")):
            raise ConfigError(f"{text!r}: is a file; write --config before each")
        raise ConfigError(f"{text!r}: not an override; write section.key=value, such as optim.lr=2e-5")
    try:
        return parts[0], parts[1], plain_yaml.parse(value)
    except ValueError as error:
        raise ConfigError(f"{key}: {_shown(value)} is not a YAML value; quote it ({error})") from None


def _check_keys(raw: dict[str, Any]) -> None:
    problems = []
    for section, values in raw.items():
        if section not in Config.model_fields:
            problems.append(f"{section}: unknown section{_did_you_mean(str(section), Config.model_fields)}")
            continue
        if values is None:
            values = {}
        if not isinstance(values, dict):
            problems.append(f"{section}: found {_shown(values)}; write keys below it")
            continue
        known = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        for key in values:
            where = f"{section}.{key}"
            if where in REFUSED_KEYS:
                problems.append(f"{where}: {REFUSED_KEYS[where]}")
            elif key not in known:
                problems.append(f"{where}: unknown key{_did_you_mean(str(key), known)}")
    if problems:
        raise ConfigError("\n".join(problems))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word[:MAX_SHOWN], list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def _describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"] if part not in ("text", "list"))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key{_did_you_mean(str(problem['loc'][-1]), MicroGroupSection.model_fields)}"
    if problem["type"] == "value_error":
        separator = ": " if message.startswith("found ") else "."
        return f"{where}{separator}{message}" if where else message
    return f"{where}: {message[0].lower()}{message[1:]}; found {_shown(problem['input'])}"


def sets(key: str, overrides: Sequence[str]) -> bool:
    """Whether one of the overrides is of this key.

    >>> sets("eval.every", ["eval.every=5"]), sets("eval.every", ["eval.num_problems=5"])
    (True, False)
    """
    return any(text.partition("=")[0] == key for text in overrides)
