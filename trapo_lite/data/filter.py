"""Decide which rows data.filter keeps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trapo_lite.config.data import Allowed, is_range
from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.cells import lookup, require_column


def column_outside(fields: dict[str, Any], allowed_by_column: Mapping[str, Sequence[Allowed]]) -> str | None:
    """Return the first column whose value is not allowed, or None if the row is kept.

    A column that is empty is outside. A list is inside if one of its items is.

    >>> column_outside({"level": 3, "rate": "3/8"}, {"level": [3, 4, 5], "rate": [0.1, 0.5]}) is None
    True
    >>> column_outside({"level": 3, "rate": 0.75}, {"level": [3, 4, 5], "rate": [0.1, 0.5]})
    'rate'

    Raises BadRow if a column is missing, or is no number where a range is asked for.
    """
    for column, allowed in allowed_by_column.items():
        require_column(fields, column, option=f"data.filter.{column}")
        value = lookup(fields, column)
        items = value if isinstance(value, list) else [value]
        if not any(_is_inside(item, allowed, column) for item in items):
            return column
    return None


def _is_inside(value: Any, allowed: Sequence[Allowed], column: str) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    if not is_range(allowed):
        return any(_is_same(value, other) for other in allowed)
    number = as_number(value)
    if number is None:
        ends = ", ".join(map(str, allowed))
        found = f"found {type(value).__name__} {value!r:.40}, but [{ends}] is a range of numbers"
        raise BadRow("wrong type", field=column, found=found, fix="list the texts to keep in data.filter")
    low, high = allowed
    return (low is None or number >= float(low)) and (high is None or number <= float(high))


def _is_same(value: Any, other: Allowed) -> bool:
    """Return whether the values are equal as numbers or as texts. CSV holds every value as text."""
    if isinstance(value, bool) or isinstance(other, bool):
        return str(value).lower() == str(other).lower()
    number = as_number(value)
    return str(value) == str(other) or (number is not None and number == as_number(other))


def as_number(value: Any) -> float | None:
    """Return the number that a value is or spells, also as a fraction; None if it is none.

    >>> as_number("3/8"), as_number(2), as_number("Level 3"), as_number("nan"), as_number(True)
    (0.375, 2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    numerator, slash, denominator = str(value).partition("/") if isinstance(value, str) else (value, "", "")
    try:
        number = float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ArithmeticError):
        return None
    return number if math.isfinite(number) else None
