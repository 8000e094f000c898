"""Train the tiny base by a method in a world of experts, and keep what came of it as a line of benchmarks/study.jsonl.

    python benchmarks/study.py --world wordy --algorithm trapo --seed 0
    python benchmarks/study.py --all --seeds 0 1 2 --jobs 2     # every world by every method, what is missing of it
    python benchmarks/study.py --table                          # means over seeds, of what is there

Each run has 40 steps of configs/tiny_cpu.yaml with the method's block; `base` trains nothing. A line is written once a
run is evaluated: on 200 problems each of the kind that was trained, longer ones, and easy ones that the base could
solve before (benchmarks/expert_worlds.py). A run that was killed is resumed by the same command; one that has a line is
not repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from expert_worlds import SOLVERS, write_held_out, write_world

import trapo_lite
from trapo_lite.run.environment import this_environment
from trapo_lite.tiny_world import BASE_DIR

RESULTS = Path(__file__).with_name("study.jsonl")
ALGORITHMS = ("base", *sorted(file.stem for file in Path("configs/algorithm").glob("*.yaml")))
WORLDS = Path("runs/study/worlds")
SETS = ("hard", "longer", "easy")
SUMS = ("train/tokens", "time/step")
MEANS = ("rollout/guided", "reward/gain_by_help")

Key = tuple[str, str, int]
"""World, algorithm and seed of a run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=sorted(SOLVERS))
    parser.add_argument("--algorithm", choices=ALGORITHMS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="all worlds and methods that --world and --algorithm leave")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="with --all")
    parser.add_argument("--jobs", type=int, default=1, help="with --all: runs at a time, one for each core")
    parser.add_argument("--table", action="store_true", help="print the results and end")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    if args.table:
        print("\n".join(table(read_results(args.results))))
    elif args.all:
        worlds = [args.world] if args.world else list(SOLVERS)
        algorithms = [args.algorithm] if args.algorithm else list(ALGORITHMS)
        keys = [(world, name, seed) for seed in args.seeds for world in worlds for name in algorithms]
        run_all(keys, args.results, args.overrides, num_jobs=args.jobs)
    elif args.world and args.algorithm:
        key = args.world, args.algorithm, args.seed
        if key not in read_results(args.results):
            append(args.results, run_once(key, args.overrides))
    else:
        parser.error("give --world and --algorithm, --all or --table")


def run_all(keys: Sequence[Key], results: Path, overrides: Sequence[str], *, num_jobs: int) -> None:
    """Run what has no line yet, each in a process of its own. End with an error if one of them failed."""
    done_before = read_results(results)
    missing = [key for key in keys if key not in done_before]

    def run(key: Key) -> bool:
        world, name, seed = key
        options = ["--world", world, "--algorithm", name, "--seed", str(seed), "--results", str(results)]
        done = subprocess.run([sys.executable, __file__, *options, *overrides], stdout=subprocess.DEVNULL)
        print(f"{world} {name} {seed}: {'done' if done.returncode == 0 else f'failed ({done.returncode})'}", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(num_jobs) as pool:
        if not all(list(pool.map(run, missing))):
            raise SystemExit("some runs failed; give the command again to resume them")


def run_once(key: Key, overrides: Sequence[str]) -> dict[str, Any]:
    """Train, evaluate, and return the line of results."""
    world, name, seed = key
    folder = WORLDS / f"{world}-{seed}"
    write_world(folder, world, seed=seed)
    write_held_out(folder, seed=seed)
    settings = [
        f"data.train={folder / world / 'train.jsonl'}",
        f"eval.data={folder / 'dev.jsonl'}",
        "run.dir=runs/study",
        f"run.name={world}-{name}-{seed}",
        f"run.seed={seed}",
        "run.trackers=[]",
        "rollout.engine=transformers",  # vLLM takes longer to start than such a run to sample
        *overrides,
    ]
    metrics: list[dict[str, Any]] = []
    if name == "base":
        out = Path("runs/study") / f"{world}-{name}-{seed}"
        evaluating = [*(text for text in settings if not text.startswith("eval.data=")), "eval.num_problems=null"]
        what: dict[str, Any] = {"model": BASE_DIR, "config": ["tiny_cpu.yaml"], "out": out, "overrides": evaluating}
    else:
        trained = trapo_lite.train(trapo_lite.load_config(["tiny_cpu.yaml", f"algorithm/{name}.yaml"], settings))
        metrics, what = trained.metrics, {"run": trained.folder, "overrides": ["eval.num_problems=null"]}
    [evaluated] = trapo_lite.evaluate(**what, data=folder / "held_out.jsonl", num_samples=1).values()
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
        **{name: sum(row.get(name) or 0.0 for row in metrics) for name in SUMS},
        **{name: _mean([row[name] for row in metrics if row.get(name) is not None]) for name in MEANS},
        "entropy": [row.get("policy/entropy") for row in metrics[:: max(1, len(metrics) // 4)]],
        "overrides": list(overrides),
        "commit": environment["commit"],
        "clean": environment["clean"],
    }


def read_results(file: Path) -> dict[Key, dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = map(json.loads, lines)
    return {(row["world"], row["algorithm"], row["seed"]): row for row in rows}


def append(file: Path, row: dict[str, Any]) -> None:
    """Add a line in one write, so that runs side by side do not mix theirs."""
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(row) + "\n")


def table(results: dict[Key, dict[str, Any]]) -> Iterator[str]:
    """Yield the mean accuracy on the trained kind of problems over seeds, worlds down and methods across."""
    by_cell: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (world, name, _), row in results.items():
        by_cell[world, name].append(row["accuracy"]["hard"])
    names = [name for name in ALGORITHMS if any(cell[1] == name for cell in by_cell)]
    yield "| world | " + " | ".join(names) + " |"
    yield "|---|" + "---|" * len(names)
    for world in (world for world in SOLVERS if any(cell[0] == world for cell in by_cell)):
        cells = (by_cell.get((world, name), []) for name in names)
        yield f"| {world} | " + " | ".join(f"{_mean(cell):.3f} ({len(cell)})" if cell else "" for cell in cells) + " |"


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


if __name__ == "__main__":
    main()
