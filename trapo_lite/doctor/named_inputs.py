"""Judge whether the model and the data of a configuration can be read from a folder, the cache or the hub."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from trapo_lite.config import Config, DataSection
from trapo_lite.config.paths import check_paths
from trapo_lite.core.errors import TrapoLiteError
from trapo_lite.core.in_words import counted
from trapo_lite.data.loading import read_examples
from trapo_lite.data.tally import Tally
from trapo_lite.data.template import check_prompt, open_turn_warnings
from trapo_lite.data.tokens import load_tokenizer
from trapo_lite.doctor.facts import Facts
from trapo_lite.doctor.findings import Finding
from trapo_lite.doctor.hub import HubAnswers, hub_names
from trapo_lite.model.base import check_weight_files
from trapo_lite.model.saved_adapter import check_start
from trapo_lite.reward.start_check import require_loadable
from trapo_lite.run.loggers import check_loggers

READING_SECONDS = 10.0
DAMAGE = (
    TrapoLiteError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    ArithmeticError,
    RuntimeError,
)
"""The errors from reading a damaged config.json, adapter or data file, in this code or a library."""


def finding_of(check: str, error: Exception) -> Finding:
    """Return the finding for an error of the form `where: what; what to do`."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, TrapoLiteError):
        return Finding("error", check, f"{type(error).__name__}: {text}", "the file is damaged: replace it")
    found, _, cure = text.rpartition("; ")
    return Finding("error", check, found or text, cure if found else "")


def check_named_paths(config: Config) -> list[Finding]:
    """Return the errors in local files and folders that the configuration names."""
    try:
        check_loggers(config)
        check_paths(config)
        if config.lora.init_from is not None:
            check_start(config.lora)
    except DAMAGE as error:
        return [finding_of("paths", error)]
    return []


def check_own_functions(config: Config) -> Iterator[Finding]:
    """Yield whether the reward functions of the user's can be loaded, which starts their processes."""
    own = config.reward.own_functions
    if not own:
        return
    try:
        require_loadable(config.reward)
    except TrapoLiteError as error:
        yield finding_of("rewards", error)
    else:
        yield Finding("ok", "rewards", f"{', '.join(function.path for function in own)}: can be loaded")


def check_hub(config: Config, facts: Facts, answers: HubAnswers) -> tuple[Path | None, list[Finding]]:
    """Return the folder of the model's config.json (None: unavailable), and findings on what comes from the hub.

    answers: the result of `hub.ask`
    """
    model = Path(config.model.name)
    folder, findings = (model if model.is_dir() else None), []
    for name, (is_there, text) in answers.items():
        if is_there and name.kind == "model":
            folder = Path(text).parent
        if is_there:
            where = "in the cache" if facts.is_offline else "on the hub"
            findings.append(Finding("ok", name.kind, f"{name.id}: {where}"))
        else:
            cure = "check the id, the network and, for a gated one, your login (hf auth login), or give a local folder"
            if facts.is_offline:
                cure = "unset HF_HUB_OFFLINE for a download, or give a local folder"
            findings.append(Finding("error", name.kind, f"{name.id} cannot be read: {text}", cure))
    if facts.is_offline:
        for name in hub_names(config):
            if name.kind == "data":
                found = f"{name.id}: HF_HUB_OFFLINE is set, so it must be in the cache already"
                findings.append(Finding("warning", "data", found, "unset it for a download, or give a local file"))
    return folder, findings


def check_data(config: Config, *, limit_s: float = READING_SECONDS) -> Iterator[Finding]:
    """Yield whether the rows of each local file can be read as a run reads them. It stops reading after limit_s."""
    train = config.data.train if isinstance(config.data.train, list) else [config.data.train]
    eval_data = [config.eval.data] if config.eval.every > 0 and config.eval.data is not None else []
    deadline = time.perf_counter() + limit_s
    for source in [*train, *eval_data]:
        if not Path(source).expanduser().is_file():
            continue
        data = config.data.model_copy(update={"train": source}) if source in train else config.data
        try:
            yield _check_rows(source, data, config, deadline=deadline)
        except DAMAGE as error:
            yield finding_of("data", error)


def _check_rows(source: str, data: DataSection, config: Config, *, deadline: float) -> Finding:
    tally, num_good, is_whole = Tally(skip_bad_rows=data.on_bad_row == "skip"), 0, True
    for _ in read_examples([source], data, tally, config.reward):
        num_good += 1
        if time.perf_counter() > deadline:
            is_whole = False
            break
    tally.require_good_rows()
    if num_good == 0:
        reasons = f" ({tally.reasons()})" if tally.rows else ""
        found = f"{source}: none of its {counted(tally.num_rows, 'row')} can be used{reasons}"
        return Finding("error", "data", found, "give rows with problem and answer (docs/data.md)")
    rows = counted(tally.num_rows, "row")
    if tally.rows:
        found = f"{source}: {tally.rows.total()} of {rows} are skipped ({tally.reasons()})"
        return Finding("warning", "data", found, "correct them, or see the data report for which they are")
    return Finding("ok", "data", f"{source}: {rows} can be read" + ("" if is_whole else ", others were not tried"))


def check_prompt_and_weights(config: Config) -> Iterator[Finding]:
    """Yield what keeps a run from starting on a local model's folder: tokenizer, template or damaged weights."""
    check = "weights"
    try:
        check_weight_files(config.model.name)
        check = "prompt"
        tokenizer = load_tokenizer(config.model.name)
        yield Finding(
            "ok", check, check_prompt(config.data, tokenizer, model=config.model.name).removeprefix("prompt: ")
        )
        for line in open_turn_warnings(config.data, tokenizer):
            found, _, cure = line.removeprefix("warning: ").rpartition("; ")
            yield Finding("warning", check, found, cure)
    except DAMAGE as error:
        yield finding_of(check, error)


def check_model_files(folder: Path, *, needs_weights: bool) -> Iterator[Finding]:
    """Yield what a model's folder lacks. needs_weights: False if the weights will be downloaded."""
    if not needs_weights:
        return
    missing = missing_files(folder)
    if missing:
        yield Finding("error", "model", f"{folder} lacks {missing}", "copy it there, or name another model")
    else:
        yield Finding("ok", "model", f"{folder}: config, tokenizer and weights are there")


def missing_files(folder: Path) -> str | None:
    """Return which weights or tokenizer files are missing or unreadable, or None if all are there.

    Only names and the JSON of small files are read. Weights are read when they are loaded.
    """
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            try:
                shards = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return f"a readable {index}"
            absent = sorted(str(shard) for shard in shards if not (folder / str(shard)).is_file())
            if absent:
                return f"{len(absent)} of {len(shards)} weight files ({absent[0]}, ...)"
            break
    else:
        if not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
            return "weights (model.safetensors)"
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return "a tokenizer (tokenizer.json)"
    try:
        if (folder / "tokenizer.json").is_file():
            json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "a readable tokenizer.json"
    return None
