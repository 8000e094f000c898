"""Checkpoints are written to a temporary folder, then renamed; they hold no pickle and are verified before use.

checkpoints/step-000123/   adapter_model.safetensors, adapter_config.json   the adapter in PEFT's format
                           optimizer.safetensors                            "parameter index.name" -> tensor
                           rng.safetensors                                  torch's generator state of every rank
                           state.json                                       step, configuration, model, data, processes
                           manifest.json                                    size and sha256 of each file above
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from trapo_lite.config.paths import read_object
from trapo_lite.core.errors import CheckpointError
from trapo_lite.model.policy import Policy
from trapo_lite.run.files import save_tensors
from trapo_lite.run.folder import step_folders, step_of_folder

MANIFEST = "manifest.json"
FILES = {"adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "rng.safetensors", "state.json"}


@dataclass(frozen=True)
class Checkpoint:
    """A Checkpoint is a verified checkpoint on disk; `state` is state.json, which has at least `step`."""

    folder: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


def save_checkpoint(
    checkpoints: Path,
    *,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rng_states: Sequence[Tensor],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write checkpoints/step-N with one final rename, then delete all but the newest `keep`.

    Raises CheckpointError if the disk is full or not writable; earlier checkpoints are unchanged then.
    """
    final = checkpoints / f"step-{state['step']:06d}"
    temporary = checkpoints / f".tmp-{final.name}"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        policy.adapter.save(temporary)
        save_tensors(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
        save_tensors({str(rank): state for rank, state in enumerate(rng_states)}, temporary / "rng.safetensors")
        _write_json(temporary / "state.json", state)
        _write_json(temporary / MANIFEST, {p.name: _fingerprint(p) for p in sorted(temporary.iterdir())})
        for path in temporary.iterdir():
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(checkpoints)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(
            f"{final}: could not be saved: {'the disk is full' if is_full else error}; earlier checkpoints are "
            "unchanged. Make room and run the same command again to resume"
        ) from error
    for old in step_folders(checkpoints)[:-keep]:
        shutil.rmtree(old)
    return final


def find_checkpoint(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is not damaged, and one message for each newer one, which is."""
    damaged = []
    for folder in reversed(step_folders(checkpoints)):
        problem = _damage(folder)
        if problem is None:
            return Checkpoint(folder, read_object(folder / "state.json")), damaged
        damaged.append(f"warning: {folder}: {problem}; trying the checkpoint before it")
    if damaged:
        damaged.append(f"warning: {checkpoints}: every checkpoint is damaged; starting again from step 0")
    return None, damaged


def rename_newer_than(checkpoints: Path, step: int) -> None:
    """Rename the checkpoints after `step`, which is resumed from: they are damaged and must not count as kept."""
    for folder in step_folders(checkpoints):
        if step_of_folder(folder) > step:
            damaged = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(damaged, ignore_errors=True)
            folder.rename(damaged)


def restore_checkpoint(checkpoint: Checkpoint, *, policy: Policy, optimizer: torch.optim.Optimizer, rank: int) -> None:
    """Restore adapter, optimizer state and this rank's random generator exactly."""
    policy.adapter.load_state(load_file(checkpoint.folder / "adapter_model.safetensors"))
    _load_optimizer(optimizer, load_file(checkpoint.folder / "optimizer.safetensors"))
    states = load_file(checkpoint.folder / "rng.safetensors")
    if str(rank) in states:
        torch.set_rng_state(states[str(rank)])


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as named tensors.

    The state of bitsandbytes has one more level, shared tensors, and its step count is a plain number.
    """
    tensors: dict[str, Tensor] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, dict):
                parts = {f"{index}.{name}.{key}": torch.as_tensor(part).clone() for key, part in value.items()}
            else:
                parts = {f"{index}.{name}": value}
            tensors |= {key: torch.as_tensor(part) for key, part in parts.items() if part is not None}
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, *outer, name = key.split(".")
        values = state.setdefault(int(index), {})
        for level in outer:
            values = values.setdefault(level, {})
        is_number = tensor.ndim == 0 and tensor.dtype == torch.int64
        values[name] = int(tensor) if is_number else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _damage(folder: Path) -> str | None:
    file = MANIFEST
    try:
        manifest = read_object(folder / MANIFEST)
        if not manifest.keys() >= FILES:
            return f"{MANIFEST} does not name every file"
        for name in sorted(FILES):
            if _fingerprint(folder / name) != manifest[name]:
                return f"{name} is damaged (size or checksum differ)"
        file = "state.json"
        step = read_object(folder / file).get("step")
        if type(step) is not int or step != step_of_folder(folder):
            return f"{file} is of step {step!r}, which is not its folder's"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read ({error.strerror})"
    except ValueError as error:
        return f"{file} is damaged: {error}"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    """Wait until the content of a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
