"""Packed trees against padded rows: do the gradients agree, and how many tokens are saved?

    python benchmarks/packed_tree.py --trees 50

Random TRAPO groups through a random two-layer Qwen2 in float32; the padded rows are those of the test suite. Then the
token counts of one problem whose policy fails throughout, at stated lengths.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from builders import random_rollouts, rollout
from test_packed_gradients import TRAPO, make_policy, packed_gradient, padded_gradient, relative_error

from trapo_lite.algorithm import make_group
from trapo_lite.rollout_metrics import padded_tokens
from trapo_lite.tree import num_tokens

LENGTHS = ((64, 256, 192), (128, 1024, 384), (256, 4096, 2048))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, default=50)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy = make_policy()
    errors, packed, padded = [], 0, 0
    for seed in range(args.trees):
        group = make_group(TRAPO, random_rollouts(random.Random(seed)))
        reference = padded_gradient(policy, [group])
        errors.append(relative_error(packed_gradient(policy, [group], budget=10_000), reference))
        packed, padded = packed + num_tokens(group), padded + padded_tokens([group])
    report = {
        "trees": args.trees,
        "gradient_relative_error_max": max(errors),
        "padded_over_packed_tokens_random": padded / packed,
        "padded_over_packed_tokens": {str(lengths): saved(*lengths) for lengths in LENGTHS},
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def saved(prompt: int, trace: int, completion: int) -> float:
    """Padded over packed tokens of a 4 + 2 + 1 + 1 group at ratios 0, 0.25, 0.5 and 1 of one trace."""
    ids = list(range(trace))
    cuts = [0, 0, 0, 0, trace // 4, trace // 4, trace // 2]
    rollouts = [rollout(range(prompt), ids[:cut], [7] * completion, slot=slot) for slot, cut in enumerate(cuts)]
    group = make_group(TRAPO, [*rollouts, rollout(range(prompt), ids, [], slot=7)])
    return padded_tokens([group]) / num_tokens(group)


if __name__ == "__main__":
    main()
