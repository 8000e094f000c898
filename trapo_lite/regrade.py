"""The regrading job: answers that were drawn before, graded by the verifier as it is now."""

from collections.abc import Sequence
from pathlib import Path

from trapo_lite.answer_log import Regraded, read_summary, regraded, result_files
from trapo_lite.config import ConfigError, load_config
from trapo_lite.config.loading import sets
from trapo_lite.evaluation import EvalResult
from trapo_lite.files import make_folder
from trapo_lite.identity import verifier_fingerprint
from trapo_lite.reward import MathVerifier
from trapo_lite.run_folder import lock


def regrade(folder: Path, overrides: Sequence[str], *, out: Path | None = None) -> dict[str, EvalResult]:
    """Grade the answers in a folder of results again, by the verifier as it is now; nothing is drawn.

    A box is required if it was, unless an override says otherwise. out: for the new verdicts; None: over the old ones.
    ConfigError where the folder holds none, DataError where they cannot be read.
    """
    config = load_config(overrides=overrides)
    other = next((text for text in overrides if not text.startswith("reward.")), None)
    if other is not None:
        raise ConfigError(f"--regrade: draws nothing, so {other} says nothing; leave it out")
    kept_rules = () if sets("reward.require_box", overrides) else ("require_box",)
    files = result_files(folder)
    if not files:
        raise ConfigError(f"--regrade {folder}: holds no NAME.json beside a NAME.jsonl; give a folder of results")
    if out is not None:
        taken = [file.name for file in files if (out / file.name).exists()]
        if taken:
            raise ConfigError(f"--out {out}: holds {taken[0]} already; choose another folder for the new verdicts")
        make_folder(out)
    found: list[Regraded] = []
    with lock(out or folder, option="--regrade" if out is None else "--out"):
        for file in files:
            summary = read_summary(file)
            section = config.reward.model_copy(update={key: summary[key] for key in kept_rules if key in summary})
            rules = {"require_box": section.require_box, "verifier": verifier_fingerprint()}
            with MathVerifier.from_config(section) as verifier:
                found.append(regraded(file, verifier, rules=rules))
        for one in found:  # all of them, or none where it was interrupted
            one.write(out or folder)
            changed = f"{one.num_changed} of {len(one.result.answers)} verdicts changed"
            print(f"{one.summary_file.stem}: {one.result.accuracy:.3f}; {changed}")
    return {one.summary_file.stem: one.result for one in found}
