"""Answers on disk while they are drawn: an evaluation that was killed goes on with the problems it has not finished.

DIR/NAME.partial.jsonl   what the answers are of, then every answer, a problem at a time, as problems are completed;
                         finished results of other settings beside it stay until it is complete
DIR/NAME.jsonl           all answers, in the order of problems and samples, once there are no more to draw
DIR/NAME.json            the numbers made of them
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

SAID = {  # of what only a fingerprint is kept
    "weights": "of other weights than model.name has now",
    "adapter_weights": "of another adapter",
    "fingerprint": "to other problems than the file holds now",
    "prompts": "to other prompts (data.prompt_template, the tokenizer)",
}


class AnswerLog:
    """The answers to one set of problems.

    described:   all that decides what is drawn, and graded how; other answers are not mixed in
    noted:       also goes into NAME.json, whatever it was before
    problem_ids: in their order;  num_samples: of each
    ConfigError where the folder holds answers of something else, unless `restart` says to forget them.
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
        found, begun = ({}, []) if restart else self._read_partial()
        finished = read_summary(self.summary_file) if self.summary_file.exists() and not restart else None
        is_asked_for = finished is not None and self._differs_in(finished) is None
        goes_on = bool(begun) and (self._differs_in(found) is None or not is_asked_for)
        if goes_on:
            self._require_same(self.partial_file, found)
            self._take(begun)
        elif finished is not None:
            self._require_same(self.summary_file, finished)
            self._take(read_answers(self.answers_file, num=len(self._ids) * num_samples))
        self._is_finished = finished is not None and not goes_on
        self._begun_by = found.get("environment") if goes_on else None
        if not self._is_finished:
            self._begin()

    @property
    def is_complete(self) -> bool:
        return len(self._groups) == len(self._ids)

    @property
    def code_changes(self) -> list[str]:
        """Return what differs between code and versions that began an unfinished evaluation and those of now.

        Both are read from `environment` in `noted`.
        """
        then, now = self._begun_by, self._noted.get("environment")
        return changes(then, now) if is_environment(then) and is_environment(now) else []

    @property
    def done(self) -> frozenset[str]:
        """Ids of the problems whose answers are all there."""
        return frozenset(self._groups)

    def append(self, group: Sequence[Answer]) -> None:
        """One problem's answers, in one write: a kill leaves all of them or a piece that is dropped. Once is enough."""
        if group[0].problem_id in self._groups:
            return
        self._take(group)
        with errors_named(self.partial_file), self.partial_file.open("a", encoding="utf-8") as file:
            file.write(_lines(group))

    def finish(self, *, seed: int) -> EvalResult:
        """What all answers come to, in the order of the problems; unless that is done, the answers are put in order and
        the numbers beside them: answers first, so that numbers never stand alone or beside others."""
        result = EvalResult(tuple(self._groups[one] for one in self._ids), seed)
        if not self._is_finished:
            self.summary_file.unlink(missing_ok=True)
            replace_text(self.answers_file, _lines(result.answers))
            summary = {**self._noted, **self._described, **result.summary(), "answers": self.answers_file.name}
            replace_text(self.summary_file, _to_json(summary))
            self.partial_file.unlink(missing_ok=True)
            self._is_finished = True
        return result

    def _read_partial(self) -> tuple[dict[str, Any], list[Answer]]:
        """(what the answers are of, whole lines) of an evaluation that was not finished."""
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
                f"{self.partial_file}: a line cannot be read ({error}); give --restart to draw anew"
            ) from None

    def _begin(self) -> None:
        """Write what was kept again: a line that was cut off must not run into the next one."""
        head = json.dumps({**self._noted, **self._described}, ensure_ascii=False) + "\n"
        kept = [answer for group in self._groups.values() for answer in group]
        replace_text(self.partial_file, head + _lines(kept))

    def _take(self, answers: Sequence[Answer]) -> None:
        """Keep the problems that are complete."""
        found: dict[str, list[Answer]] = {}
        for answer in answers:
            found.setdefault(answer.problem_id, []).append(answer)
        for problem_id, group in found.items():
            if problem_id in self._ids and len(group) == self._num_samples:
                self._groups[problem_id] = tuple(sorted(group, key=lambda answer: answer.sample))

    def _differs_in(self, found: Mapping[str, Any]) -> str | None:
        return next((key for key, wanted in self._described.items() if found.get(key) != wanted), None)

    def _require_same(self, file: Path, found: Mapping[str, Any]) -> None:
        key = self._differs_in(found)
        if key is not None:
            what = SAID.get(key, f"with {key} {found.get(key)!r}, now it is {self._described[key]!r}")
            regrade = f", --regrade {file.parent} to grade them again" if key == "verifier" else ""
            raise ConfigError(
                f"{file}: holds answers {what}; choose another --out{regrade}, or give --restart to draw them again"
            )


def result_of(answers: Sequence[Answer], seed: int) -> EvalResult:
    """Of answers in the order of their problems."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.problem_id, []).append(answer)
    return EvalResult(tuple(map(tuple, groups.values())), seed)


def result_files(folder: Path) -> list[Path]:
    """Each NAME.json of results, whether or not its answers are still beside it."""

    def is_one(file: Path) -> bool:
        if file.with_suffix(".jsonl").is_file():
            return True
        try:
            return read_object(file).get("answers") == f"{file.stem}.jsonl"
        except (OSError, ValueError):
            return False

    return list(filter(is_one, sorted(folder.glob("*.json"))))


def read_answers(file: Path, *, num: int | None = None) -> list[Answer]:
    """All lines of NAME.jsonl. DataError for a file that is missing, changed by hand, or has not `num` answers."""
    try:
        answers = [Answer.from_row(json.loads(line)) for line in _whole_lines(file)]
        if num is not None and len(answers) != num:
            raise ValueError(f"{len(answers)} answers, {num} were drawn")
        return answers
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file}: cannot be used ({error}); give the evaluation's command again, with --restart"
        ) from None


def _to_json(summary: Mapping[str, Any]) -> str:
    return json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _lines(answers: Sequence[Answer]) -> str:
    return "".join(json.dumps(answer.to_row(), ensure_ascii=False) + "\n" for answer in answers)


def _whole_lines(file: Path) -> list[str]:
    """Not by `splitlines`, to which a line may end inside a text."""
    return file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def read_summary(file: Path) -> dict[str, Any]:
    try:
        found = read_object(file)
        for name in ("num_problems", "num_samples", "seed"):
            if type(found.get(name)) is not int or found[name] < 0:
                raise ValueError(f"{name}: found {found.get(name)!r:.60}")
        return found
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read ({error}); give the evaluation's command again, with --restart"
        ) from None
