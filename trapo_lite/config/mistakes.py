"""Describe mistakes in a configuration: where each is, what was found and what to do."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from trapo_lite.config.algorithm import AlgorithmSection, FirstStageSection
from trapo_lite.config.choice import Choice
from trapo_lite.config.choices import FIELDS_BY_TYPE
from trapo_lite.config.data import DataColumns
from trapo_lite.config.fields import IDLE_KEY
from trapo_lite.config.micro_groups import MicroGroupSection
from trapo_lite.config.other_names import own_name
from trapo_lite.config.over_steps import OverSteps
from trapo_lite.config.rewards import REWARD_TYPES

MICRO_GROUP = MicroGroupSection.model_fields
CHOICES = {
    name: field.default for name, field in AlgorithmSection.model_fields.items() if isinstance(field.default, Choice)
}
"""Maps each part of the algorithm that is chosen by name to its default."""
FIRST_STAGE = "first_stage"
OTHER_VALUES = {"hf": "transformers", "huggingface": "transformers", "bf16": "bfloat16", "fp32": "float32"}
"""Maps values of other libraries to those of the options here."""
FUNCTION_PATH = re.compile(r"(\.py|^[A-Za-z_]\w*(\.\w+)+):\w+$")
NUMBERS = {
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number"),
}
"""Maps pydantic's errors to what to give."""
COURSE = "{steps: [0, 100], values: [0.9, 0.1]}, a course over steps"
MAX_SHOWN = 200  # characters of a value in a message


def shown(value: Any) -> str:
    """Return a value as it would be written, shortened to MAX_SHOWN characters."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like the word, or None if none is like it."""
    near = difflib.get_close_matches(word[:MAX_SHOWN], list(known), n=1, cutoff=0.5)
    return near[0] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: what it is called here, or which names there are."""
    near = nearest(word, known)
    own = own_name(word)
    is_near = bool(difflib.get_close_matches(word, list(known), n=1, cutoff=0.85))
    if own is not None and not is_near:
        return f"; here it is {own}"
    return f"; did you mean {near!r}?" if near else f"; known are {', '.join(known)}"


def is_unknown(problem: Any) -> bool:
    return problem["type"] == "extra_forbidden"


def describe(problem: Any) -> str:
    """Return one of pydantic's problems as a line: where it is, what was found and what to do."""
    keys = [key for index, key in enumerate(problem["loc"]) if not _is_tag(index, problem["loc"])]
    where = _path(keys)
    message = problem["msg"].removeprefix("Value error, ")
    if is_unknown(problem) and problem["loc"][-2] == "none":
        part = _path(keys[:-1])
        return f"{where}: has no effect with {part}: none; write {part}={{type: ..., {keys[-1]}: ...}}"
    if problem["type"] in ("float_parsing", "float_type") and keys[-1] in ("weight", "prefix_ratio"):
        return f"{where}: found {shown(problem['input'])}; give a number, or {COURSE}"
    if problem["type"] == "list_type" and "over_steps" in problem["loc"]:
        return f"{where}: found {shown(problem['input'])}; write {COURSE}"
    if is_unknown(problem):
        return f"{where}: unknown key{did_you_mean(str(keys[-1]), _known_at(problem['loc']))}"
    if problem["type"] in ("union_tag_invalid", "literal_error") and isinstance(keys[-1], int):
        given = problem["ctx"].get("tag", problem["input"])
        if isinstance(given, str) and "," in given:
            return _as_list(_path(keys[:-1]), given)
    if problem["type"] == "union_tag_invalid" and FUNCTION_PATH.search(problem["ctx"]["tag"]):
        path = problem["ctx"]["tag"]
        others = "".join(f", {key}: {value}" for key, value in problem["input"].items() if key != "type")
        return f"{where}: found {shown(path)}; write {{type: function, path: {path}{others}}}"
    if problem["type"] == "union_tag_invalid":
        names = [name.strip("' ") for name in problem["ctx"]["expected_tags"].split(",")]
        return f"{where}: found {shown(problem['ctx']['tag'])}{did_you_mean(problem['ctx']['tag'], names)}"
    if problem["type"] == "union_tag_not_found" and isinstance(keys[-1], int):
        return f"{where}: has no type; write {{type: ..., parameter: ...}}, with a type such as math or function"
    if problem["type"] == "union_tag_not_found":
        return f"{where}: has no type; write {where}={CHOICES[str(keys[-1])].type}, or {{type: ..., parameter: ...}}"
    if problem["type"] == "model_attributes_type" and keys[-1] in CHOICES:
        return f"{where}: found {shown(problem['input'])}; give a name, such as {CHOICES[str(keys[-1])].type}"
    if problem["type"] in ("value_error", IDLE_KEY):
        begins_with_keys = re.match(r"[\w\[\].]+(, [\w\[\].]+)*: ", message)
        return f"{where}{'.' if begins_with_keys else ': '}{message}" if where else message
    if problem["type"] == "missing" and isinstance(keys[-1], int):
        return f"{_path(keys[:-1])}: has too few values; found {shown(problem['input'])}"
    if problem["type"] == "list_type" and isinstance(problem["input"], str) and "," in problem["input"]:
        return _as_list(where, problem["input"])
    value = "no value" if problem["input"] is None else shown(problem["input"])
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: found {value}; write {where}={{KEY: VALUE, ...}}"
    if problem["type"] == "missing":
        return f"{where}: is missing; the {_path(keys[:-1])} given is {shown(problem['input'])}"
    if problem["type"] == "list_type":
        return f"{where}: found {value}; write {where}=[VALUE, ...]"
    if problem["type"] in NUMBERS:
        return f"{where}: found {value}; give {NUMBERS[problem['type']]}"
    if problem["type"] == "too_short":
        return f"{where}: found {value}; give at least {problem['ctx']['min_length']} values"
    if problem["type"] == "literal_error":
        return f"{where}: found {value}; {_choice_near(problem['input'], problem['ctx']['expected'])}"
    return f"{where}: {message[0].lower()}{message[1:]}; found {value}"


