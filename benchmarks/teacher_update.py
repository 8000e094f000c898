"""Measure what a teacher's tree adds to an update: OPSD against GRPO on the same rollouts of the tiny world, in turns.

    python benchmarks/teacher_update.py                       # 8 problems x 8 rollouts, about two minutes on one core
    python benchmarks/teacher_update.py --completions 13 128  # other numbers of tokens a completion

Problems, expert solutions and prompts are the tiny world's, with the options of configs/tiny_cpu.yaml and of
configs/algorithm/opsd.yaml. A completion has as many random tokens as is asked for. Every rollout has an advantage, so
GRPO leaves none out. An update is the trainer's own: forward, backward, gradient and optimizer.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from worlds import TINY_CONFIG

from trapo_lite.config import Config, load_config
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.batching import num_tokens
from trapo_lite.core.teacher import as_the_teacher_reads
from trapo_lite.core.types import Group, Problem, Rollout, Verdict
from trapo_lite.data.tokens import load_tokenizer
from trapo_lite.model.policy import Policy
from trapo_lite.run.processes import Ranks
from trapo_lite.training.inputs import read_problems
from trapo_lite.training.update import Updater

BLOCKS = {
    "grpo": ["algorithm/grpo.yaml"],
    "sampled": ["algorithm/opsd.yaml", "algorithm.teacher.divergence=sampled"],
    "reverse_kl": ["algorithm/opsd.yaml"],
}
NUM_PROBLEMS, NUM_ROLLOUTS = 8, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, nargs="+", default=[13, 38], help="tokens of a completion")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    configs = {name: config_of(block, args.overrides) for name, block in BLOCKS.items()}
    opsd = configs["reverse_kl"]
    problems, _, _ = read_problems(opsd, load_tokenizer(opsd.model.name))
    rows = [measure(configs, problems, length, repeats=args.repeats) for length in args.completions]
    for row in rows:
        print(json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def config_of(block: Sequence[str], overrides: Sequence[str]) -> Config:
    [file, *own] = block
    return load_config([TINY_CONFIG, file], [*own, "train.check_packing=false", *overrides])


def measure(
    configs: dict[str, Config], problems: Sequence[Problem], length: int, *, repeats: int
) -> dict[str, float | int]:
    """Return the median seconds of an update by each method, and how many times GRPO's the others take."""
    updaters: dict[str, Updater] = {}
    groups: dict[str, list[Group]] = {}
    for name, config in configs.items():
        algorithm_at = partial(config.algorithm.build_at, max_response_tokens=config.rollout.max_response_tokens)
        torch.manual_seed(0)
        policy = Policy.load(config.model, config.lora, device="cpu")
        updaters[name] = Updater(config, policy, algorithm_at, Ranks())
        rng = random.Random(0)
        groups[name] = [
            make_group(algorithm_at(0), rollouts_of(problem, length, rng)) for problem in problems[:NUM_PROBLEMS]
        ]
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    for step in range(2 + repeats):  # the first two warm up
        for name, updater in updaters.items():
            started = time.perf_counter()
            updater.update(step, groups[name])
            seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(times[2:]) for name, times in seconds.items()}
    return {
        "completion_tokens": length,
        "tokens": sum(map(num_tokens, groups["grpo"])),
        "teacher_tokens": sum(map(num_tokens, as_the_teacher_reads(groups["sampled"]))),
        **{f"{name}_seconds": round(value, 4) for name, value in median.items()},
        **{f"{name}_over_grpo": round(median[name] / median["grpo"], 3) for name in ("sampled", "reverse_kl")},
    }


def rollouts_of(problem: Problem, length: int, rng: random.Random) -> list[Rollout]:
    return [
        Rollout(
            problem.id,
            slot,
            problem.prompt_ids,
            (),
            completion_ids=tuple(rng.randrange(5, 40) for _ in range(length)),
            completion_logprobs=(-1.0,) * length,
            adapter_version=0,
            verdict=Verdict("correct" if slot % 2 else "wrong"),
            reward=float(slot % 2),
            teacher_prompt_ids=problem.teacher_prompt_ids,
        )
        for slot in range(NUM_ROLLOUTS)
    ]


if __name__ == "__main__":
    main()
