"""What all sections are made of: checked numbers, and a base that refuses unknown and idle keys."""

import os
from pathlib import Path
from typing import Annotated, Any

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


def _no_truth_value(value: Any) -> Any:
    """YAML reads yes, no, on and off as truth values, which Python would take for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"found {value}; give a number")
    return value


def possible_path(text: str) -> str:
    """Return the text if the system can be asked about it as a path; ValueError otherwise. A hub id passes."""
    what = None
    if not text.isprintable():
        what = "holds characters that cannot be printed"
    elif len(os.fsencode(text)) > 4000 or any(len(os.fsencode(part)) > 255 for part in text.split("/")):
        what = "is longer than a path can be"
    elif text.startswith("~"):
        try:
            Path(text).expanduser()
        except RuntimeError:
            what = "names a user who is not known here"
    if what is not None:
        raise ValueError(f"found {text[:60]!r}, which {what}; give another path or name")
    return text


Number = Annotated[float, BeforeValidator(_no_truth_value), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_no_truth_value)]
PositiveInt = Annotated[Whole, Field(ge=1)]
Positive = Annotated[Number, Field(gt=0.0)]
Temperature = Annotated[Number, Field(ge=0.01)]  # below, engines switch to greedy decoding by themselves
NonNegative = Annotated[Number, Field(ge=0.0)]
Fraction = Annotated[Number, Field(ge=0.0, le=1.0)]
Beta = Annotated[Number, Field(ge=0.0, lt=1.0)]
PathText = Annotated[str, AfterValidator(possible_path)]
TextAsList = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
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
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), coerce_numbers_to_str=True
    )

    @field_validator("*")
    @classmethod
    def _no_half_characters(cls, value: Any) -> Any:
        """Refuse half of a surrogate pair: JSON and YAML can spell it, but no tokenizer and no file takes it."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"found {text[:60]!r}, with half of a surrogate pair; write the whole character")
        return value

    def idle_keys(self) -> dict[str, str]:
        """Keys without effect beside the others, with what they act with.

        They are refused when the user sets them, and left out of the resolved file.
        """
        return {}

    @model_validator(mode="after")
    def _no_idle_keys(self) -> "Section":
        for key, condition in self.idle_keys().items():
            if key in self.model_fields_set:
                raise ValueError(f"{key}: has no effect here: it acts with {condition}; set that, or remove this")
        return self
