"""Prove this project on a GPU within minutes, by measuring every part that differs between a card and the CPU.

    python benchmarks/gpu_proof.py                               # everything that fits into 10 minutes
    python benchmarks/gpu_proof.py --minutes 3                   # also on a machine without a GPU, with tiny shapes
    python benchmarks/gpu_proof.py --parts update_7B engine_7B   # only these
    python benchmarks/gpu_proof.py --model SmolLM2-135M-Instruct --data gsm8k_train.parquet --eval-data gsm8k_test.jsonl

Nothing is downloaded: the shapes are real, the weights random, unless --model names a folder. Each part runs in a
process of its own with a time limit, writes its figures as soon as it has them, and may fail without stopping the
others. OUT/gpu_proof.json and OUT/gpu_proof.md hold the figures, OUT/PART.log what the part printed. The exit code is 1
if a part failed.
"""

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LAST_LINES = 12
SHORTEST = 0.5  # share of its limit; with less time left a part is not started
ONE_SHAPE = "without a GPU all shapes are the same tiny one"


@dataclass(frozen=True)
class Setting:
    """Hold what a part is given.

    work: folder for weights and runs, shared by the parts    out: folder for results
    model, data, eval_data: for the run on a real model; empty: that run is skipped
    seconds: limit of the part, after which it is killed
    """

    work: str
    out: str
    has_gpu: bool
    model: str = ""
    data: str = ""
    eval_data: str = ""
    seconds: float = 0.0


Record = Callable[[str, Any], None]
"""Write one figure of a part under a name, at once."""


class Skipped(Exception):
    """Raised if a part cannot be measured here. The message says why."""


@dataclass(frozen=True)
class Part:
    """Describe one part of the proof.

    function:    module:name of a function of (Setting, Record)
    seconds:     its time limit on a GPU and on the CPU
    without_gpu: why it is skipped on the CPU; None: it runs there
    needs:       fields of Setting that must be given
    """

    function: str
    seconds: tuple[float, float]
    about: str
    without_gpu: str | None = None
    needs: tuple[str, ...] = ()

    def skip_reason(self, setting: Setting, *, seconds_left: float) -> str | None:
        """Return why the part is not started, or None if it can be."""
        if self.without_gpu is not None and not setting.has_gpu:
            return self.without_gpu
        if missing := [f"--{name.replace('_', '-')}" for name in self.needs if not getattr(setting, name)]:
            return f"give {', '.join(missing)}"
        needed = SHORTEST * self.seconds[not setting.has_gpu]
        if seconds_left < needed:
            return f"needs {needed:.0f} s at least, {max(seconds_left, 0):.0f} s were left; raise --minutes"
        return None


