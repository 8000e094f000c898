"""Grade the answers of an evaluation again by the rules of this version. Nothing is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trapo_lite.config import load_config
from trapo_lite.config.overrides import sets
from trapo_lite.core.errors import ConfigError
from trapo_lite.evaluation.answer_store import read_answers, read_summary, result_files, result_of, to_json, to_lines
from trapo_lite.evaluation.results import EvalResult
from trapo_lite.reward import MathVerifier
from trapo_lite.reward.fingerprints import verifier_fingerprint
from trapo_lite.run.files import lock, make_folder, replace_text


@dataclass(frozen=True)
class Regraded:
    """Hold the answers beside NAME.json with new verdicts, and the numbers computed from them."""

    summary_file: Path
    summary: dict[str, Any]
    result: EvalResult
    num_changed: int

    def write(self, folder: Path) -> None:
        """Write both files, under their old names."""
        replace_text(folder / self.summary_file.with_suffix(".jsonl").name, to_lines(self.result.answers))
        replace_text(folder / self.summary_file.name, to_json(self.summary))


def regrade(folder: Path, overrides: Sequence[str], *, out: Path | None = None) -> dict[str, EvalResult]:
    """Grade the answers in a folder of results again, by the current verifier.

    A box is required if it was before, unless an override says otherwise. out: for the new verdicts; None: replace the
    old ones. Raises ConfigError if the folder holds no answers, DataError if they cannot be read.
    """
    config = load_config(overrides=overrides)
    unused_override = next((text for text in overrides if not text.startswith("reward.")), None)
    if unused_override is not None:
        raise ConfigError(f"--regrade: samples nothing, so {unused_override} has no effect; leave it out")
    kept_rules = () if sets("reward.require_box", overrides) else ("require_box",)
    files = result_files(folder)
    if not files:
        raise ConfigError(f"--regrade {folder}: holds no NAME.json beside a NAME.jsonl; give a folder of results")
    if out is not None:
        taken = [file.name for file in files if (out / file.name).exists()]
        if taken:
            raise ConfigError(f"--out {out}: holds {taken[0]} already; choose another folder for the new verdicts")
        make_folder(out)
    regraded_sets: list[Regraded] = []
    with lock(out or folder, option="--regrade" if out is None else "--out"):
        for file in files:
            summary = read_summary(file)
            if "rewards" in summary:
                raise ConfigError(
                    f"--regrade {file}: was graded by reward.functions, whose rows are not kept with the answers; "
                    "evaluate again into another folder (--out)"
                )
            section = config.reward.model_copy(update={key: summary[key] for key in kept_rules if key in summary})
            rules = {"require_box": section.require_box, "verifier": verifier_fingerprint()}
            with MathVerifier.from_config(section) as verifier:
                regraded_sets.append(regraded(file, verifier, rules=rules))
        for regraded_set in regraded_sets:  # write all of them, or none if grading was interrupted
            regraded_set.write(out or folder)
            changed = f"{regraded_set.num_changed} of {len(regraded_set.result.answers)} verdicts changed"
            print(f"{regraded_set.summary_file.stem}: {regraded_set.result.accuracy:.3f}; {changed}")
    return {regraded_set.summary_file.stem: regraded_set.result for regraded_set in regraded_sets}


def regraded(summary_file: Path, verifier: MathVerifier, *, rules: Mapping[str, Any]) -> Regraded:
    """Return the answers beside NAME.json with new verdicts. rules: the verifier's entries. Nothing is written."""
    answers_file, summary = summary_file.with_suffix(".jsonl"), read_summary(summary_file)
    before = read_answers(answers_file, num=summary["num_problems"] * summary["num_samples"])
    verdicts = verifier.grade([(answer.completion, answer.gold) for answer in before])
    after = [
        replace(answer, verdict=verdict.kind, answer=verdict.answer, reward=float(verdict.is_correct))
        for answer, verdict in zip(before, verdicts, strict=True)
    ]
    result = result_of(after, summary["seed"])
    num_changed = sum(old.verdict != new.verdict for old, new in zip(before, after, strict=True))
    return Regraded(summary_file, {**summary, **rules, **result.summary()}, result, num_changed)
