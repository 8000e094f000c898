"""Run by torchrun: several steps of what is known of help, from rollouts shared over the ranks; rank 0 writes it.

torchrun --nproc_per_node 2 tests/distributed_utility.py OUT.json
"""

import json
import random
import sys
from pathlib import Path

from builders import rollout

from trapo_lite.config import validate
from trapo_lite.core.types import Problem
from trapo_lite.run.processes import Ranks
from trapo_lite.training.utility import UtilityState


def main(out: str) -> None:
    ranks = Ranks()
    config = validate({"algorithm": {"utility": "control"}})
    problems = [Problem(str(index), (1,), "1", expert_ids=((1, 2),)) for index in range(6)]
    state = UtilityState(config, problems)
    micro_groups = config.algorithm.micro_groups
    for step in range(5):
        rng = random.Random(step)
        groups = []
        for problem in problems:
            is_helped = rng.random() < 0.5
            groups.append(
                [
                    rollout(
                        [1],
                        [20] if is_helped and slot >= 4 else [],
                        [10],
                        reward=float(rng.random() < 0.3),
                        slot=slot,
                        problem_id=problem.id,
                    )
                    for slot in range(8)
                ]
            )
        state.learn(step, micro_groups, ranks.share(groups), ranks)
    by_rank = ranks.gather([state.to_json()])
    if ranks.is_main:
        Path(out).write_text(json.dumps(by_rank))
    ranks.close()


if __name__ == "__main__":
    main(sys.argv[1])
