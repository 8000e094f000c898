"""Find where a run resumes: its newest whole checkpoint, if that was made of what the run is made of now."""

import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trapo_lite.config import AlgorithmSection, Config
from trapo_lite.config.old_form import translated
from trapo_lite.core.errors import CheckpointError
from trapo_lite.model.base import model_config, weights_fingerprint
from trapo_lite.run import device, environment
from trapo_lite.run.environment import this_environment
from trapo_lite.run.folder import RunFolder
from trapo_lite.run.processes import Ranks
from trapo_lite.training.checkpoint import Checkpoint, find_checkpoint, set_aside_after

DESCRIPTIONS = {
    "configuration": "another configuration",
    "model": "another model",
    "data": "other data",
    "processes": "another number of processes",
}
MAX_SHOWN = 60  # characters of a value in a message

# What may differ when a run goes on: how long, how often and where, but not what is computed.
MAY_CHANGE = {
    "train": {"max_steps", "save_every", "keep_checkpoints", "check_packing", "check_memory"},
    "eval": {"every", "data", "num_problems", "num_samples", "temperature", "max_response_tokens"},
    "rollout": {"mismatch_alarm", "servers", "server_adapter_dir", "base_tolerance"},
    "run": {"dir", "name", "tensorboard", "wandb_project"},
}

# What moves results by rounding alone: it may differ too, unless bits were promised.
MAY_CHANGE_INEXACTLY = {
    "model": {"gradient_checkpointing", "attention", "offload_activations"},
    "rollout": {"schedule", "colocate", "gpu_memory_fraction", "max_num_seqs", "kv_cache_gib", "num_threads"},
    "reward": {"num_workers", "memory_mb"},
    "train": {"tokens_per_batch"},
    "run": {"deterministic"},  # the promise may be given up, not taken up
}


def run_identity(config: Config, *, data_fingerprint: str, num_processes: int) -> dict[str, Any]:
    """Configuration (without what may change), base model, data and number of processes, as JSON values."""
    resolved = config.model_dump(mode="json")
    if config.optim.scheduler != "constant":
        resolved["optim"]["max_steps"] = config.train.max_steps
    for section, keys in MAY_CHANGE.items():
        for key in keys:
            del resolved[section][key]
    base = model_config(config.model).to_dict()
    base.pop("transformers_version", None)
    return {
        "configuration": _flat(resolved),
        "model": {key: str(value) for key, value in sorted(base.items())}
        | {"weights": weights_fingerprint(config.model.name)},
        "data": data_fingerprint,
        "processes": num_processes,
    }


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return section.key -> value; parts of the algorithm, which have a type, by section.key.parameter."""
    flat: dict[str, Any] = {}
    for section, values in sections.items():
        for key, value in values.items():
            if section == "algorithm" and isinstance(value, Mapping):
                flat |= {f"{section}.{key}.{parameter}": part for parameter, part in value.items()}
            else:
                flat[f"{section}.{key}"] = value
    return flat


def _in_todays_form(recorded: Any) -> Any:
    """Return a checkpoint's configuration as `run_identity` writes it today (config/old_form.py)."""
    if not isinstance(recorded, Mapping) or "algorithm.prefix_loss" not in recorded:
        return recorded
    sections: dict[str, dict[str, Any]] = {}
    for name, value in recorded.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    sections = translated(sections)
    return _flat(sections | {"algorithm": AlgorithmSection(**sections["algorithm"]).model_dump(mode="json")})


def may_differ(config: Config) -> frozenset[str]:
    """Return the keys of `run_identity`'s configuration that a resumed run may change."""
    if config.run.deterministic:
        return frozenset()
    return frozenset(f"{section}.{key}" for section, keys in MAY_CHANGE_INEXACTLY.items() for key in keys)


