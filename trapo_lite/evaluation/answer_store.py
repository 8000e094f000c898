"""Keep answers on disk while they are drawn, so that a killed evaluation resumes with its unfinished problems.

DIR/NAME.partial.jsonl   first the settings of the answers, then all answers of each problem once it is complete;
                         finished results of other settings beside it stay until it is complete
DIR/NAME.jsonl           all answers, in the order of problems and samples, once none is left to draw
DIR/NAME.json            the numbers computed from them
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trapo_lite.config.paths import read_object
from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.evaluation.results import Answer, EvalResult
from trapo_lite.run.environment import changes, is_environment
from trapo_lite.run.files import errors_named, replace_text

DESCRIPTION_BY_KEY = {  # descriptions of settings of which only a fingerprint is kept
    "weights": "of other weights than model.name has now",
    "adapter_weights": "of another adapter",
    "functions": "that another version of a reward function graded",
    "is_part": "to another number of the problems",
    "rewards": "that other reward.functions graded",
    "fingerprint": "to other problems than those given now",
    "prompts": "to other prompts (data.prompt_template, the tokenizer)",
}


class AnswerLog:
    """Keep the answers to one set of problems.

    described:   all settings that decide the draws and their grading; answers of other settings are not mixed in
    noted:       more entries for NAME.json; they may differ from an earlier run's
    problem_ids: in order;  num_samples: answers for each problem
    Raises ConfigError if the folder holds answers of other settings, unless `restart` says to discard them.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        described: Mapping[str, Any],
        noted: Mapping[str, Any] | None = None,
        problem_ids: Sequence[str],
        num_samples: int,
        restart: bool = False,
    ) -> None:
        self.summary_file, self.answers_file = folder / f"{name}.json", folder / f"{name}.jsonl"
        self.partial_file = folder / f"{name}.partial.jsonl"
        self._described, self._noted, self._num_samples = dict(described), dict(noted or {}), num_samples
        self._ids = dict.fromkeys(problem_ids)
        self._groups: dict[str, tuple[Answer, ...]] = {}
        settings, begun = ({}, []) if restart else self._read_partial()
        finished = read_summary(self.summary_file) if self.summary_file.exists() and not restart else None
        is_asked_for = finished is not None and self._differs_in(finished) is None
        is_resumed = bool(begun) and (self._differs_in(settings) is None or not is_asked_for)
        if is_resumed:
            self._require_same(self.partial_file, settings)
            self._take(begun)
        elif finished is not None:
            self._require_same(self.summary_file, finished)
            self._take(read_answers(self.answers_file, num=len(self._ids) * num_samples))
        self._is_finished = finished is not None and not is_resumed
        self._begun_by = settings.get("environment") if is_resumed else None
        if not self._is_finished:
            self._begin()

    @property
    def is_complete(self) -> bool:
        return len(self._groups) == len(self._ids)

    @property
    def code_changes(self) -> list[str]:
        """Return what code and versions changed since an unfinished evaluation was begun.

        Both are read from `environment` in `noted`.
        """
        then, now = self._begun_by, self._noted.get("environment")
        return changes(then, now) if is_environment(then) and is_environment(now) else []

    @property
    def done(self) -> frozenset[str]:
        """Return the ids of the problems whose answers are complete."""
        return frozenset(self._groups)

    def append(self, group: Sequence[Answer]) -> None:
        """Append one problem's answers in one write, once. After a kill all of them are kept or none."""
        if group[0].problem_id in self._groups:
            return
        self._take(group)
        with errors_named(self.partial_file), self.partial_file.open("a", encoding="utf-8") as file:
            file.write(to_lines(group))

    def finish(self, *, seed: int) -> EvalResult:
        """Return the result of all answers, in the order of the problems, and write it if that is not done.

        The answers are written before the numbers, so that numbers never stand without their answers.
        """
        result = EvalResult(tuple(self._groups[problem_id] for problem_id in self._ids), seed)
        if not self._is_finished:
            self.summary_file.unlink(missing_ok=True)
            replace_text(self.answers_file, to_lines(result.answers))
            summary = {**self._noted, **self._described, **result.summary(), "answers": self.answers_file.name}
            replace_text(self.summary_file, to_json(summary))
            self.partial_file.unlink(missing_ok=True)
            self._is_finished = True
        return result

    def _read_partial(self) -> tuple[dict[str, Any], list[Answer]]:
        """Return (settings of the answers, whole lines) of an unfinished evaluation."""
        if not self.partial_file.exists():
            return {}, []
        head, *lines = _whole_lines(self.partial_file) or ["{}"]
        try:
            described = json.loads(head)
            if not isinstance(described, dict):
                raise ValueError("the first one does not say what the answers are of")
            return described, [Answer.from_row(json.loads(line)) for line in lines]
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(
                f"{self.partial_file}: a line cannot be read ({error}); give --restart to draw again"
            ) from None

    def _begin(self) -> None:
        """Rewrite the kept answers, so that the next line does not continue one that was cut off."""
        head = json.dumps({**self._noted, **self._described}, ensure_ascii=False) + "\n"
        kept = [answer for group in self._groups.values() for answer in group]
        replace_text(self.partial_file, head + to_lines(kept))

    def _take(self, answers: Sequence[Answer]) -> None:
        """Keep the answers of the complete problems."""
        by_problem: dict[str, list[Answer]] = {}
        for answer in answers:
            by_problem.setdefault(answer.problem_id, []).append(answer)
        for problem_id, group in by_problem.items():
            if problem_id in self._ids and len(group) == self._num_samples:
                self._groups[problem_id] = tuple(sorted(group, key=lambda answer: answer.sample))

    def _differs_in(self, settings: Mapping[str, Any]) -> str | None:
        return next((key for key, wanted in self._described.items() if settings.get(key) != wanted), None)

    def _require_same(self, file: Path, settings: Mapping[str, Any]) -> None:
        key = self._differs_in(settings)
        if key is not None:
            values = f"with {key} {settings.get(key)!r}, now it is {self._described[key]!r}"
            regrade = f", --regrade {file.parent} to grade them again" if key == "verifier" else ""
            raise ConfigError(
                f"{file}: holds answers {DESCRIPTION_BY_KEY.get(key, values)}; choose another --out{regrade}, or give "
                "--restart to draw them again"
            )