PARTS: dict[str, Part] = {
    "machine": Part("proof_training:machine", (60, 90), "card, driver, versions, matrix products and memory bandwidth"),
    "kernels": Part(
        "proof_training:kernels",
        (150, 120),
        "FlexAttention on a tree against dense scores and SDPA rows",
        without_gpu="FlexAttention has no backward pass on the CPU",
    ),
    "gradient": Part("proof_training:gradient", (120, 180), "the gradient: tree against rows, card against CPU"),
    "update_1.5B": Part("proof_training:update_small", (150, 180), "an update at 1.5B shape, bfloat16"),
    "update_1.5B_nf4": Part("proof_training:update_small_nf4", (120, 180), "the same in NF4"),
    "update_7B": Part(
        "proof_training:update_large", (180, 120), "an update at 7B shape, bfloat16", without_gpu=ONE_SHAPE
    ),
    "update_7B_nf4": Part("proof_training:update_large_nf4", (150, 120), "the same in NF4", without_gpu=ONE_SHAPE),
    "tiny_run": Part("proof_runs:tiny_run", (240, 90), "30 steps of TRAPO on the tiny world, through vLLM"),
    "engine_1.5B": Part("proof_engine:engine_small", (240, 200), "vLLM at 1.5B shape: start, publish, release, decode"),
    "engine_7B": Part("proof_engine:engine_large", (300, 90), "the same at 7B shape", without_gpu=ONE_SHAPE),
    "noise": Part(
        "proof_engine:noise", (120, 150), "engine against trainer on a real model's text", needs=("model", "data")
    ),
    "schedules": Part("proof_engine:schedules", (200, 90), "rollouts: barrier, pipelined, speculative"),
    "real_run": Part(
        "proof_runs:real_run",
        (420, 180),
        "TRAPO on a real model, and the bare model evaluated",
        needs=("model", "data", "eval_data"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="none runs on after it, and none begins with too little left"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_proof"), help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder for weights and runs (default: a temporary one, removed)")
    parser.add_argument("--model", default="", help="folder of a real model, for real_run")
    parser.add_argument("--data", default="", help="its training problems")
    parser.add_argument("--eval-data", default="", help="its evaluation problems")
    parser.add_argument("--only", nargs=2, metavar=("PART", "FUNCTION"), help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        name, function = args.only
        run_part(name, function, Setting(**json.loads(args.setting)))
        return
    for name in ("model", "data", "eval_data"):
        if getattr(args, name) and not Path(getattr(args, name)).exists():
            raise SystemExit(f"error: --{name.replace('_', '-')}: there is no {getattr(args, name)}")
    args.out.mkdir(parents=True, exist_ok=True)
    work = args.work or Path(tempfile.mkdtemp(prefix="gpu-proof-"))
    setting = Setting(
        work=str(work.resolve()),
        out=str(args.out.resolve()),
        has_gpu=has_gpu(),
        model=args.model,
        data=args.data,
        eval_data=args.eval_data,
    )
    try:
        results = prove(args.parts, setting, deadline=time.monotonic() + 60 * args.minutes)
    finally:
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    if any(result["status"] == "failed" for result in results.values()):
        raise SystemExit(1)


def has_gpu() -> bool:
    """Ask in another process, because one that has used CUDA would hold memory of the measured card."""
    command = [sys.executable, "-c", "import torch; raise SystemExit(0 if torch.cuda.is_available() else 1)"]
    return subprocess.run(command, capture_output=True).returncode == 0


def prove(
    parts: list[str], setting: Setting, *, deadline: float, table: Mapping[str, Part] = PARTS
) -> dict[str, dict[str, Any]]:
    """Run the parts one after the other; write both tables after each. deadline: on time.monotonic()'s clock."""
    out = Path(setting.out)
    results: dict[str, dict[str, Any]] = {}
    for name in parts:
        part, started = table[name], time.monotonic()
        if reason := part.skip_reason(setting, seconds_left=deadline - started):
            results[name] = {"status": "skipped", "reason": reason}
        else:
            limit = min(part.seconds[not setting.has_gpu], deadline - started)
            results[name] = measured(name, part.function, setting, limit=limit)
        results[name]["seconds"] = round(time.monotonic() - started, 1)
        (out / "gpu_proof.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / "gpu_proof.md").write_text(markdown(results))
        print(f"{name}: {results[name]['status']} in {results[name]['seconds']} s", flush=True)
        for key, value in results[name].get("figures", {}).items():
            print(f"  {key}: {shown(value)}")
        if reason := results[name].get("reason"):
            print("  " + reason.replace("\n", "\n  "), flush=True)
    return results


def measured(name: str, function: str, setting: Setting, *, limit: float) -> dict[str, Any]:
    """Run one part in a process of its own and return its status and the figures that it wrote."""
    out = Path(setting.out)
    figures = out / f"{name}.json"
    figures.unlink(missing_ok=True)
    arguments = ["--only", name, function, "--setting", json.dumps(asdict(setting) | {"seconds": limit})]
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None or code != 0:
                kill_group(process)
    found = json.loads(figures.read_text()) if figures.exists() else {}
    if "skipped" in found:
        return {"status": "skipped", "reason": found["skipped"]}
    if code == 0:
        return {"status": "ok", "figures": found}
    last = (out / f"{name}.log").read_text(errors="replace").splitlines()[-LAST_LINES:]
    why = f"killed after {limit:.0f} s" if code is None else f"exit code {code}"
    return {"status": "failed", "figures": found, "reason": "\n".join([why, *last])}


def kill_group(process: subprocess.Popen) -> None:
    """End the part and what it started. Its children are in the session that it leads."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_part(name: str, function: str, setting: Setting) -> None:
    """Call a part's function inside the part's own process."""
    figures: dict[str, Any] = {}
    file = Path(setting.out) / f"{name}.json"

    def record(key: str, value: Any) -> None:
        figures[key] = value
        temporary = file.with_suffix(".part")
        temporary.write_text(json.dumps(figures))
        temporary.replace(file)

    module, _, attribute = function.partition(":")
    try:
        getattr(importlib.import_module(module), attribute)(setting, record)
    except Exception as error:
        # The parts import this file under its own name; here it runs as __main__.
        if type(error).__name__ != Skipped.__name__:
            raise
        record("skipped", str(error))


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as one Markdown table, one line per figure."""
    lines = ["| part | status | seconds | figure | value |", "|---|---|---|---|---|"]
    for name, result in results.items():
        head = f"| {name} | {result['status']} | {result['seconds']} "
        rows = list(result.get("figures", {}).items())
        if reason := result.get("reason"):
            rows.append(("reason", reason.replace("\n", "; ").replace("|", "\\|")))
        for key, value in rows or [("", "")]:
            lines.append(f"{head}| {key} | {shown(value)} |")
            head = "| | | "
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """Return a figure as text: mappings as `name value, name value`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