def _path(keys: Iterable[str | int]) -> str:
    """Return the name of an option, or of a place in it.

    >>> _path(["algorithm", "schedule", 1, "prefix_ratio"])
    'algorithm.schedule[1].prefix_ratio'
    """
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def _as_list(option: str, text: str) -> str:
    """Return the message on several values that were given as one text."""
    return f"{option}: found {shown(text)}; write {option}=[{text}]"


def _choice_near(value: Any, expected: str) -> str:
    """Return advice for a value that is none of the choices, which pydantic writes as "'a', 'b' or 'c'".

    >>> _choice_near("VLLM", "'vllm', 'server' or 'transformers'"), _choice_near("fp16", "'float32' or 'bfloat16'")
    ("did you mean 'vllm'?", "give 'float32' or 'bfloat16'")
    """
    choices = re.findall(r"'([^']*)'", expected)
    word = str(value).casefold()
    known = OTHER_VALUES.get(word)
    near = [known] if known in choices else difflib.get_close_matches(word, choices, n=1, cutoff=0.7)
    return f"did you mean {near[0]!r}?" if near else f"give {expected}"


def _is_tag(index: int, loc: Sequence[str | int]) -> bool:
    """Return whether this part of pydantic's location only names the chosen type of a union."""
    if loc[:2] == ("reward", "functions"):
        return index == 3
    return loc[index] in ("text", "list", "number", "over_steps") or (index >= 2 and loc[index - 1] in CHOICES)


def _known_at(loc: Sequence[str | int]) -> Iterable[str]:
    """Return the known keys of the micro-group, the type or the map of columns that has an unknown one."""
    if loc[:2] == ("data", "columns"):
        return DataColumns.model_fields
    if loc[:2] == ("reward", "functions"):
        return next(kind.model_fields for kind in REWARD_TYPES if kind.model_fields["type"].default == loc[3])
    if "over_steps" in loc:
        return OverSteps.model_fields
    *_, outer, last, _ = ("", *loc)
    if last == FIRST_STAGE:
        return FirstStageSection.model_fields
    return FIELDS_BY_TYPE[str(outer), str(last)] if outer in CHOICES else MICRO_GROUP
