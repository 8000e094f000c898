"""Train the tiny base by a method in a world of experts, and keep what came of it as a line of benchmarks/study.jsonl.

    python benchmarks/study.py --world wordy --algorithm trapo --seed 0
    python benchmarks/study.py --all --seeds 0 1 2 --jobs 2     # every world by every method, what is missing of it
    python benchmarks/study_report.py                           # tables and answered hypotheses
    python benchmarks/study_pictures.py docs/pictures

Each run has 40 steps of configs/tiny_cpu.yaml with the method's block, or with a block and some of its options changed
(VARIANTS; FITTED where a block is made for more steps); `base` trains nothing. A line is written once a run is
evaluated: on 200 problems each of the kind that was trained, longer ones, and easy ones that the base could solve
before (benchmarks/expert_worlds.py). A run that was killed is resumed by the same command; one that has a line is not
repeated.

A method that sees no expert solution does the same in all worlds with the same problems and base, so it runs in one of
them.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import signal
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from expert_worlds import RARE, SOLVERS, write_held_out, write_rare_base, write_world

import trapo_lite
from trapo_lite.config import Config
from trapo_lite.run.environment import this_environment
from trapo_lite.tiny_world import BASE_DIR

RESULTS = Path(__file__).with_name("study.jsonl")
BLOCKS = tuple(sorted(file.stem for file in Path("configs/algorithm").glob("*.yaml")))
ALWAYS = (
    "[{num_rollouts: 4}, {num_rollouts: 2, prefix_ratio: 0.25, help_below: null, num_trained: 1}, "
    "{num_rollouts: 1, prefix_ratio: 0.5, help_below: null}, "
    "{num_rollouts: 1, prefix_ratio: 1.0, help_below: null, trace: 1}]"
)
# Blocks whose courses are made for more steps than a run here has.
CHORD_COURSES = (
    "algorithm.prefix_loss.weight={steps: [0, 4, 40], values: [0.0, 0.9, 0.05]}",
    "algorithm.completion_loss.weight={steps: [0, 4, 40], values: [1.0, 0.1, 0.95]}",
)
SHRINKING = (
    "algorithm.schedule=[{num_rollouts: 7}, {num_rollouts: 1, help_below: null, "
    "prefix_ratio: {steps: [0, 40], values: [0.95, 0.05]}}]"
)
FITTED = {"chord": list(CHORD_COURSES), "prefix_rft": [SHRINKING]}
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "trapo, no prefix loss": ("trapo", ["algorithm.prefix_loss=none"]),
    "trapo, nll": ("trapo", ["algorithm.prefix_loss=nll"]),
    "trapo, luffy's loss": ("trapo", ["algorithm.prefix_loss={type: luffy, times_advantage: false}"]),
    "trapo, help always": ("trapo", [f"algorithm.schedule={ALWAYS}"]),
    "trapo, paper": ("trapo", ["algorithm.schedule=paper"]),
    "trapo_utility, same problem": ("trapo_utility", ["algorithm.utility=same_problem"]),
    "trapo_utility, help only": ("trapo_utility", ["algorithm.utility.weighs_loss=false"]),
    "trapo_utility, loss only": ("trapo_utility", ["algorithm.utility.gates_help=false"]),
    **{
        f"trapo, alpha {alpha}": ("trapo", [f"algorithm.prefix_loss.alpha={alpha}"])
        for alpha in (0.001, 0.01, 0.03, 0.3, 1.0)
    },
    **{f"trapo, weight {weight}": ("trapo", [f"algorithm.prefix_loss.weight={weight}"]) for weight in (0.03, 0.1, 0.3)},
    **{f"trapo, lr {lr}": ("trapo", [f"optim.lr={lr}"]) for lr in (3e-4, 3e-3)},
    **{f"trapo, rank {rank}": ("trapo", [f"lora.r={rank}", f"lora.alpha={rank}"]) for rank in (4, 128)},
}
"""Name -> the block and what is changed in it."""
METHODS = ("base", *BLOCKS, *VARIANTS)
FOLDER = Path("runs/study")
RARE_BASE = FOLDER / "rare_base"
SETS = ("hard", "longer", "easy")
SUMS = ("train/tokens", "time/step")
CURVES = ("reward/own", "rollout/guided", "reward/gain_by_help", "policy/entropy", "rollout/completion_tokens")

Key = tuple[str, str, int]
"""World, method and seed of a run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", nargs="+", choices=sorted(SOLVERS), metavar="WORLD")
    parser.add_argument("--algorithm", nargs="+", choices=METHODS, metavar="METHOD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="all worlds and blocks, or those of --world and --algorithm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="with --all")
    parser.add_argument("--jobs", type=int, default=1, help="with --all: runs at a time, one for each core")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--override", nargs="+", default=[], metavar="section.key=value", help="for trying only")
    args = parser.parse_args()
    if args.override and args.results == RESULTS:
        parser.error(f"--override: runs of other settings would stand in {RESULTS}; give --results ANOTHER.jsonl")
    worlds, methods = args.world or list(SOLVERS), args.algorithm or ["base", *BLOCKS]
    if args.all:
        keys = [run_for((world, name, seed)) for seed in args.seeds for world in worlds for name in methods]
        run_all(list(dict.fromkeys(keys)), args.results, args.override, num_jobs=args.jobs)
    elif len(args.world or []) == len(args.algorithm or []) == 1:
        key = worlds[0], methods[0], args.seed
        if run_for(key) != key:
            parser.error(f"--world: {key[1]} sees no expert solution; it runs in {run_for(key)[0]}")
        if key not in read_results(args.results):
            append(args.results, run_once(key, args.override))
    else:
        parser.error("give one --world and one --algorithm, or --all")


