"""Define the field types of all sections and their base class, which refuses unknown keys and keys without effect."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from trapo_lite.config.shipped import shipped_path

IDLE_KEY = "idle_key"
"""Type of pydantic's error for a key without effect; its context has `key` and `condition`."""


def _no_truth_value(value: Any) -> Any:
    """Refuse a truth value: YAML reads yes, no, on and off as one, and Python would use it as 1 or 0."""
    if isinstance(value, bool):
        raise ValueError(f"found {value}; give a number")
    return value


def possible_path(text: str) -> str:
    """Return the text; raise ValueError if it can be neither a path nor a hub id."""
    fault = None
    if not text.isprintable():
        fault = "holds characters that cannot be printed"
    elif len(os.fsencode(text)) > 4000 or any(len(os.fsencode(part)) > 255 for part in text.split("/")):
        fault = "is longer than a path can be"
    elif text.startswith("~"):
        try:
            Path(text).expanduser()
        except RuntimeError:
            fault = "names a user who is not known here"
    if fault is not None:
        raise ValueError(f"found {text[:60]!r}, which {fault}; give another path or name")
    return text


def with_one_slot(text: str, slot: str) -> str:
    """Return the text; raise ValueError unless it holds the slot once and {problem}, behind which it stands, never."""
    if text.count(slot) != 1 or "{problem}" in text:
        raise ValueError(
            f"must contain {slot} exactly once, and not {{problem}}, behind which it stands; found {text[:60]!r}"
        )
    return text


Number = Annotated[float, BeforeValidator(_no_truth_value), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_no_truth_value)]
PositiveInt = Annotated[Whole, Field(ge=1)]
Positive = Annotated[Number, Field(gt=0.0)]
Temperature = Annotated[Number, Field(ge=0.01)]  # engines decode greedily at a lower temperature
NonNegative = Annotated[Number, Field(ge=0.0)]
Fraction = Annotated[Number, Field(ge=0.0, le=1.0)]
Beta = Annotated[Number, Field(ge=0.0, lt=1.0)]
PathText = Annotated[str, AfterValidator(possible_path), AfterValidator(shipped_path)]
_text_as_list = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
TextAsList = Annotated[list[str], _text_as_list]
Trackers = Annotated[list[Literal["tensorboard", "wandb", "trackio"]], _text_as_list]
by_text_or_list = Discriminator(lambda value: "text" if isinstance(value, str) else "list")
TextOrList = Annotated[
    Annotated[str, Field(min_length=1), Tag("text")] | Annotated[list[str], Field(min_length=1), Tag("list")],
    by_text_or_list,
]
PathOrPaths = Annotated[
    Annotated[PathText, Field(min_length=1), Tag("text")] | Annotated[list[PathText], Field(min_length=1), Tag("list")],
    by_text_or_list,
]


class Section(BaseModel):
    """A Section is a checked part of the configuration that cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), coerce_numbers_to_str=True
    )

    @field_validator("*")
    @classmethod
    def _no_half_characters(cls, value: Any) -> Any:
        """Refuse half of a surrogate pair: JSON and YAML can hold it, tokenizers and files cannot."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"found {text[:60]!r}, with half of a surrogate pair; write the whole character")
        return value

    def idle_keys(self) -> dict[str, str]:
        """Return the keys that have no effect with the other keys' values, each with the setting that it needs.

        Such a key is an error if the user sets it together with what makes it idle, and is left out of the resolved
        file. If a later file or an override makes it idle, it is retired (`loading.load_config`).
        """
        return {}

    @model_validator(mode="after")
    def _no_idle_keys(self) -> "Section":
        for key, condition in self.idle_keys().items():
            if key in self.model_fields_set:
                raise PydanticCustomError(
                    IDLE_KEY,
                    "{key}: has no effect here: it acts with {condition}; set that, or remove this",
                    {"key": key, "condition": condition},
                )
        return self
