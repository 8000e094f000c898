"""Read what a run left in its folder, whatever of it is missing or damaged."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trapo_lite.config import Config, load_config
from trapo_lite.core.errors import ConfigError, TrapoLiteError
from trapo_lite.core.in_words import counted
from trapo_lite.evaluation.answer_store import read_answers, read_summary, result_files, result_of
from trapo_lite.report.script_json import is_number, plain
from trapo_lite.run.folder import RunFolder
from trapo_lite.run.trend_warnings import TrendWarnings

BASES = ("base", "before")
"""Names under which a run's base is evaluated."""


@dataclass(frozen=True)
class Evaluated:
    """Evaluated is one evaluation of a run: folder of the results, set of problems, accuracy with its 95 % interval."""

    folder: str
    problems: str
    num_problems: int
    num_samples: int
    accuracy: float
    interval_95: tuple[float, float]
    truncated: float
    mean_tokens: float


@dataclass(frozen=True)
class RunData:
    """RunData is a run as its folder tells it.

    options:     option -> value, of the whole configuration
    changed:     those that differ from their defaults
    starts:      the entries of environment.json: machine, commit, versions
    rows:        the lines of metrics.jsonl
    warnings:    what the rows together warn of
    missing:     what is not there, is damaged or was left out, for the reader
    has_ended:   whether all its steps are done and the adapter is written
    """

    folder: Path
    options: dict[str, Any]
    changed: dict[str, Any]
    starts: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    evaluations: list[Evaluated]
    warnings: list[str]
    missing: list[str]
    has_ended: bool
    config: Config | None = field(default=None, repr=False)


def read_run(folder: Path) -> RunData:
    """Read a run's folder. Raise ConfigError if it is no run's."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise ConfigError(f"{folder}: {what}; give a run's folder, such as runs/NAME")
    run = RunFolder(folder)
    if not any(path.exists() for path in (run.metrics_file, run.environment_file, folder / "config.yaml")):
        raise ConfigError(f"{folder}: holds no metrics.jsonl and no config.yaml, so it is no run's; give runs/NAME")
    missing: list[str] = []
    config, options = _configuration(folder / "config.yaml", missing)
    rows = _metrics(run.metrics_file, missing)
    evaluations = _evaluations(folder / "eval", missing)
    starts = plain(run.starts())
    if not starts:
        missing.append("environment.json is missing or damaged, so machine and versions are not known.")
    if not evaluations and not any("eval/accuracy" in row for row in rows):
        missing.append("No evaluation of the run can be shown, and none during training.")
    if not run.rollouts.is_dir():
        samples = config is None or config.algorithm.ever_samples
        missing.append("There are no rollouts" + ("." if samples else ", because the method samples nothing."))
    warnings = TrendWarnings()
    done = rows[-1]["step"] if rows else 0
    return RunData(
        folder=folder,
        options=options,
        changed={} if config is None else _changed(options),
        starts=starts,
        rows=rows,
        evaluations=evaluations,
        warnings=[line for row in rows for line in warnings.after(row)],
        missing=missing,
        has_ended=(folder / "adapter").is_dir() and (config is None or done >= config.train.max_steps),
        config=config,
    )


def _text_of(file: Path, missing: list[str], *, otherwise: str) -> str | None:
    """Return a file's text, or None, and say what of it is missing, if there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        missing.append(f"{file.name} is missing: {otherwise}.")
    except OSError as error:
        missing.append(f"{file.name} cannot be read ({error.strerror}): {otherwise}.")
    return None


def _metrics(file: Path, missing: list[str]) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that can be read, by step; say in `missing` what cannot.

    A run may be writing the last line meanwhile: one without its end is left out silently. Values that are no finite
    number are taken as null.
    """
    text = _text_of(file, missing, otherwise="there are no curves")
    *lines, _unfinished = (text or "").split("\n")
    rows: dict[int, dict[str, Any]] = {}
    num_damaged = 0
    for line in lines:
        row = _object_of(line)
        if row is None or type(row.get("step")) is not int or not is_number(row["step"]) or row["step"] < 1:
            num_damaged += 1
        else:
            rows[row["step"]] = {name: value if is_number(value) else None for name, value in row.items()}
    if num_damaged:
        lost = f"{counted(num_damaged, 'line')} could not be read and {_are(num_damaged)} left out"
        missing.append(f"metrics.jsonl: {lost}.")
    last = max(rows, default=0)
    if absent := last - len(rows):
        missing.append(f"metrics.jsonl: {counted(absent, 'step')} of the first {last} {_are(absent)} missing.")
    return [rows[step] for step in sorted(rows)]


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _object_of(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _configuration(file: Path, missing: list[str]) -> tuple[Config | None, dict[str, Any]]:
    """Return the configuration, and its options by name; of a file that is no configuration any more, what is in it."""
    text = _text_of(file, missing, otherwise="the options are not known")
    if text is None:
        return None, {}
    try:
        config = load_config([str(file)])
    except TrapoLiteError:
        missing.append("config.yaml is damaged, or of another version: options are shown as they stand there.")
        try:
            raw = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError):
            raw = None
        return None, flat(plain(raw)) if isinstance(raw, dict) else {}
    return config, flat(yaml.safe_load(config.to_yaml()))


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options of nested sections by their names.

    >>> flat({"optim": {"lr": 0.1, "betas": [0.9, 0.99]}})
    {'optim.lr': 0.1, 'optim.betas': [0.9, 0.99]}
    """
    options: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        options |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return options


def _changed(options: Mapping[str, Any]) -> dict[str, Any]:
    defaults = flat(yaml.safe_load(Config().to_yaml()))
    return {name: value for name, value in options.items() if defaults.get(name) != value}


def _evaluations(folder: Path, missing: list[str]) -> list[Evaluated]:
    """Return the evaluations in a run's folder `eval`, the base's first."""
    evaluations = []
    for file in sorted(path for part in folder.glob("*") if part.is_dir() for path in result_files(part)):
        try:
            summary = read_summary(file)
            num_answers = summary["num_problems"] * summary["num_samples"]
            result = result_of(read_answers(file.with_suffix(".jsonl"), num=num_answers), summary["seed"])
        except (TrapoLiteError, OSError) as error:
            missing.append(f"An evaluation cannot be read: {error}.")
            continue
        if not (answers := result.answers):
            missing.append(f"The evaluation {file.parent.name}/{file.stem} has no answers.")
            continue
        evaluations.append(
            Evaluated(
                folder=file.parent.name,
                problems=file.stem,
                num_problems=len(result.groups),
                num_samples=result.num_samples,
                accuracy=result.accuracy,
                interval_95=result.interval_95,
                truncated=sum(answer.finish_reason == "length" for answer in answers) / len(answers),
                mean_tokens=sum(answer.num_tokens for answer in answers) / len(answers),
            )
        )
    return sorted(evaluations, key=lambda each: (each.folder not in BASES, each.folder, each.problems))
