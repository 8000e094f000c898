r"""Define the reward functions that `reward.functions` may list; docs/rewards.md shows each with an example.

Each has a type, a name for metrics and logs, and a weight. A rollout's reward is the weighted sum of what they return.
`bounds` says between which values a function's return lies, so that a schedule can decide before all are known.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from trapo_lite.config.choice import by_name
from trapo_lite.config.fields import NonNegative, PositiveInt, Section

NAME = r"[A-Za-z][A-Za-z0-9_-]*"


class RewardFunction(Section):
    """A RewardFunction is one part of the reward.

    name:   of its metric and in the rollout log; None: the type, or the name of the function
    weight: factor in the sum; with 0 the part is only logged
    """

    type: str
    name: Annotated[str, Field(pattern=f"^{NAME}$")] | None = None
    weight: Annotated[NonNegative, Field(le=1e6)] = 1.0

    needs_answer: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def label(self) -> str:
        return self.name or self.type


class Math(RewardFunction):
    """Compare the answer with the row's by value: 1 or 0 (docs/verifier.md)."""

    type: Literal["math"] = "math"


class Exact(RewardFunction):
    """Give 1 if the text is the row's answer, apart from white space around both."""

    type: Literal["exact"] = "exact"
    text: Literal["response", "last_line", "box"] = "response"
    """Part of the response that is compared."""
    ignore_case: bool = False


class Regex(RewardFunction):
    """Give 1 if what the pattern finds last in the response is the row's answer.

    It is the pattern's first group, or the whole match of a pattern without one, without white space around it.
    """

    type: Literal["regex"] = "regex"
    pattern: str
    ignore_case: bool = False

    _pattern = field_validator("pattern")(lambda value: possible_pattern(value))


class JsonField(RewardFunction):
    """Give 1 if a field of the response's JSON object is the row's answer: the same number, or the same text.

    The response is the object and nothing else, or holds it in a fence of three backticks; the last fence counts.
    """

    type: Literal["json_field"] = "json_field"
    field: Annotated[str, Field(min_length=1)]
    """Name of the field; dots lead into nested objects."""


class Format(RewardFunction):
    """Give 1 if the pattern describes the whole response (re.fullmatch; a dot also stands for a new line)."""

    type: Literal["format"] = "format"
    pattern: str
    needs_answer: ClassVar[bool] = False

    _pattern = field_validator("pattern")(lambda value: possible_pattern(value))


class Length(RewardFunction):
    """Give 0 up to `free_tokens` of response, then less in a straight line down to -1 at `most_tokens`.

    Source: the soft overlong punishment of DAPO, arXiv:2503.14476, equation 13.
    """

    type: Literal["length"] = "length"
    free_tokens: Annotated[int, Field(ge=0)]
    most_tokens: PositiveInt
    needs_answer: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (-1.0, 0.0)

    @model_validator(mode="after")
    def _has_room(self) -> "Length":
        if self.free_tokens >= self.most_tokens:
            raise ValueError(
                f"free_tokens: found {self.free_tokens}, most_tokens {self.most_tokens}; the free ones must be fewer"
            )
        return self


class Function(RewardFunction):
    """Call a Python function: `FILE.py:NAME`, or `PACKAGE.MODULE:NAME` of an installed package.

    It may return any finite number, or None for a response that it does not judge.
    """

    type: Literal["function"] = "function"
    path: str
    needs_answer: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    @field_validator("path")
    @classmethod
    def _names_a_function(cls, path: str) -> str:
        where, colon, name = path.rpartition(":")
        is_module = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", where)
        if (
            not colon
            or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name)
            or not (where.endswith(".py") or is_module)
        ):
            raise ValueError(f"found {path!r}; give FILE.py:NAME or PACKAGE.MODULE:NAME")
        return path

    @property
    def label(self) -> str:
        return self.name or self.path.rpartition(":")[2].rpartition(".")[2]


def _written_out(value: Any) -> Any:
    """Return a list of functions with their types: one function, or a name without parameters, may stand alone."""
    functions = [value] if isinstance(value, str | dict) else value
    return [by_name(function) for function in functions] if isinstance(functions, list) else functions


AnyReward = Annotated[Math | Exact | Regex | JsonField | Format | Length | Function, Field(discriminator="type")]
RewardFunctions = Annotated[list[AnyReward], BeforeValidator(_written_out)]
REWARD_TYPES: tuple[type[RewardFunction], ...] = (Math, Exact, Regex, JsonField, Format, Length, Function)


def without_folder(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function's parameters without the folder in its path, because its file may move.

    >>> without_folder({"type": "function", "path": "mine/rewards.py:score"})
    {'type': 'function', 'path': 'rewards.py:score'}
    """
    return {key: value.rpartition("/")[2] if key == "path" else value for key, value in parameters.items()}


def possible_pattern(pattern: str) -> str:
    """Return the pattern; raise ValueError if it is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"found {pattern!r}, which is no regular expression ({error}); correct it") from None
    return pattern


def reward_bounds(functions: Sequence[RewardFunction]) -> tuple[float, float]:
    """Return the lowest and the highest reward that a rollout can have; one without a reward counts as 0.

    >>> reward_bounds([Math(), Length(free_tokens=1, most_tokens=2, weight=0.5)])
    (-0.5, 1.0)
    """
    weighed = [function for function in functions if function.weight > 0]
    low, high = (sum(function.weight * function.bounds[side] for function in weighed) for side in (0, 1))
    return min(low, 0.0), max(high, 0.0)


def require_consistent(functions: Sequence[RewardFunction]) -> None:
    """Raise ValueError if two functions share a name, or if nothing would be rewarded."""
    labels = [function.label for function in functions]
    if not functions:
        raise ValueError("functions: the list is empty, so that nothing would be rewarded; name one, such as math")
    repeated = next((label for label in labels if labels.count(label) > 1), None)
    if repeated is not None:
        raise ValueError(f"functions: two have the name {repeated!r}; give one of them another `name`")
    if not any(function.weight > 0 for function in functions):
        raise ValueError("functions: the weights sum to 0, so that nothing would be rewarded; give one a weight")


def described(functions: Sequence[RewardFunction]) -> str:
    """Return the sum as text for people.

    >>> described([Math(), Length(free_tokens=100, most_tokens=200, weight=0.5)])
    'math + 0.5 length'
    """
    return " + ".join(
        function.label if function.weight == 1.0 else f"{function.weight:g} {function.label}" for function in functions
    )
