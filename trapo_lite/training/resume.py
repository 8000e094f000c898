"""Find the newest undamaged checkpoint of a run, and check that the run may be resumed from it."""

import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trapo_lite.config import AlgorithmSection, Config
from trapo_lite.config.micro_groups import MicroGroupSection
from trapo_lite.config.old_form import MATH_ALONE, YOUNGER_OPTIONS, translated
from trapo_lite.config.rewards import without_folder
from trapo_lite.core.errors import CheckpointError
from trapo_lite.core.in_words import counted
from trapo_lite.model.base import model_config, weights_fingerprint
from trapo_lite.reward.fingerprints import function_fingerprints
from trapo_lite.run import device, environment
from trapo_lite.run.environment import this_environment
from trapo_lite.run.folder import RunFolder
from trapo_lite.run.processes import Ranks
from trapo_lite.training.checkpoint import Checkpoint, find_checkpoint, rename_newer_than

DESCRIPTIONS = {
    "configuration": "another configuration",
    "model": "another model",
    "prompt": "another prompt or end of answers",
    "data": "other data",
    "processes": "another number of processes",
}
MAX_SHOWN = 60  # characters of a value in a message

# Keys that may differ when a run is resumed: they decide how long, how often and where, not what is computed. Of model
# and data the content is compared, so they may have moved.
MAY_CHANGE = {
    "model": {"name"},
    "data": {"train"},
    "lora": {"init_from"},  # a checkpoint holds what became of it
    "train": {"max_steps", "save_every", "keep_checkpoints", "check_packing", "check_memory"},
    "eval": {"every", "data", "num_problems", "num_samples", "temperature", "max_response_tokens"},
    "rollout": {"mismatch_alarm", "servers", "server_adapter_dir", "base_tolerance"},
    "run": {"dir", "name", "trackers", "project"},
}

# Keys that change results only by rounding: they may differ too, unless run.deterministic is on.
MAY_CHANGE_INEXACTLY = {
    "model": {"gradient_checkpointing", "attention", "layout", "offload_activations"},
    "rollout": {"schedule", "colocate", "gpu_memory_fraction", "max_num_seqs", "kv_cache_gib", "num_threads"},
    "reward": {"num_workers", "memory_mb"},
    "train": {"tokens_per_batch"},
    "run": {"deterministic", "num_threads"},  # deterministic may be turned off, not on
}

NOT_OF_THE_MODEL = ("transformers_version", "_name_or_path")  # fields of a model's config


def run_identity(
    config: Config, *, prompt: Mapping[str, Any], data_fingerprint: str, num_processes: int
) -> dict[str, Any]:
    """Return what a run must keep, as JSON values.

    This is the configuration except MAY_CHANGE, base, prompt, data and number of processes.
    """
    resolved = config.model_dump(mode="json")
    if config.optim.scheduler != "constant":
        resolved["optim"]["max_steps"] = config.train.max_steps
    for section in ("rollout", "run"):  # only deterministic runs compare them, where no number means one thread
        resolved[section]["num_threads"] = resolved[section]["num_threads"] or 1
    for section, keys in MAY_CHANGE.items():
        for key in keys:
            del resolved[section][key]
    base = model_config(config.model).to_dict()
    for name in NOT_OF_THE_MODEL:
        base.pop(name, None)
    return {
        "configuration": _flat(resolved),
        "model": {key: str(value) for key, value in sorted(base.items())}
        | {"weights": weights_fingerprint(config.model.name)},
        "prompt": dict(prompt),
        "data": data_fingerprint,
        "processes": num_processes,
    }


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a map from section.key to the value.

    Parts of the algorithm become section.key.parameter, reward functions reward.functions[0].key.
    """
    flat: dict[str, Any] = {}
    for section, values in sections.items():
        for key, value in values.items():
            if section == "algorithm" and isinstance(value, Mapping):
                flat |= {f"{section}.{key}.{parameter}": part for parameter, part in value.items()}
            else:
                flat[f"{section}.{key}"] = value
    return flat | _functions_by_key(flat.pop("reward.functions", []))


def _functions_by_key(functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parameters of all reward functions. Of a path only the name counts, so that the file may have moved.

    >>> _functions_by_key([{"type": "function", "path": "mine/rewards.py:score"}])
    {'reward.functions[0].type': 'function', 'reward.functions[0].path': 'rewards.py:score'}
    """
    return {
        f"reward.functions[{index}].{key}": value
        for index, function in enumerate(functions)
        for key, value in without_folder(function).items()
    }


