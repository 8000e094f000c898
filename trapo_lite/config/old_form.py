"""Translate the flat keys of old configurations, in which parameters were not part of a type (choices.py).

A user's file in the old form is an error whose message gives the new form. A run folder in the old form can still be
resumed, evaluated and exported.
"""

from typing import Any

from trapo_lite.config import choices, plain_yaml
from trapo_lite.config.choice import by_name
from trapo_lite.config.stage import StageSection

# Maps an old key of the algorithm section to today's (key, parameter).
PARAMETERS = {
    "alpha": ("prefix_loss", "alpha"),
    "gamma": ("prefix_loss", "gamma"),
    "prefix_weight": ("prefix_loss", "weight"),
    "prefix_advantage": ("prefix_loss", "times_advantage"),
    "clip_low": ("completion_loss", "clip_low"),
    "clip_high": ("completion_loss", "clip_high"),
    "divide_by_std": ("advantage", "type"),
    "count_expert_in_baseline": ("baseline", "count_expert"),
    "normalizer_tokens": ("normalizer", "num_tokens"),
}
MOVED = ("tis_cap", "sequence_bound")  # keys that moved from rollout to algorithm
DEFAULT_TYPES = {"prefix_loss": "trust_region", "baseline": "group", "normalizer": "tokens"}
TRACKERS = ("tensorboard", "wandb_project")  # keys of run that run.trackers and run.project replace
NO_LONGER_AUTOMATIC = {"schedule": "pipelined", "merge": "never"}  # keys of rollout that could be "auto" -> value now

# Options that checkpoints of older versions do not record -> what these versions did.
YOUNGER_OPTIONS = {
    "algorithm.completion_loss.weight": 1.0,
    "algorithm.first_stage": None,
    "algorithm.prefix_instruction": StageSection.model_fields["prefix_instruction"].default,
    "algorithm.prefix_loss.top_entropy": None,
    "algorithm.utility.type": "none",
    "algorithm.teacher.type": "none",
    "data.answer_from": "column",
    "data.columns": None,
    "data.filter": {},
    "data.instruction": "",
    "data.shares": None,
    "data.template_options": {},
    "model.layout": "auto",
    "rollout.replace_uninformative": 0,
    "rollout.truncated": "graded",
}
MATH_ALONE = [{"type": "math", "name": None, "weight": 1.0}]  # the reward of all versions without reward.functions


def advice(raw: dict[str, Any]) -> list[str]:
    """Return lines that say what to write instead of the keys in the old form."""
    sections = {name: raw[name] for name in ("algorithm", "rollout") if isinstance(raw.get(name), dict)}
    old: dict[str, list[str]] = {}
    for key in PARAMETERS.keys() & sections.get("algorithm", {}).keys():
        old.setdefault(PARAMETERS[key][0], []).append(key)
    now = translated(raw).get("algorithm", {})
    lines = []
    for part, keys in sorted(old.items()):
        form = plain_yaml.in_one_line(now[part])
        lost = sorted(key for key in keys if PARAMETERS[key][1] not in now[part])
        note = f" ({now[part].get('type')} has no {', '.join(lost)})" if lost else ""
        lines.append(
            f"algorithm.{', algorithm.'.join(sorted(keys))}: {'are' if len(keys) > 1 else 'is'} part of "
            f'algorithm.{part} now; in a file write {part}: {form}; on the command line "algorithm.{part}={form}"{note}'
        )
    for key in MOVED:
        if key in sections.get("rollout", {}):
            lines.append(f"rollout.{key}: is algorithm.{key} now; move it there")
    for key, value in NO_LONGER_AUTOMATIC.items():
        if sections.get("rollout", {}).get(key) == "auto":
            lines.append(f"rollout.{key}: auto is no longer a choice; set rollout.{key} to {value} (docs/rollouts.md)")
    run = raw.get("run")
    if isinstance(run, dict) and (old_keys := [f"run.{key}" for key in TRACKERS if key in run]):
        now = {key: value for key, value in _with_trackers(run).items() if key in ("trackers", "project")}
        in_file = ", ".join(f"{key}: {plain_yaml.in_one_line(value)}" for key, value in now.items())
        on_line = " ".join(f'"run.{key}={plain_yaml.in_one_line(value)}"' for key, value in now.items())
        lines.append(
            f"{', '.join(old_keys)}: {'are' if len(old_keys) > 1 else 'is'} part of run.trackers now; in a file write "
            f"{in_file}; on the command line {on_line}"
        )
    return lines


def translated(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the sections in the new form; anything else is returned unchanged.

    >>> translated({"algorithm": {"prefix_loss": "trust_region", "alpha": 0.2}})
    {'algorithm': {'prefix_loss': {'type': 'trust_region', 'alpha': 0.2}}}
    """
    rollout, algorithm = raw.get("rollout"), raw.get("algorithm", {})
    if not isinstance(algorithm, dict):
        return raw
    sections = dict(raw)
    if isinstance(raw.get("run"), dict):
        sections["run"] = _with_trackers(raw["run"])
    if isinstance(rollout, dict):
        is_auto = {key: now for key, now in NO_LONGER_AUTOMATIC.items() if rollout.get(key) == "auto"}
        sections["rollout"] = {key: value for key, value in (rollout | is_auto).items() if key not in MOVED}
        algorithm = algorithm | {key: rollout[key] for key in MOVED if key in rollout}
    old = {key: value for key, value in algorithm.items() if key in PARAMETERS}
    algorithm = {key: value for key, value in algorithm.items() if key not in PARAMETERS}
    for key, parameters in _parts(old).items():
        given = by_name(algorithm.get(key, {}))
        part = {"type": DEFAULT_TYPES.get(key)} | (given if isinstance(given, dict) else {}) | parameters
        # Old runs also recorded parameters without effect.
        known = choices.FIELDS_BY_TYPE.get((key, str(part["type"])), part)
        algorithm[key] = {name: value for name, value in part.items() if name in known}
    if algorithm or "algorithm" in raw:
        sections["algorithm"] = algorithm
    return sections


def _with_trackers(run: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of section run with trackers and project in the place of the older keys.

    >>> _with_trackers({"seed": 1, "tensorboard": False, "wandb_project": "sums"})
    {'seed': 1, 'trackers': ['wandb'], 'project': 'sums'}
    """
    now = {key: value for key, value in run.items() if key not in TRACKERS}
    if len(now) == len(run):
        return run
    project = run.get("wandb_project")
    now["trackers"] = ["tensorboard"] if run.get("tensorboard", True) else []
    if project is not None:
        now |= {"trackers": [*now["trackers"], "wandb"], "project": project}
    return now


def _parts(old: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parameters of each part of the algorithm that the old keys stand for."""
    parts: dict[str, dict[str, Any]] = {}
    for old_key, value in old.items():
        key, parameter = PARAMETERS[old_key]
        parts.setdefault(key, {})[parameter] = value
    if "advantage" in parts:
        parts["advantage"]["type"] = "standardized" if parts["advantage"]["type"] else "centered"
    if parts.get("prefix_loss", {}).get("weight") == 0:
        parts["prefix_loss"]["type"] = "none"
    if "completion_loss" in parts:
        clips = any(value is not None for value in parts["completion_loss"].values())
        unclipped = {"type": "policy_gradient"}
        parts["completion_loss"] = (
            {"type": "ppo_clip", "clip_low": None, "clip_high": None} | parts["completion_loss"] if clips else unclipped
        )
    return parts
