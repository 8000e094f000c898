"""Compare the results of several evaluations in one table, with intervals and paired tests."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from trapo_lite.config.fields import Section
from trapo_lite.core.errors import ConfigError
from trapo_lite.evaluation import scores
from trapo_lite.evaluation.answer_store import read_answers, read_summary, result_files, result_of
from trapo_lite.evaluation.results import EvalResult
from trapo_lite.run.calling import command
from trapo_lite.run.files import replace_text

PUBLISHED = Path(__file__).with_name("published.yaml")
"""Scores of the literature; `compare` takes them with --published."""
PAPER_SETS = ("aime24", "amc", "math500", "minerva", "olympiad")
AVERAGE = "avg"
SAME_PROBLEMS = ("fingerprint", "num_problems")
SAME_DRAWING = ("prompts", "temperature", "top_p", "top_k", "max_response_tokens", "stop_ids", "num_samples", "seed")
SAME_ENGINE = ("engine", "dtype", "quantize")
SAME_GRADING = ("require_box", "verifier")
SAME = (*SAME_PROBLEMS, *SAME_DRAWING, *SAME_ENGINE, *SAME_GRADING)


@dataclass(frozen=True)
class Score:
    """A Score is the result on one set of problems under one run. summary: the content of NAME.json."""

    summary: dict[str, Any]
    result: EvalResult


@dataclass(frozen=True)
class ResultRow:
    """Hold one row of results. name: folder of the results;  scores: by name of the set."""

    name: str
    scores: dict[str, Score]

    def average(self) -> tuple[float, tuple[float, float]] | None:
        """Return the mean accuracy over the paper's five sets and its interval, or None if one is incomplete."""
        paper_scores = [self.scores.get(name) for name in PAPER_SETS]
        results = [score.result for score in paper_scores if score is not None and not score.summary.get("is_part")]
        if len(results) < len(PAPER_SETS):
            return None
        accuracies = [result.accuracy for result in results]
        intervals = [result.interval_95 for result in results]
        return scores.mean(accuracies), scores.interval_of_mean(accuracies, intervals)


class PublishedRow(Section):
    """A PublishedRow is a row of published.yaml, in percent."""

    name: str
    source: str
    scores: dict[str, float]


