"""Read rows as they are stored: parquet, JSON lines, a JSON array, CSV, or a data set of the hub."""

import contextlib
import csv
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trapo_lite.config.hub import hub_problem
from trapo_lite.config.paths import HUB_NAME, check_source
from trapo_lite.core.errors import DataError
from trapo_lite.data.bad_row import BadRow


@dataclass(frozen=True)
class Row:
    """A Row is one stored row. `where` names it in messages. `key` is an id made of file name and position."""

    where: str
    key: str
    fields: dict[str, Any]
    bad: BadRow | None = None
    """The reason why `fields` is empty: the line could not be read."""


def source_name(source: str) -> str:
    """Return the start of the ids of rows without an id: the stem of the file, or the name of the data set."""
    path = Path(source).expanduser()
    return path.stem if path.is_file() else re.split("[:@]", source)[0].split("/")[-1]


def read_rows(source: str, *, name: str | None = None) -> Iterator[Row]:
    """Yield the rows of one source, in its order. Their keys begin with `name` (default: the file's stem).

    source: a .parquet, .jsonl, .json or .csv file or a hub id, owner/name[@revision][:config][:split] (split: train).
    Raises DataError if the file is missing, empty or damaged, or if the hub does not give the data.
    """
    check_source(source)
    path = Path(source).expanduser()
    if not path.is_file():
        return _from_hub(source, name or source_name(source))
    name = name or source_name(source)
    if path.suffix == ".parquet":
        return _from_parquet(path, name)
    if path.suffix == ".csv":
        return _from_csv(path, name)
    with path.open("rb") as file:
        starts_array = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    return _from_array(path, name) if starts_array else _from_lines(path, name)


def _from_parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    index = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                yield Row(f"{path} row {index} (from 0)", f"{name}-{index}", fields)
                index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"data {path}: cannot be read as parquet after row {index}: {error}; write it again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"data {path}: text after row {index} is not UTF-8 ({error}); write it again") from None


def _from_lines(path: Path, name: str) -> Iterator[Row]:
    index = 0
    with path.open("rb") as file:
        for line_number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    fields, bad = _object(_parse_json(line.rstrip())), None
                except BadRow as error:
                    fields, bad = {}, error
                yield Row(f"{path} line {line_number}", f"{name}-{index}", fields, bad)
                index += 1


def _from_array(path: Path, name: str) -> Iterator[Row]:
    where = str(path)
    try:
        for index, value in enumerate(_parse_json(path.read_bytes())):
            where = f"{path} row {index} (from 0)"
            yield Row(where, f"{name}-{index}", _object(value))
    except BadRow as bad:
        raise DataError(f"data {where}: {bad}") from None


def _from_csv(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a CSV file, whose first line names the columns. A cell without text is None.

    A row with another number of cells is a bad row. After a broken quote nothing can be trusted, so that is an error.
    """
    csv.field_size_limit(sys.maxsize)  # an expert solution may be longer than the 131,072 characters of the default
    end = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = _header(next(reader, []), path)
            index, end = 0, reader.line_num
            for cells in reader:
                where, end = f"{path} line {end + 1}", reader.line_num
                if cells:
                    fields, bad = _cells_by_column(cells, header)
                    yield Row(where, f"{name}-{index}", fields, bad)
                    index += 1
    except csv.Error as error:
        raise DataError(
            f"data {path} line {end + 1}: the row that begins here is not CSV ({error}); put a text with commas, line "
            'breaks or quotes between quotes, and write each quote in it twice ("")'
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"data {path}: text after line {end} is not UTF-8 ({error}); save the file as UTF-8") from None


def _header(names: list[str], path: Path) -> list[str]:
    """Return the names of the columns; raise DataError if they cannot be the first line of a CSV file."""
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise DataError(f"data {path} line 1: found one column, {names[0]!r:.80}; separate the cells by commas")
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(f"data {path} line 1: column {number} has no name; name the columns in the first line")
        if name in names[: number - 1]:
            raise DataError(f"data {path} line 1: two columns are named {name!r}; give each its own name")
    return names


def _cells_by_column(cells: list[str], header: list[str]) -> tuple[dict[str, Any], BadRow | None]:
    if len(cells) != len(header):
        found = f"found {len(cells)} cells, the first line names {len(header)} columns"
        fix = "put a text with commas between quotes"
        return {}, BadRow("wrong number of cells", field="", found=found, fix=fix)
    return {column: cell or None for column, cell in zip(header, cells, strict=True)}, None


def _parse_json(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _no_object(f"not UTF-8 ({error})", "save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        position = f"character {error.pos + 1}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise _no_object(f"not JSON ({error.msg.removesuffix(' at')} at {position})", "fix or remove it") from None
    except (ValueError, RecursionError) as error:
        raise _no_object(f"not JSON ({error})", "fix or remove it") from None


def _object(value: Any) -> dict[str, Any]:
    """Return the fields of a row. A row that is a list of messages has one column, `conversations`."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return {"conversations": value}
    if not isinstance(value, dict):
        raise _no_object(f"holds a {type(value).__name__}", "write an object with problem and answer")
    return value


def _no_object(found: str, fix: str) -> BadRow:
    return BadRow("not a JSON object", field="", found=found, fix=fix)


def _from_hub(source: str, key: str) -> Iterator[Row]:
    match = HUB_NAME.fullmatch(source)
    assert match is not None
    name, config, split = match["id"], match["config"] or None, match["split"] or "train"
    import datasets
    from datasets.exceptions import DatasetsError

    def load() -> Any:
        return datasets.load_dataset(name, config, split=split, revision=match["revision"])

    is_reached = hub_problem() is None
    try:
        if is_reached:
            rows = load()
        else:
            with _offline():
                rows = load()
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if is_reached:
            reason = f"the hub did not give it: {error}"
        else:
            reason = "no such file, so it is taken for a hub id, but the hub cannot be reached, and the cache lacks it"
        raise DataError(
            f"data {source}: {reason}; check the id (owner/name:config:split), the network and, for a gated set, your "
            "login, or give a local file"
        ) from None
    for index, fields in enumerate(rows):
        yield Row(f"{source} row {index} (from 0)", f"{key}-{index}", dict(fields))


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Make the hub's libraries look in their caches only: they would ask again for 40 s and print each attempt."""
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before
