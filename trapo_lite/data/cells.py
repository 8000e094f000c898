"""Look up the values of a row by dotted paths, and check their types."""

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trapo_lite.data.bad_row import BadRow

MAX_DEPTH = 4  # levels of the paths that an error lists
MAX_LEVELS = 100  # of lists and objects inside of each other in a column; JSON and repr fail from some hundreds on


def lookup(fields: dict[str, Any], path: str) -> Any:
    """Return the value at "outer.inner", or None if a part is missing or null. A number is a place in a list.

    >>> row = {"extra": {"golds": ["a", "b"]}, "a.b": 1}
    >>> lookup(row, "extra.golds.-1"), lookup(row, "extra.golds.5"), lookup(row, "a.b"), lookup(row, "no.such")
    ('b', None, 1, None)

    Raises BadRow if a part is neither an object nor, for a number, a list.
    """
    if path in fields:
        return fields[path]
    value: Any = fields
    walked: list[str] = []
    for part in path.split("."):
        if value is None:
            return None
        if isinstance(value, dict):
            value = value.get(part)
        elif not is_place(part):
            raise wrong_type(value, ".".join(walked), "an object")
        elif isinstance(value, list):
            value = _item(value, int(part))
        else:
            raise wrong_type(value, ".".join(walked), "a list")
        walked.append(part)
    return value


def _item(values: list[Any], place: int) -> Any:
    return values[place] if -len(values) <= place < len(values) else None


def is_place(part: str) -> bool:
    """Return whether a part of a path is a place in a list: 0, 1, ..., or -1 for the last."""
    digits = part.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 10


def has_column(fields: dict[str, Any], path: str) -> bool:
    """Return whether the row has a value or null at the path. Lists differ in length, so any place in one is there.

    >>> has_column({"a": {"b": None}}, "a.b"), has_column({"a": None}, "a.b"), has_column({"a": {}}, "a.b")
    (True, True, False)
    """
    if path in fields:
        return True
    value: Any = fields
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and is_place(part):
            value = _item(value, int(part))
        else:
            return value is None
    return True


def require_column(fields: dict[str, Any], path: str, *, option: str) -> None:
    """Raise BadRow unless the row has the column that an option names."""
    if not has_column(fields, path):
        there = ", ".join(sorted(path for path, _ in leaf_paths(fields))) or "none, the row is empty"
        found = f"there is no column {path!r}; the row has {there}"
        near = difflib.get_close_matches(path, [path for path, _ in leaf_paths(fields)], n=1, cutoff=0.7)
        fix = f"did you mean {near[0]!r}?" if near else "name one of these; data.columns is about all sources"
        raise BadRow("no such column", field=option, found=found, fix=fix)


def first(fields: dict[str, Any], paths: Sequence[str]) -> tuple[str, Any]:
    """Return the first path that has a value, and that value. If all are empty, return the last one that is there."""
    present = ""
    for path in paths:
        value = lookup(fields, path)
        if value is not None:
            return path, value
        if path in fields or path.partition(".")[0] in fields:
            present = path
    return present, None


def require_shallow(fields: dict[str, Any]) -> None:
    """Raise BadRow if a column holds more than MAX_LEVELS lists and objects inside of each other."""
    for name, column in fields.items():
        level = [column]
        for _ in range(MAX_LEVELS + 1):
            level = [inner for value in level for inner in _inside(value)]
        if level:
            found = f"found more than {MAX_LEVELS} lists and objects inside of each other"
            raise BadRow("nested too deeply", field=name, found=found, fix="write the column with fewer levels")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()


def plain(value: Any) -> Any:
    """Return a cell as JSON can hold it: dates, bytes and other objects as text, NaN and infinity as null.

    >>> import datetime
    >>> plain({"day": datetime.date(2026, 1, 2), "sizes": (1, 2.5), "none": float("nan")})
    {'day': '2026-01-02', 'sizes': [1, 2.5], 'none': None}
    """
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def leaf_paths(fields: dict[str, Any], *, depth: int = MAX_DEPTH) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of each column that is not an object, those inside of objects included."""
    for name, value in fields.items():
        if isinstance(value, dict) and value and depth > 1:
            yield from ((f"{name}.{path}", inner) for path, inner in leaf_paths(value, depth=depth - 1))
        else:
            yield name, value


def require_list(value: Any, field: str) -> list[Any]:
    """Return the value; raise BadRow unless it is a list."""
    if not isinstance(value, list):
        raise wrong_type(value, field, "a list")
    return value


def require_text(value: Any, field: str) -> str:
    """Return the value; raise BadRow unless it is Unicode text."""
    if not isinstance(value, str):
        raise wrong_type(value, field, "text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"found half of a surrogate pair at character {error.start}"
        raise BadRow("not Unicode text", field=field, found=found, fix="write the text again as UTF-8") from None
    return value


def wrong_type(value: Any, field: str, wanted: str) -> BadRow:
    """Return the error for a value of another type."""
    return BadRow("wrong type", field=field, found=f"found {type(value).__name__} {value!r:.40}", fix=f"give {wanted}")
