"""Measure publishing's share of a step, and what is left of a run whose engine is killed, on the tiny world.

Part of benchmarks/rollout.py.
"""

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from run_differences import differences, read_metrics
from worlds import TINY, TINY_CONFIG


def publish_share(folder: Path) -> dict[str, object]:
    """Return publishing's median share of eight steps, from handing over the adapter to the first token."""
    rows = read_metrics(run(folder, "publish", steps=8) / "metrics.jsonl")[1:]
    share = statistics.median(row["time/first_token"] / row["time/step"] for row in rows)
    publish = statistics.median(row["time/publish"] / row["time/step"] for row in rows)
    adapter = (folder / "publish/adapter/adapter_model.safetensors").stat().st_size
    config = (folder / "publish/adapter/adapter_config.json").stat().st_size
    return {
        "publish_share_of_step": round(share, 4),  # to the first token, including the reading of the prompts
        "publish_alone_share_of_step": round(publish, 4),
        "bytes_moved_over_adapter": round(rows[-1]["engine/publish_bytes"] / (adapter + config), 3),
    }


def engine_kills(folder: Path, *, kills: int, steps: int) -> dict[str, object]:
    """Kill the engine at random moments of a run, and compare the run with an undisturbed one.

    Deterministic runs must be equal bit for bit. Other runs batch as verdicts come in, so that log-probs and weights
    differ by rounding, with or without kills. For them the number of rollouts with other tokens counts.
    """
    exact = kill_engines(folder, "killed", kills=kills, steps=steps)
    free = kill_engines(folder, "killed-free", "run.deterministic=false", kills=kills, steps=steps)
    whole = run(folder, "whole", steps=steps)
    whole_free = run(folder, "whole-free", "run.deterministic=false", steps=steps)
    return {
        "engine_kills": exact + free,
        "engine_kills_differences": differences(whole, folder / "killed"),
        "engine_kills_flips_not_deterministic": flips(whole_free, folder / "killed-free"),
    }


def flips(one: Path, other: Path) -> str:
    """Return how many rollouts have other tokens, and how many there are."""
    rollouts = [
        [json.loads(line) for file in sorted((run / "rollouts").iterdir()) for line in file.open()]
        for run in (one, other)
    ]
    num = sum(a["completion_ids"] != b["completion_ids"] for a, b in zip(*rollouts, strict=True))
    return f"{num} of {len(rollouts[0])}"


def kill_engines(folder: Path, name: str, *overrides: str, kills: int, steps: int) -> int:
    """Run and kill the engine `kills` times, distributed over the steps. SystemExit unless the run ends by itself."""
    command = run_command(folder, name, *overrides, steps=steps)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    rng, killed = random.Random(0), 0
    metrics = folder / name / "metrics.jsonl"
    while process.poll() is None:
        time.sleep(0.2)
        done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        if killed < kills and done >= 1 + killed * (steps - 2) // kills:
            time.sleep(rng.uniform(0.0, 1.5))
            for pid in engine_processes(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
    if killed < kills or process.returncode != 0:
        raise SystemExit(f"the run ended with {process.returncode} after {killed} of {kills} engine kills")
    return killed


def engine_processes(parent: int) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(parent), "-f", "trapo_lite.engines.vllm"], capture_output=True, text=True
    )
    return [int(pid) for pid in found.stdout.split()]


def run(folder: Path, name: str, *overrides: str, steps: int) -> Path:
    subprocess.run(run_command(folder, name, *overrides, steps=steps), check=True, stdout=subprocess.DEVNULL)
    return folder / name


def run_command(folder: Path, name: str, *overrides: str, steps: int) -> list[str]:
    settings = [f"run.dir={folder}", f"run.name={name}", f"train.max_steps={steps}", "eval.every=0", *overrides]
    world = ["--config", TINY_CONFIG, *TINY.overrides]
    return [sys.executable, "scripts/train.py", *world, "run.trackers=[]", *settings]