def result_of(answers: Sequence[Answer], seed: int) -> EvalResult:
    """Return the result of answers, grouped by problem in the order of their first answers."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.problem_id, []).append(answer)
    return EvalResult(tuple(map(tuple, groups.values())), seed)


def result_files(folder: Path) -> list[Path]:
    """Return each NAME.json of results, whether or not its answers are still beside it."""

    def is_one(file: Path) -> bool:
        if file.with_suffix(".jsonl").is_file():
            return True
        try:
            return read_object(file).get("answers") == f"{file.stem}.jsonl"
        except (OSError, ValueError):
            return False

    return list(filter(is_one, sorted(folder.glob("*.json"))))


def read_answers(file: Path, *, num: int | None = None) -> list[Answer]:
    """Return all answers in NAME.jsonl. Raise DataError if it is missing, damaged or has not `num` answers."""
    try:
        answers = [Answer.from_row(json.loads(line)) for line in _whole_lines(file)]
        if num is not None and len(answers) != num:
            raise ValueError(f"{len(answers)} answers, {num} were drawn")
        return answers
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file}: cannot be used ({error}); give the evaluation's command again, with --restart"
        ) from None


def to_json(summary: Mapping[str, Any]) -> str:
    return json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_lines(answers: Sequence[Answer]) -> str:
    return "".join(json.dumps(answer.to_row(), ensure_ascii=False) + "\n" for answer in answers)


def _whole_lines(file: Path) -> list[str]:
    """Return the lines that end in a line feed. `splitlines` would also split inside a text."""
    return file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def read_summary(file: Path) -> dict[str, Any]:
    try:
        summary = read_object(file)
        for name in ("num_problems", "num_samples", "seed"):
            if type(summary.get(name)) is not int or summary[name] < 0:
                raise ValueError(f"{name}: found {summary.get(name)!r:.60}")
        return summary
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read ({error}); give the evaluation's command again, with --restart"
        ) from None
