"""Read what a run left in its folder, whatever of it is missing or damaged, without touching it."""

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
from trapo_lite.run.folder import RunFolder, step_folders
from trapo_lite.run.trend_warnings import TrendWarnings


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
    has_adapter: whether the run has ended
    """

    folder: Path
    name: str
    options: dict[str, Any]
    changed: dict[str, Any]
    starts: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    evaluations: list[Evaluated]
    warnings: list[str]
    missing: list[str]
    has_adapter: bool
    num_checkpoints: int = 0
    config: Config | None = field(default=None, repr=False)


def read_run(folder: Path) -> RunData:
    """Read a run's folder. Raise ConfigError if it is no run's."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; give a run's, such as runs/NAME")
    run = RunFolder(folder)
    if not any(path.exists() for path in (run.metrics_file, run.environment_file, folder / "config.yaml")):
        raise ConfigError(f"{folder}: holds no metrics.jsonl and no config.yaml, so it is no run's; give runs/NAME")
    missing: list[str] = []
    config, options = _configuration(folder / "config.yaml", missing)
    rows = read_metrics(run.metrics_file, missing)
    evaluations = _evaluations(folder / "eval", missing)
    starts = run.starts()
    if not starts:
        missing.append("environment.json is missing or damaged, so machine and versions are not known.")
    if not evaluations and not any("eval/accuracy" in row for row in rows):
        missing.append("Nothing was evaluated: there is no eval.every, and no evaluation of the run.")
    if not run.rollouts.is_dir():
        samples = config is None or config.algorithm.ever_samples
        missing.append("There are no rollouts" + ("." if samples else ", because the method samples nothing."))
    warnings = TrendWarnings()
    return RunData(
        folder=folder,
        name=folder.name,
        options=options,
        changed={} if config is None else _changed(options),
        starts=starts,
        rows=rows,
        evaluations=evaluations,
        warnings=[line for row in rows for line in warnings.after(row)],
        missing=missing,
        has_adapter=(folder / "adapter").is_dir(),
        num_checkpoints=len(step_folders(run.checkpoints)),
        config=config,
    )


def read_metrics(file: Path, missing: list[str]) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that can be read, by step; say in `missing` what cannot.

    A run may be writing the last line meanwhile: one without its end is left out silently.
    """
    if not file.exists():
        missing.append("metrics.jsonl is missing: no step is done yet, or the file was removed.")
        return []
    *lines, _unfinished = file.read_text(encoding="utf-8", errors="replace").split("\n")
    rows: dict[int, dict[str, Any]] = {}
    num_damaged = 0
    for line in lines:
        row = _object_of(line)
        if row is None or type(row.get("step")) is not int or row["step"] < 1:
            num_damaged += 1
        else:
            rows[row["step"]] = {key: value for key, value in row.items() if _is_number(value)}
    if num_damaged:
        missing.append(
            f"metrics.jsonl: {counted(num_damaged, 'line')} could not be read and {_are(num_damaged)} left out."
        )
    last = max(rows, default=0)
    if absent := last - len(rows):
        missing.append(f"metrics.jsonl: {counted(absent, 'step')} of the first {last} {_are(absent)} missing.")
    return [rows[step] for step in sorted(rows)]


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _object_of(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _configuration(file: Path, missing: list[str]) -> tuple[Config | None, dict[str, Any]]:
    """Return the configuration, and its options by name; of a file that is no configuration any more, what is in it."""
    if not file.exists():
        missing.append("config.yaml is missing, so the options are not known.")
        return None, {}
    try:
        config = load_config([str(file)])
    except TrapoLiteError:
        missing.append("config.yaml is damaged, or of another version: options are shown as they stand there.")
        try:
            raw = yaml.safe_load(file.read_text(encoding="utf-8", errors="replace"))
        except (yaml.YAMLError, RecursionError):
            raw = None
        return None, flat(raw) if isinstance(raw, Mapping) else {}
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
    found = []
    for file in sorted(path for part in folder.glob("*") if part.is_dir() for path in result_files(part)):
        try:
            summary = read_summary(file)
            num_answers = summary["num_problems"] * summary["num_samples"]
            result = result_of(read_answers(file.with_suffix(".jsonl"), num=num_answers), summary["seed"])
        except TrapoLiteError as error:
            missing.append(f"An evaluation cannot be read: {error}.")
            continue
        answers = result.answers
        found.append(
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
    first = ("base", "before")
    return sorted(found, key=lambda each: (each.folder not in first, each.folder, each.problems))
