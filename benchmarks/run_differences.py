"""Compare two runs that should be the same, bit for bit."""

from pathlib import Path

from trapo_lite.run.folder import bytes_of, read_metrics, step_folders
from trapo_lite.run.metrics import MEASURED


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
        names = [name for name in {**one, **other} if name not in MEASURED and one.get(name) != other.get(name)]
        found += [f"metrics.jsonl step {one['step']}: {name}" for name in names]
    return found
