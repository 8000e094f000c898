"""Run the whole runs of benchmarks/gpu_proof.py: the tiny world, and a real model."""

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from gpu_proof import Record, Setting
from proof_engine import require_vllm_or_skip
from run_differences import read_metrics
from worlds import TINY_CONFIG

TIMES = ("time/step", "time/publish", "time/score", "time/sample", "time/update", "time/eval")


def tiny_run(setting: Setting, record: Record) -> None:
    """Record a TRAPO run of the tiny world with vLLM and evaluations."""
    require_vllm_or_skip()
    steps = 30 if setting.has_gpu else 2
    folder = Path(setting.work) / "runs" / "tiny"
    arguments = [
        *(["model.dtype=bfloat16", "run.deterministic=false"] if setting.has_gpu else ["eval.num_problems=20"]),
        f"train.max_steps={steps}",
        f"eval.every={10 if setting.has_gpu else 2}",
        f"run.dir={folder.parent}",
        f"run.name={folder.name}",
    ]
    started = time.perf_counter()
    try:
        run([*train_command(TINY_CONFIG), *arguments])
    finally:
        keep(folder, setting, "tiny_run")
    record("command_seconds", round(time.perf_counter() - started, 1))
    describe(folder, record)


def real_run(setting: Setting, record: Record) -> None:
    """Record a run on a real model with evaluations, and then the accuracy of the model without an adapter.

    The run has two thirds of the time. It is stopped by SIGTERM, as a user would stop it, and leaves a checkpoint of
    its last step.
    """
    folder = Path(setting.work) / "runs" / "real"
    shutil.rmtree(folder, ignore_errors=True)
    common = [
        f"model.dtype={'bfloat16' if setting.has_gpu else 'float32'}",
        "data.max_prompt_tokens=256",
        "data.on_bad_row=skip",
        f"rollout.max_response_tokens={320 if setting.has_gpu else 240}",
        f"rollout.num_problems={32 if setting.has_gpu else 2}",
        "rollout.max_num_seqs=256",
        "rollout.gpu_memory_fraction=0.3",
        "train.tokens_per_batch=32768",
        "optim.lr=2.0e-4",
        "run.deterministic=false",
    ]
    if not setting.has_gpu:
        common.append("rollout.engine=transformers")
    num_problems = 300 if setting.has_gpu else 4
    arguments = [
        *common,
        f"model.name={setting.model}",
        f"data.train={setting.data}",
        f"eval.data={setting.eval_data}",
        f"eval.num_problems={num_problems}",
        f"eval.every={10 if setting.has_gpu else 1}",
        f"train.max_steps={1000 if setting.has_gpu else 1}",
        f"run.dir={folder.parent}",
        f"run.name={folder.name}",
    ]
    before = Path(setting.work) / "before"
    evaluate = [sys.executable, "scripts/evaluate.py", "--config", TINY_CONFIG, "--model", setting.model]
    evaluate += ["--data", setting.eval_data, "--out", str(before), *common, f"eval.num_problems={num_problems}"]
    try:
        trained_for = stop_after([*train_command(TINY_CONFIG), *arguments], seconds=setting.seconds * 2 / 3)
        record("training_seconds", round(trained_for, 1))
    finally:
        keep(folder, setting, "real_run")
    describe(folder, record)
    run(evaluate)
    record("before", summary_of(before))


def train_command(config: str) -> list[str]:
    return [sys.executable, "scripts/train.py", "--config", config]


def run(command: list[str]) -> None:
    """Run a command from the repository's root; its output goes to this part's log."""
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])


def stop_after(command: list[str], *, seconds: float) -> float:
    """Run a training until it ends or the time is over. Return its seconds."""
    print("$", " ".join(command), flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    try:
        code = process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    if code not in (0, 128 + signal.SIGTERM):
        raise SystemExit(f"the training ended with exit code {code}")
    return time.monotonic() - started


def describe(folder: Path, record: Record) -> None:
    """Record the run's metrics: accuracy during the run, own reward at both ends, medians of times and checks."""
    rows = read_metrics(folder / "metrics.jsonl")
    record("steps", len(rows))
    record(
        "accuracy",
        {f"step {row['step']}": row["eval/accuracy"] for row in rows if row.get("eval/accuracy") is not None},
    )
    ends = {"first five steps": rows[:5], "last five steps": rows[-5:]}
    for name in ("reward/own", "reward/guided", "rollout/guided"):
        record(name, {end: mean([row.get(name) for row in part]) for end, part in ends.items()})
    settled = rows[2:] or rows  # the first steps compile
    record("median_seconds", {name: median([row.get(name) for row in settled]) for name in TIMES})
    for name in ("speed/sampled_tokens_per_second", "speed/trained_tokens_per_second", "engine/probe_projection"):
        record(name, median([row.get(name) for row in settled]))
    for name in ("engine/probe_mismatch", "mismatch/abs", "memory/peak_gib"):
        record(name, median([row.get(name) for row in settled]))


def mean(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return round(statistics.fmean(found), 4) if found else None


def median(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def summary_of(out: Path) -> dict[str, object]:
    """Return the accuracy in an evaluation's result."""
    [file] = [file for file in out.glob("*.json") if not file.name.startswith(".")]
    result = json.loads(file.read_text())
    return {key: value for key, value in result.items() if isinstance(value, int | float | list | str)}


def keep(folder: Path, setting: Setting, name: str) -> None:
    """Copy the files that describe the run beside the results, also if it failed."""
    for file in ("metrics.jsonl", "engine-0.log", "config.yaml"):
        if (folder / file).exists():
            shutil.copyfile(folder / file, Path(setting.out) / f"{name}-{file}")
