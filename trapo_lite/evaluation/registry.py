"""Read benchmarks, whose scores are compared with other people's: their source, prompt form and size."""

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from trapo_lite.config.fields import PositiveInt, Section
from trapo_lite.config.paths import FILE_SUFFIXES, check_sources
from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.rows import read_example
from trapo_lite.data.sources import Row, read_rows
from trapo_lite.evaluation.multiple_choice import OptionColumns, choice_problem, column

MAX_MISTAKES_SHOWN = 5
Counts = Annotated[list[PositiveInt], Field(min_length=1)]


class Columns(Section):
    """Name the columns of a row's problem and gold answer, if the loader does not know them."""

    problem: str
    answer: str


class Benchmark(Section):
    """A Benchmark is one entry of benchmarks.yaml, which explains the keys."""

    title: str
    source: str
    num_problems: Counts
    num_samples: PositiveInt = 1
    template: str = "{problem}"
    columns: Columns | None = None
    options: OptionColumns | None = None

    @field_validator("num_problems", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return value if isinstance(value, list) else [value]

    @model_validator(mode="after")
    def _has_one_kind_of_columns(self) -> "Benchmark":
        if self.columns is not None and self.options is not None:
            raise ValueError("give columns, or for multiple choice options; not both")
        return self

    @field_validator("template")
    @classmethod
    def _has_slot(cls, value: str) -> str:
        if value.count("{problem}") != 1:
            raise ValueError("must contain {problem} exactly once; add it where the problem goes")
        return value


def load_registry(path: Path) -> dict[str, Benchmark]:
    """Return the benchmarks of a YAML file, by name. Raise ConfigError if the file is not a registry."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--registry {path}: {error.strerror}; name a file like trapo_lite/evaluation/benchmarks.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--registry {path}: not valid YAML: {error}; fix the file") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f"--registry {path}: holds no benchmarks; write NAME: {{title: ..., source: ..., num_problems: ...}}"
        )
    for name in content:
        if not re.fullmatch(r"\w[\w.-]*", str(name)):
            raise ConfigError(
                f"--registry {path}: found the name {name!r}; results are files of that name, so use letters"
            )
    try:
        return TypeAdapter(dict[str, Benchmark]).validate_python(content)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}; found {e['input']!r:.80}" for e in error.errors()]
        more = (
            [f"and {len(lines) - MAX_MISTAKES_SHOWN} more; is it a registry?"]
            if len(lines) > MAX_MISTAKES_SHOWN
            else []
        )
        raise ConfigError(f"--registry {path}: " + "\n".join(lines[:MAX_MISTAKES_SHOWN] + more)) from None


def choose(
    registry: dict[str, Benchmark], names: Sequence[str], *, option: str = "--benchmarks"
) -> dict[str, Benchmark]:
    """Return the benchmarks that `option` names, in that order. NAME=SOURCE reads one from another file or hub id.

    Raises ConfigError for unknown names, DataError for a missing file.
    """
    chosen: dict[str, Benchmark] = {}
    for text in names:
        name, equals, source = text.partition("=")
        if name not in registry:
            raise ConfigError(f"{option}: found {text!r}; {_hint(name, registry)}")
        if name in chosen:
            raise ConfigError(f"{option}: {name} is named twice; once will do")
        if equals and not source:
            raise ConfigError(f"{option}: {text!r} names no file; write {name}=FILE without blanks, or {name}")
        chosen[name] = registry[name].model_copy(update={"source": source}) if equals else registry[name]
        check_sources(chosen[name].source, option=f"{option} {name}:")
    return chosen


def _hint(name: str, registry: dict[str, Benchmark]) -> str:
    if "," in name:
        return f"separate names by blanks: {' '.join(part.strip() for part in name.split(','))}"
    near = difflib.get_close_matches(name.casefold(), registry, n=1)
    if near:
        return f"did you mean {near[0]}?"
    if not name or "/" in name or Path(name).suffix in FILE_SUFFIXES:
        return f"write NAME=FILE without blanks, where NAME is one of {', '.join(registry)}"
    return f"known are {', '.join(registry)}"


def read_benchmark(
    name: str, benchmark: Benchmark, *, allow_part: bool = False
) -> tuple[list[tuple[str, str]], int | None]:
    """Return (problem as it is put, gold answer) of each problem once, in order, and the size of the whole set.

    The size is None if these are all problems. The official evaluation files hold a problem once for every draw.
    Raises DataError for a row that cannot be read, and if the number of rows or of different problems is not the set's,
    because the score would be of another set. `allow_part` allows fewer.
    """
    pairs: dict[tuple[str, str], None] = {}
    num_rows = 0
    for row in read_rows(benchmark.source, name=name):
        num_rows += 1
        try:
            problem, gold = _question(row, benchmark)
        except BadRow as bad:
            raise DataError(f"data {row.where}: {bad}") from None
        pairs[benchmark.template.replace("{problem}", problem), gold] = None
    is_whole = bool({len(pairs), num_rows} & set(benchmark.num_problems))
    is_part = not is_whole and allow_part and len(pairs) < min(benchmark.num_problems)
    if not is_whole and not is_part:
        expected = " or ".join(f"{count:,}" for count in benchmark.num_problems)
        raise DataError(
            f"benchmark {name}: {benchmark.source} holds {len(pairs):,} different problems, {benchmark.title} has "
            f"{expected}; give the whole set"
            + (", or say --partial" if len(pairs) < min(benchmark.num_problems) else "")
        )
    return list(pairs), benchmark.num_problems[0] if is_part else None


def texts_fingerprint(texts: Sequence[object]) -> str:
    """Return a hash that identifies a set of problems, or of problems and golds."""
    return hashlib.sha256(repr(tuple(texts)).encode()).hexdigest()


def _question(row: Row, benchmark: Benchmark) -> tuple[str, str]:
    """Return (problem, gold). A row with `reward_model` is a training row, whatever columns the hub's set has."""
    if benchmark.columns is not None and "reward_model" not in row.fields and row.bad is None:
        named = benchmark.columns.model_dump()
        row = replace(row, fields={key: column(row.fields, name) for key, name in named.items()})
    if benchmark.options is None or "reward_model" in row.fields or row.bad is not None:
        example = read_example(row)
        return example.problem.strip(), example.answer
    return choice_problem(row.fields, benchmark.options)
