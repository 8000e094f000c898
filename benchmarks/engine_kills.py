"""Whole runs on the tiny world: what publishing takes of a step, and what is left of a run whose engine is killed.

Part of benchmarks/rollout.py.
"""

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from worlds import TINY_CONFIG

from trapo_lite.run_folder import differences, read_metrics


def publish_share(folder: Path) -> dict[str, object]:
    """Of eight steps on the tiny world, the median share of a step from handing over the adapter to the first token."""
    rows = read_metrics(run(folder, "publish", steps=8) / "metrics.jsonl")[1:]
    share = statistics.median(row["time/first_token"] / row["time/step"] for row in rows)
    publish = statistics.median(row["time/publish"] / row["time/step"] for row in rows)
    adapter = (folder / "publish/adapter/adapter_model.safetensors").stat().st_size
    config = (folder / "publish/adapter/adapter_config.json").stat().st_size
    return {
        "publish_share_of_step": round(share, 4),  # to the first token, reading the prompts included
        "publish_alone_share_of_step": round(publish, 4),
        "bytes_moved_over_adapter": round(rows[-1]["engine/publish_bytes"] / (adapter + config), 3),
    }


def engine_kills(folder: Path, *, kills: int, steps: int) -> dict[str, object]:
    """SIGKILL the engine at random moments of a deterministic run; compare it with one that was left alone."""
    whole = run(folder, "whole", steps=steps)
    command = run_command(folder, "killed", steps=steps)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    rng, killed = random.Random(0), 0
    metrics = folder / "killed/metrics.jsonl"
    while process.poll() is None:
        time.sleep(0.2)
        done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        if killed < kills and done >= 1 + killed * (steps - 2) // kills:
            time.sleep(rng.uniform(0.0, 1.5))
            for pid in engine_processes(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
    if killed < kills:
        raise SystemExit(f"the run ended after {killed} engine kills; give more steps")
    return {
        "engine_kills": killed,
        "engine_kills_exit_code": process.returncode,
        "engine_kills_differences": differences(whole, folder / "killed"),
    }


def engine_processes(parent: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(parent), "-f", "vllm_child"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def run(folder: Path, name: str, *, steps: int) -> Path:
    subprocess.run(run_command(folder, name, steps=steps), check=True, stdout=subprocess.DEVNULL)
    return folder / name


def run_command(folder: Path, name: str, *, steps: int) -> list[str]:
    settings = [f"run.dir={folder}", f"run.name={name}", f"train.max_steps={steps}", "eval.every=0"]
    return [sys.executable, "scripts/train.py", "--config", TINY_CONFIG, "run.tensorboard=false", *settings]