def require_same(checkpoint: Checkpoint, expected: Mapping[str, Any], *, may_differ: Collection[str] = ()) -> None:
    """Refuse a checkpoint made of another model, data or configuration, naming what differs.

    may_differ: names inside a part of `expected` that are not compared, such as "rollout.schedule"
    """
    for key, value in expected.items():
        found = checkpoint.state.get(key)
        if key == "configuration":
            found = _in_todays_form(found)
        if found == value:
            continue
        if isinstance(found, Mapping) and isinstance(value, Mapping):
            differing = [
                name for name in {**found, **value} if found.get(name) != value.get(name) and name not in may_differ
            ]
            if not differing:
                continue
            listed = ", ".join(f"{name}: {_then_now(found.get(name), value.get(name))}" for name in differing)
        else:
            listed = _then_now(found, value)
        raise CheckpointError(
            f"{checkpoint.folder}: was made with {DESCRIPTIONS.get(key, key)} ({listed}); go back to what it was, "
            "choose another run.name, or start over with --restart"
        )


def compare_environments(
    checkpoint: Checkpoint, starts: Sequence[Mapping[str, Any]], now: Mapping[str, Any], *, is_exact: bool
) -> list[str]:
    """Return lines for people if a checkpoint was made by other code or versions than `now`, or by unknown ones.

    starts:   the run's environment.json
    is_exact: whether the run promises the same bits (run.deterministic); CheckpointError then instead of a warning
    """
    then = next((start for start in reversed(starts) if start["after_step"] < checkpoint.step), None)
    if then is None:
        return [f"{checkpoint.folder}: no record of the code and versions that made it, so they were not compared"]
    changed = "; ".join(environment.changes(then, now))
    if changed and is_exact:
        raise CheckpointError(
            f"{checkpoint.folder}: was made by other code or versions ({changed}), and run.deterministic promises the "
            "same bits; go back to what it was, set run.deterministic=false, or start over with --restart"
        )
    if not changed:
        return []
    return [
        f"WARNING: {checkpoint.folder}: was made by other code or versions ({changed}); the steps after it are made "
        "by what is here now"
    ]


def _then_now(then: Any, now: Any) -> str:
    """Long values, such as a schedule, are only said to differ."""
    texts = repr(then), repr(now)
    return f"{texts[0]} then, {texts[1]} now" if max(map(len, texts)) <= MAX_SHOWN else "differs"


@dataclass(frozen=True)
class StartPoint:
    """checkpoint:  to resume from; None where the run has none
    is_complete: whether all steps are done and their adapter is written
    identity:    what the run is made of, for its next checkpoints
    notes:       lines for people
    """

    checkpoint: Checkpoint | None
    is_complete: bool
    identity: dict[str, Any]
    notes: list[str]


def find_start_point(config: Config, folder: RunFolder, ranks: Ranks, *, data_fingerprint: str) -> StartPoint:
    """Find where to resume; lines of the run about later steps are forgotten, and this start is put on record.

    All ranks call it. CheckpointError for a checkpoint of another model, data, configuration or number of processes,
    and with run.deterministic for one that was made by other code or versions.
    """
    checkpoint, notes = find_checkpoint(folder.checkpoints)
    is_complete = (
        checkpoint is not None
        and checkpoint.step >= config.train.max_steps
        and folder.holds_adapter_of(checkpoint.folder)
    )
    identity = run_identity(config, data_fingerprint=data_fingerprint, num_processes=ranks.count)
    environment = this_environment()
    if checkpoint is not None:
        require_same(checkpoint, identity, may_differ=may_differ(config))
        if not is_complete:
            is_exact = config.run.deterministic
            notes += compare_environments(checkpoint, folder.starts(), environment, is_exact=is_exact)
    ranks.wait()  # until all have looked, before anything moves
    if ranks.is_main:
        step = checkpoint.step if checkpoint else 0
        if not is_complete:
            folder.write_config(config)
        notes += folder.cut_back(step)
        set_aside_after(folder.checkpoints, step)
        if not is_complete:
            place = {"host": platform.node(), "device": device.name_of(ranks.device)}
            folder.add_start(environment, after_step=step, processes=ranks.count, **place)
    return StartPoint(checkpoint, is_complete, identity, notes)