def run_for(key: Key) -> Key:
    """Return the run that gives the result of this key.

    >>> run_for(("wordy", "dr_grpo", 0)), run_for(("wordy", "trapo", 0))
    (('perfect', 'dr_grpo', 0), ('wordy', 'trapo', 0))
    """
    world, name, seed = key
    if not sees_experts(name) and (name == "base" or not world.startswith("few_")):
        world = f"{RARE}perfect" if world.startswith(RARE) else "perfect"
    return world, name, seed


def sees_experts(name: str) -> bool:
    return name != "base" and settings_of(name, []).algorithm.ever_uses_experts


def settings_of(name: str, overrides: Sequence[str]) -> Config:
    """Return the configuration of a method. name: a block, or a variant."""
    block, changed = VARIANTS.get(name, (name, FITTED.get(name, [])))
    return trapo_lite.load_config(["tiny_cpu.yaml", f"algorithm/{block}.yaml"], [*changed, *overrides])


def run_all(keys: Sequence[Key], results: Path, overrides: Sequence[str], *, num_jobs: int) -> None:
    """Run what has no line yet, in so many processes. End with an error if a run failed."""
    done_before = read_results(results)
    missing = [key for key in keys if key not in done_before]
    if any(world.startswith(RARE) for world, _, _ in missing):
        write_rare_base(RARE_BASE)

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_jobs, mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(run_once, key, overrides): key for key in missing}
        failed = 0
        for future in as_completed(futures):
            error = future.exception()
            if error is None:
                append(results, future.result())
            failed += error is not None
            print(*futures[future], "done" if error is None else f"failed: {error}", flush=True)
    if failed:
        raise SystemExit(f"{failed} runs failed; give the command again to resume them")


def _start_worker() -> None:
    """Make this process silent, and let it end with the one that started it, also if that is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_once(key: Key, overrides: Sequence[str]) -> dict[str, Any]:
    """Train, evaluate, and return the line of results."""
    world, name, seed = key
    problems = FOLDER / "worlds" / f"{world}-{seed}"
    write_world(problems, world, seed=seed)
    write_held_out(problems, seed=seed)
    if world.startswith(RARE):
        write_rare_base(RARE_BASE)
    model = str(RARE_BASE if world.startswith(RARE) else BASE_DIR)
    run_name = "-".join((world, name.replace(", ", "_").replace(" ", "_").replace("'", ""), str(seed)))
    settings = [
        f"model.name={model}",
        f"data.train={problems / world / 'train.jsonl'}",
        f"eval.data={problems / 'dev.jsonl'}",
        f"run.dir={FOLDER}",
        f"run.name={run_name}",
        f"run.seed={seed}",
        "run.trackers=[]",
        "rollout.engine=transformers",  # vLLM takes longer to start than such a run to sample
        *overrides,
    ]
    metrics: list[dict[str, Any]] = []
    if name == "base":
        given = ("model.name=", "eval.data=")  # as arguments
        evaluating = [*(text for text in settings if not text.startswith(given)), "eval.num_problems=null"]
        what: dict[str, Any] = {"model": model, "config": ["tiny_cpu.yaml"], "overrides": evaluating}
        what["out"] = FOLDER / run_name
    else:
        trained = trapo_lite.train(settings_of(name, settings))
        metrics, what = trained.metrics, {"run": trained.folder, "overrides": ["eval.num_problems=null"]}
    [evaluated] = trapo_lite.evaluate(**what, data=problems / "held_out.jsonl", num_samples=1).values()
    correct = {part: "" for part in SETS}
    for answer in sorted(evaluated.answers, key=lambda answer: int(answer.problem_id.rpartition("-")[2])):
        correct[answer.problem_id.rpartition("-")[0]] += str(int(answer.is_correct))
    environment = this_environment()
    return {
        "world": world,
        "algorithm": name,
        "seed": seed,
        "num_steps": len(metrics),
        "accuracy": {part: bits.count("1") / len(bits) for part, bits in correct.items()},
        "correct": correct,
        "dev": {row["step"]: row["eval/accuracy"] for row in metrics if row.get("eval/accuracy") is not None},
        **{name: round(sum(row.get(name) or 0.0 for row in metrics), 1) for name in SUMS},
        "curves": {name: _every_fourth([row.get(name) for row in metrics]) for name in CURVES},
        "overrides": list(overrides),
        "commit": environment["commit"],
        "clean": environment["clean"],
    }


def _every_fourth(values: Sequence[float | None]) -> list[float | None]:
    """Return the means over four steps each, without those that have no value."""
    parts = [[value for value in values[start : start + 4] if value is not None] for start in range(0, len(values), 4)]
    return [round(statistics.fmean(part), 4) if part else None for part in parts]


def read_results(file: Path) -> dict[Key, dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = map(json.loads, lines)
    return {(row["world"], row["algorithm"], row["seed"]): row for row in rows}


def append(file: Path, row: dict[str, Any]) -> None:
    """Add a line in one write, so that runs side by side do not mix theirs."""
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
