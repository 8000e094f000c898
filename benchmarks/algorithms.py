"""Compare TRAPO, GRPO, LUFFY and SFT after the same number of steps on the tiny world.

    python benchmarks/algorithms.py --seeds 0 1 2 --json algorithms.json

Every run goes through the same loop and is graded by the same verifier: one answer to each of the 200 unseen hard
problems, at temperature 1, by base + adapter. Runs that are complete are not repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from run_differences import read_metrics

from trapo_lite.engines.vllm.options import servable_dtype

BASE_CONFIG = "configs/tiny_cpu.yaml"
TEST_SET = "trapo_lite/tiny_world/data/test.jsonl"
ALGORITHMS = ("trapo", "dr_grpo", "luffy", "sft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", dest="overrides")
    args = parser.parse_args()
    results = {name: [run_once(name, seed, args.overrides) for seed in args.seeds] for name in args.algorithms}
    print("\n".join(table(results, args.seeds)))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def run_once(name: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train and evaluate one run. Return its accuracy, its seconds per step and its sampled tokens."""
    run = f"algorithms-{name}-seed{seed}"
    folder = Path("runs") / run
    settings = [f"run.name={run}", f"run.seed={seed}", f"model.dtype={servable_dtype()}", *overrides]
    config = ["--config", BASE_CONFIG, "--config", f"configs/algorithm/{name}.yaml"]
    subprocess.run([sys.executable, "scripts/train.py", *config, *settings], check=True)
    out = folder / "eval/test.json"
    weights = folder / "adapter/adapter_model.safetensors"
    if not out.exists() or out.stat().st_mtime < weights.stat().st_mtime:
        evaluate = [
            sys.executable,
            "scripts/evaluate.py",
            "--run",
            str(folder),
            "--data",
            TEST_SET,
            "--num-samples",
            "1",
        ]
        subprocess.run([*evaluate, "--out", str(out), "eval.temperature=1.0"], check=True)
    rows = read_metrics(folder / "metrics.jsonl")
    return {
        "accuracy": json.loads(out.read_text())["accuracy"],
        "train_seconds": sum(row["time/step"] for row in rows),
        "dev_accuracy_by_step": {row["step"]: row["eval/accuracy"] for row in rows if "eval/accuracy" in row},
        "num_steps": len(rows),
    }


def table(results: dict[str, list[dict[str, Any]]], seeds: list[int]) -> list[str]:
    steps = list(next(iter(results.values()))[0]["dev_accuracy_by_step"])
    heads = [*(f"seed {seed}" for seed in seeds), "mean", *(f"dev, step {step}" for step in steps), "seconds a run"]
    lines = ["| algorithm | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for name, runs in results.items():
        scores = [run["accuracy"] for run in runs]
        curve = [statistics.fmean(run["dev_accuracy_by_step"][step] for run in runs) for step in steps]
        cells = [f"{score:.3f}" for score in [*scores, statistics.fmean(scores), *curve]]
        seconds = statistics.fmean(run["train_seconds"] for run in runs)
        lines.append(f"| {name} | " + " | ".join([*cells, f"{seconds:.0f}"]) + " |")
    return lines


if __name__ == "__main__":
    main()
