"""Adapter folders that are wrong in one way: made from a whole one, for tests of every door that takes an adapter."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def edited(source: Path, target: Path, *, tensors: Callable[[dict], dict] | None = None, **fields: object) -> Path:
    """A copy with other fields in its configuration (None given as "absent": the field is gone) or other tensors."""
    shutil.copytree(source, target)
    config = json.loads((target / CONFIG).read_text()) | fields
    (target / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    if tensors is not None:
        save_file(tensors(load_file(target / WEIGHTS)), target / WEIGHTS, metadata={"format": "pt"})
    return target


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As saved under a multimodal wrapper."""
    return {name.replace(".layers.", ".language_model.layers."): tensor for name, tensor in tensors.items()}


def with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = min(tensors)
    return tensors | {first: torch.full_like(tensors[first], float("nan"))}


def cut_short(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    whole = (target / WEIGHTS).read_bytes()
    (target / WEIGHTS).write_bytes(whole[:-100])
    return target


def pickled(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    torch.save(load_file(target / WEIGHTS), target / "adapter_model.bin")
    (target / WEIGHTS).unlink()
    return target