def compare(folders: Sequence[Path], *, published: Path | None, out: Path | None) -> None:
    """Print the table and a paired test of every further row against the first, per set. Write both to `out`.

    Raises ConfigError for a folder without results or a damaged file of published rows.
    """
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ConfigError(f"--json {out}: {'is a folder' if out.is_dir() else 'its folder is not there'}; name a file")
    if out is not None and out.exists() and out.suffix != ".json":
        raise ConfigError(f"--json {out}: is there already and no .json file; name another file")
    for index, folder in enumerate(folders):
        if folder.resolve() in [earlier.resolve() for earlier in folders[:index]]:
            raise ConfigError(f"{folder}: is named twice; give each folder of results once")
    console = Console()
    rows = [row for folder in folders for row in read_rows(folder)]
    literature = [] if published is None else read_published(published)
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    table = _table(rows, literature, names)
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(width=max(console.width, needed)).print(table)  # a terminal's line may be shorter than the table
    sources = dict.fromkeys(row.source for row in literature)
    cited = [f"{'; '.join(row.name for row in literature if row.source == source)}: {source}" for source in sources]
    say = [*_parts(rows), *_differences_in_drawing(rows), *cited]
    tests = [test for row in rows[1:] for test in paired_tests(rows[0], row)]
    for line in [*say, *map(_spelt, tests)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        own = [
            {"name": row.name, "scores": {name: score.summary for name, score in row.scores.items()}} for row in rows
        ]
        contents = {"rows": own, "tests": tests, "published": [row.model_dump() for row in literature]}
        replace_text(out, json.dumps(contents, indent=1, ensure_ascii=False) + "\n", option="--json")


def read_rows(folder: Path) -> list[ResultRow]:
    """Return the results in a folder. Of a run's folder, return those of each evaluation, the base's first.

    The quickstart evaluates its base under the name `before`.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder; give an evaluation's folder, or a run that was evaluated")
    parent = folder / "eval" if (folder / "eval").is_dir() else folder
    evaluations = [path for path in parent.glob("*") if path.is_dir()]
    searched = [folder, *sorted(evaluations, key=lambda path: (path.name not in ("base", "before"), path.name))]
    rows = []
    for evaluation in searched:
        score_by_set = {}
        for file in result_files(evaluation):
            summary = read_summary(file)
            answers = read_answers(file.with_suffix(".jsonl"), num=summary["num_problems"] * summary["num_samples"])
            score_by_set[file.stem] = Score(summary, result_of(answers, summary["seed"]))
        if score_by_set:
            rows.append(ResultRow(str(evaluation), score_by_set))
    if not rows:
        unfinished = [str(file) for evaluation in searched for file in evaluation.glob("*.partial.jsonl")]
        if unfinished:
            raise ConfigError(f"{unfinished[0]}: is unfinished; give the command that began it again")
        raise ConfigError(
            f"{folder}: holds no results; evaluate first ({command('evaluate')}), or give an evaluation's folder"
        )
    return rows


def read_published(file: Path) -> list[PublishedRow]:
    try:
        return TypeAdapter(list[PublishedRow]).validate_python(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}; fix the file") from None


def paired_tests(first: ResultRow, second: ResultRow) -> list[dict[str, Any]]:
    """Test second minus first on each set that both hold with the same problems: difference, interval, p-value."""
    tests = []
    for name in _shared(first, second):
        ours, theirs = first.scores[name], second.scores[name]
        if any(ours.summary.get(key) != theirs.summary.get(key) for key in SAME_PROBLEMS):
            continue
        test = scores.paired_difference(
            ours.result.problem_accuracies, theirs.result.problem_accuracies, seed=ours.result.seed
        )
        tests.append(
            {
                "set": name,
                "first": first.name,
                "second": second.name,
                "difference": test.mean,
                "interval_95": list(test.interval_95),
                "p_value": test.p_value,
            }
        )
    return tests


def _shared(first: ResultRow, second: ResultRow) -> list[str]:
    """Return the names of the sets that both have, in order."""
    return [name for name in first.scores if name in second.scores]


def _table(rows: Sequence[ResultRow], literature: Sequence[PublishedRow], names: Sequence[str]) -> Table:
    table = Table("percent, 95 %", *map(partial(_title, rows), names), AVERAGE, box=box.SIMPLE)
    for row in rows:
        cells = [_cell(row.scores.get(name)) for name in names]
        average = row.average()
        table.add_row(escape(row.name), *cells, "" if average is None else _percent(*average))
    for published in literature:
        cells_of_row = [published.scores.get(name) for name in (*names, AVERAGE)]
        table.add_row(published.name, *("" if value is None else f"{value:.1f}" for value in cells_of_row), style="dim")
    return table


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    mark = "*" if score.summary.get("is_part") else ""
    return _percent(score.result.accuracy, score.result.interval_95, mark)


def _title(rows: Sequence[ResultRow], name: str) -> str:
    counts = sorted({row.scores[name].result.num_samples for row in rows if name in row.scores})
    problems = sorted({len(row.scores[name].result.groups) for row in rows if name in row.scores})
    return f"{name}\n{'/'.join(map(str, problems))} x {'/'.join(map(str, counts))}"


def _percent(value: float, interval: tuple[float, float], mark: str = "") -> str:
    return f"{100 * value:.1f}{mark}\n{100 * interval[0]:.1f}-{100 * interval[1]:.1f}"


def _parts(rows: Sequence[ResultRow]) -> list[str]:
    """Return a line for each score that is not of a whole set."""
    return [
        f"* {name} of {row.name}: {score.summary.get('benchmark', 'not the whole set')}"
        for row in rows
        for name, score in row.scores.items()
        if score.summary.get("is_part")
    ]


def _differences_in_drawing(rows: Sequence[ResultRow]) -> list[str]:
    """Return a line for each set on which two rows differ in their problems or in how answers were drawn."""
    lines = []
    for row in rows[1:]:
        if not _shared(rows[0], row):
            lines.append(f"warning: {row.name}: has no set of problems in common with {rows[0].name}")
        for name in _shared(rows[0], row):
            ours, theirs = rows[0].scores[name].summary, row.scores[name].summary
            keys = [key for key in SAME if ours.get(key) != theirs.get(key)]
            if keys:
                differences = ", ".join(f"{key} {_short(ours.get(key))} and {_short(theirs.get(key))}" for key in keys)
                untested = "; not tested against each other" if set(keys) & set(SAME_PROBLEMS) else ""
                lines.append(f"warning: {name}: {rows[0].name} and {row.name} differ in {differences}{untested}")
    return lines


def _short(value: Any) -> str:
    """Return a value as Python writes it, shortened if it is long.

    >>> print(_short("transformers"), _short("57f56d629a1c0ffee"))
    'transformers' '57f56d629a1c...'
    """
    return repr(value if len(str(value)) <= 15 else f"{str(value)[:12]}...")


def _spelt(test: dict[str, Any]) -> str:
    low, high = test["interval_95"]
    return (
        f"{test['set']}: {test['second']} - {test['first']}: {100 * test['difference']:+.1f} "
        f"({100 * low:+.1f} to {100 * high:+.1f}), p = {test['p_value']:.4f}"
    )
