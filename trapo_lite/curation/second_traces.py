"""Look up more traces of a training set's problems in a second source. A killed search is resumed."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from trapo_lite.config.data import DataColumns
from trapo_lite.core.errors import DataError
from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.forms import has_columns
from trapo_lite.data.rows import read_example
from trapo_lite.data.sources import read_rows
from trapo_lite.run.files import append_bytes, errors_named, replace_text

MAX_CANDIDATES = 3  # kept for each problem until one differs from the first trace


def matching_key(problem: str) -> str:
    """Return a key that is the same for problems that differ only in blanks and case."""
    return " ".join(problem.casefold().split())


def find_second_traces(
    source: str,
    columns: DataColumns | None,
    keys: set[str],
    file: Path,
    state: dict[str, Any],
    state_file: Path,
    say: Callable[[str], None],
) -> None:
    """Write the source's solutions of the problems, one line {key, solutions} for each problem.

    columns: of the rows that have all of these; others are read by the known names
    Raises DataError if no row can be read.
    """
    if state.get("second_done"):
        return
    say(f"looking for second traces in {source}")
    cut_to(file, state.get("second_bytes", 0))
    missing = keys - places_of(file).keys()
    num_read, num_bad = state.get("second_rows", 0), state.get("second_bad", 0)
    lines: list[bytes] = []

    def write_down() -> None:
        length = append_bytes(file, b"".join(lines))
        lines.clear()
        state.update({"second_rows": num_read, "second_bad": num_bad, "second_bytes": length})

    first_bad = ""
    for row in islice(read_rows(source), num_read, None):
        num_read += 1
        own = columns if columns is not None and has_columns(row.fields, columns) else None
        try:
            example = read_example(row, own, needs_answer=False)
        except BadRow as bad:
            num_bad += 1
            first_bad = first_bad or f"{row.where}: {bad}"
            continue
        key = matching_key(example.problem)
        if key in missing and example.solutions:
            missing.remove(key)
            line = {"key": key, "solutions": list(example.solutions[:MAX_CANDIDATES])}
            lines.append((json.dumps(line, ensure_ascii=False) + "\n").encode())
        if num_read % 1000 == 0:
            write_down()
            replace_text(state_file, json.dumps(state))
    if num_bad == num_read:
        raise DataError(f"--second {source}: none of its {num_read} rows can be read; the first: {first_bad}")
    write_down()
    state["second_done"] = True
    replace_text(state_file, json.dumps(state))


def places_of(file: Path) -> dict[str, int]:
    """Return the byte position of each key's line."""
    start_by_key = {}
    with file.open("rb") as lines:
        start = 0
        for line in lines:
            start_by_key[json.loads(line)["key"]] = start
            start += len(line)
    return start_by_key


def cut_to(file: Path, length: int) -> None:
    """Cut the file to `length`, because later lines are written again. Raise DataError if it is shorter."""
    with errors_named(file), file.open("ab") as opened:
        if opened.tell() < length:
            raise DataError(f"{file}: is shorter than {length} bytes; give --restart to start again")
        opened.truncate(length)