def _in_todays_form(recorded: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a checkpoint's configuration in the form that `run_identity` has now (config/old_form.py)."""
    schedule = recorded.get("algorithm.schedule")
    if isinstance(schedule, list):  # micro-groups have got more keys
        of_today = [MicroGroupSection(**group).model_dump(mode="json") for group in schedule]
        recorded = {**recorded, "algorithm.schedule": of_today}
    if "algorithm.prefix_loss" not in recorded:
        return recorded
    sections: dict[str, dict[str, Any]] = {}
    for name, value in recorded.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    sections = translated(sections)
    return _flat(sections | {"algorithm": AlgorithmSection(**sections["algorithm"]).model_dump(mode="json")})


def may_differ(config: Config) -> frozenset[str]:
    """Return the keys of `run_identity`'s configuration that a resumed run may change, or that have no effect."""
    idle = {f"{name}.{key}" for name, section in config for key in section.idle_keys()}
    changing = {} if config.run.deterministic else MAY_CHANGE_INEXACTLY
    return frozenset(idle | {f"{section}.{key}" for section, keys in changing.items() for key in keys})


def require_same(checkpoint: Checkpoint, expected: Mapping[str, Any], *, may_differ: Collection[str] = ()) -> None:
    """Raise CheckpointError, naming what differs, if a checkpoint has another model, data or configuration.

    may_differ: names inside a part of `expected` that are not compared, such as "rollout.schedule"
    """
    for key, now in expected.items():
        then = checkpoint.state.get(key)
        if key == "prompt" and then is None:  # an older checkpoint, whose data holds the prompts
            continue
        if key == "configuration" and isinstance(then, Mapping):
            younger = {name: value for name, value in YOUNGER_OPTIONS.items() if name in now}
            then = {**younger, **_in_todays_form(then)}
            if "reward.functions[0].type" in now and "reward.functions[0].type" not in then:
                then |= _functions_by_key(then.pop("reward.functions", MATH_ALONE))
            moved = {f"{section}.{name}" for section, names in MAY_CHANGE.items() for name in names}
            then = {name: value for name, value in then.items() if name not in moved}  # older ones record some
        if key == "model" and isinstance(then, Mapping):
            then = {name: value for name, value in then.items() if name not in NOT_OF_THE_MODEL}
        if then == now:
            continue
        if isinstance(then, Mapping) and isinstance(now, Mapping):
            differing = [name for name in {**then, **now} if then.get(name) != now.get(name) and name not in may_differ]
            if not differing:
                continue
            whole = dict.fromkeys(_whole_section(name, then, now) for name in differing)
            listed = ", ".join(f"{name}: {_then_now(_text_of(name, then), _text_of(name, now))}" for name in whole)
        else:
            listed = _then_now(repr(then), repr(now))
        if key == "data":
            listed = "rows without ids are named after their file, which must then keep its name"
        raise CheckpointError(
            f"{checkpoint.folder}: was made with {DESCRIPTIONS.get(key, key)} ({listed}); restore the old value, "
            "choose another run.name, or start again with --restart"
        )


def _whole_section(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the section that a key is in if one of both configurations has null in its place, or else the key."""
    parts = name.split(".")
    sections = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((section for section in sections if section in then or section in now), name)


def _text_of(name: str, values: Mapping[str, Any]) -> str:
    """Return a key's value as text, or of a section that is there only that it is."""
    is_section = any(key.startswith(f"{name}.") for key in values)
    return "given" if is_section else "not set" if values.get(name) is None else repr(values[name])


def compare_environments(
    checkpoint: Checkpoint, starts: Sequence[Mapping[str, Any]], now: Mapping[str, Any], *, is_exact: bool
) -> list[str]:
    """Return lines for the user if a checkpoint was made by other code or versions than `now`, or by unknown ones.

    starts:   the run's environment.json
    is_exact: whether run.deterministic is on; other versions then raise CheckpointError instead of giving a warning
    """
    then = next((start for start in reversed(starts) if start["after_step"] < checkpoint.step), None)
    if then is None:
        return [f"{checkpoint.folder}: no record of the code and versions that made it, so they were not compared"]
    changed = "; ".join(environment.changes(then, now))
    if changed and is_exact:
        raise CheckpointError(
            f"{checkpoint.folder}: was made by other code or versions ({changed}), and run.deterministic promises the "
            "same bits; restore the old versions, set run.deterministic=false from now on, or start again with "
            "--restart"
        )
    if not changed:
        return []
    return [
        f"warning: {checkpoint.folder}: was made by other code or versions ({changed}); the next steps use the current "
        "ones"
    ]


def _then_now(then: str, now: str) -> str:
    """Return both values, or only "differs" if they are long, such as a schedule."""
    return f"{then} then, {now} now" if max(len(then), len(now)) <= MAX_SHOWN else "differs"


@dataclass(frozen=True)
class StartPoint:
    """A StartPoint says where a run starts or resumes.

    checkpoint:  the checkpoint to resume from; None: start from step 0
    is_complete: whether all steps are done and the adapter is written
    identity:    the run's configuration, model, data and number of processes, for its next checkpoints
    notes:       lines for the user
    """

    checkpoint: Checkpoint | None
    is_complete: bool
    identity: dict[str, Any]
    notes: list[str]

    @property
    def had_rows(self) -> bool:
        """Return whether the rollouts of the run so far ran as rows in the end."""
        return self.checkpoint is not None and self.checkpoint.state.get("layout") == "rows"


def find_start_point(
    config: Config, folder: RunFolder, ranks: Ranks, *, prompt: Mapping[str, Any], data_fingerprint: str
) -> StartPoint:
    """Find where to resume, remove log lines of later steps, and record this start in environment.json.

    All ranks call it. Raises CheckpointError if the checkpoint has another model, data, configuration or number of
    processes. With run.deterministic, other code or versions raise it too.
    """
    checkpoint, notes = find_checkpoint(folder.checkpoints)
    is_complete = (
        checkpoint is not None
        and checkpoint.step >= config.train.max_steps
        and folder.holds_adapter_of(checkpoint.folder)
    )
    identity = run_identity(config, prompt=prompt, data_fingerprint=data_fingerprint, num_processes=ranks.count)
    environment = _environment(config)
    if checkpoint is not None:
        require_same(checkpoint, identity, may_differ=may_differ(config))
        if config.lora.init_from is not None:
            notes.append("lora.init_from: is not taken again, because the checkpoint holds what became of that adapter")
        if not is_complete:
            is_exact = config.run.deterministic
            notes += compare_environments(checkpoint, folder.starts(), environment, is_exact=is_exact)
    ranks.wait()  # all ranks have read the checkpoints before one is renamed
    if ranks.is_main:
        folder.mark.set()
        step = checkpoint.step if checkpoint else 0
        if not is_complete:
            folder.write_config(config)
        notes += folder.cut_back(step)
        rename_newer_than(folder.checkpoints, step)
        if not is_complete:
            machine = {"host": platform.node(), "device": device.name_of(ranks.device)}
            folder.add_start(environment, after_step=step, processes=ranks.count, **machine)
    return StartPoint(checkpoint, is_complete, identity, notes)


def _environment(config: Config) -> dict[str, Any]:
    """Return what environment.json records of the code that computes the run."""
    return this_environment() | {"functions": function_fingerprints(config.reward.own_functions)}


def earlier_run_lines(config: Config, *, prompt: Mapping[str, Any], data_fingerprint: str) -> list[str]:
    """Return lines on what a run of this name would begin with, without changing its folder.

    Raises CheckpointError as `find_start_point` does, but for another number of processes.
    """
    checkpoint, notes = find_checkpoint(config.run.folder / "checkpoints")
    if checkpoint is None:
        return notes
    num_processes = checkpoint.state.get("processes", 1)
    identity = run_identity(config, prompt=prompt, data_fingerprint=data_fingerprint, num_processes=num_processes)
    require_same(checkpoint, identity, may_differ=may_differ(config))
    if checkpoint.step >= config.train.max_steps:
        return [
            *notes,
            f"warning: {config.run.folder}: holds a run with {counted(checkpoint.step, 'step')} done, and "
            f"train.max_steps is {config.train.max_steps}; choose another run.name, raise train.max_steps, or give "
            "--restart",
        ]
    starts, is_exact = RunFolder(config.run.folder).starts(), config.run.deterministic
    notes += compare_environments(checkpoint, starts, _environment(config), is_exact=is_exact)
    return [
        *notes,
        f"{config.run.folder}: holds a run of these settings; it would be resumed after step {checkpoint.step}",
    ]
