"""Read overrides, `section.key=value`, and advise on those that are none."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from trapo_lite.config import plain_yaml
from trapo_lite.config.config import Config
from trapo_lite.config.mistakes import CHOICES, FIRST_STAGE, did_you_mean, shown
from trapo_lite.config.other_names import own_name
from trapo_lite.core.errors import ConfigError

NO_VALUE = ("", "~", "null", "Null", "NULL")  # YAML's spellings of null
QUOTES = ("'", '"')


def parse_override(text: str) -> tuple[str, str, str | None, Any]:
    """Return section, key, parameter (of a part of the algorithm, or None) and value."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    is_parameter = len(parts) == 3 and parts[0] == "algorithm" and parts[1] in (*CHOICES, FIRST_STAGE)
    if not equals or not (len(parts) == 2 or is_parameter) or not all(parts):
        if text.endswith((".yaml", ".yml")):
            raise ConfigError(f"{text!r}: is a file; write --config before each")
        raise ConfigError(f"{text!r}: not an override; {_how_to_write(key.strip(), has_value=bool(equals))}")
    section, option, parameter = parts[0], parts[1], parts[2] if is_parameter else None
    if _is_text(section, option) and value.strip() not in NO_VALUE and value.lstrip()[0] not in QUOTES:
        return section, option, None, value  # unchanged, because YAML reads {problem}, 007 and "a # b" differently
    try:
        return section, option, parameter, plain_yaml.parse(value)
    except ValueError as error:
        raise ConfigError(f"{key}: {shown(value)} is not a YAML value; quote it ({error})") from None


def _how_to_write(key: str, *, has_value: bool) -> str:
    """Return advice for an override that has no section or no value."""
    if key in Config.model_fields:
        files = ", or --config configs/algorithm/NAME.yaml for all of it" if key == "algorithm" else ""
        return f"{key} is a section; write {key}.KEY=value for one of its keys{files}"
    if own := own_name(key):
        return f"here it is {own}"
    sections = [name for name, field in Config.model_fields.items() if key in keys_of(field)]
    section, _, option = key.partition(".")
    whole, *inner = re.split(r"\.|\[", option)
    known = keys_of(Config.model_fields[section]) if section in Config.model_fields else ()
    if whole in known and inner:
        return _how_to_write_inside(section, whole, inner)
    if known and whole != option:
        return f"{section}.{whole}: unknown key{did_you_mean(whole, known)}"
    if has_value and sections:
        return f"write section.key=value: did you mean {' or '.join(f'{section}.{key}=...' for section in sections)}?"
    if not has_value and key.count(".") == 1:
        return f"write section.key=value without blanks around =, such as {key.rstrip(':')}=..."
    return "write section.key=value, such as optim.lr=2e-5"


def _how_to_write_inside(section: str, whole: str, inner: Sequence[str]) -> str:
    """Return advice for an override of something inside an option that is given as a whole."""
    if whole == FIRST_STAGE and inner[0] == "schedule":
        return _how_to_write_inside(f"{section}.{whole}", "schedule", inner[1:])
    if whole == FIRST_STAGE:
        part = f"{section}.{whole}.{inner[0]}"
        if inner[0] == "optim":
            return f"the first stage has {section}.{whole}.lr of its own, and nothing else of optim"
        return f"write the whole of {part}=, such as {section}.{whole}.prefix_loss={{type: nll, weight: 0.5}}"
    if whole == "schedule":
        return (
            f"write the whole list, {section}.schedule=[{{num_rollouts: 7}}, {{num_rollouts: 1, prefix_ratio: 1.0, "
            f"help_below: null}}], with the micro-groups that the method's file has"
        )
    is_list = isinstance(getattr(getattr(Config(), section), whole), list | tuple)
    return f"write the whole of {section}.{whole}={'[VALUE, ...]' if is_list else '{KEY: VALUE, ...}'}"


def keys_of(section: FieldInfo) -> Collection[str]:
    """Return the keys of a section of the configuration."""
    return section.annotation.model_fields.keys()  # type: ignore[union-attr]


def _is_text(section: str, key: str) -> bool:
    """Return whether the option takes only text or null."""
    return annotation_of(section, key) in (str, str | None)


def annotation_of(section: str, key: str) -> Any:
    """Return the type of an option, or None if there is none of this name."""
    field = Config.model_fields.get(section)
    option = field.annotation.model_fields.get(key) if field else None  # type: ignore[union-attr]
    return None if option is None else option.annotation


def sets(key: str, overrides: Sequence[str]) -> bool:
    """Return whether one of the overrides sets this key.

    >>> sets("eval.every", ["eval.every=5"]), sets("eval.every", ["eval.num_problems=5"])
    (True, False)
    """
    return any(text.partition("=")[0] == key for text in overrides)
