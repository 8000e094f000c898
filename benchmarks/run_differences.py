"""Compare two runs that should be the same, bit for bit."""

import json
from pathlib import Path
from typing import Any

from trapo_lite.run.folder import bytes_of, step_folders

MEASURED = ("time/", "speed/", "memory/")  # these metrics differ when a run is repeated


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, without a last line that was cut off."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def differences(left: Path, right: Path) -> list[str]:
    """Return what differs between two runs: adapter, newest checkpoint, rollouts, metrics except times."""
    found = []
    for pattern in ("adapter/*.safetensors", "rollouts/*.jsonl"):
        names = {p.relative_to(root) for root in (left, right) for p in root.glob(pattern)}
        found += [str(name) for name in sorted(names) if bytes_of(left / name) != bytes_of(right / name)]
    newest = [max(step_folders(root / "checkpoints"), default=root) for root in (left, right)]
    if newest[0].name != newest[1].name:
        found.append(f"newest checkpoint: {newest[0].name} and {newest[1].name}")
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "rng.safetensors"):
        if bytes_of(newest[0] / name) != bytes_of(newest[1] / name):
            found.append(f"{newest[0].name}/{name}")
    rows = [read_metrics(root / "metrics.jsonl") for root in (left, right)]
    if len(rows[0]) != len(rows[1]):
        found.append(f"metrics.jsonl: {len(rows[0])} and {len(rows[1])} lines")
    for one, other in zip(*rows, strict=False):
        names = [name for name in {**one, **other} if not name.startswith(MEASURED)]
        found += [f"metrics.jsonl step {one['step']}: {name}" for name in names if one.get(name) != other.get(name)]
    return found
