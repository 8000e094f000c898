"""Run by torchrun: five updates on scripted rollouts, shared out over the ranks; rank 0 writes what came out.

torchrun --nproc_per_node 2 tests/distributed_steps.py OUT.pt sgd BUDGET tied|untied [sampled|reverse_kl]

With the last argument a teacher trains own tokens, by that divergence.
"""

import os
import random
import sys
from dataclasses import replace

import fsdp_on_cpu
import torch
from builders import random_rollouts, tiny_qwen2

from trapo_lite.config import AlgorithmSection, LoraSection, validate
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.types import Problem
from trapo_lite.model.policy import Policy
from trapo_lite.run.processes import Ranks
from trapo_lite.training.expert_loss import expert_loss
from trapo_lite.training.update import Updater

NUM_STEPS = 5
LR = 1e-2


def main(out: str, optimizer_name: str, budget: int, tied: bool, divergence: str | None) -> None:
    torch.set_num_threads(1)
    is_sharded = "ACCELERATE_USE_FSDP" in os.environ
    if is_sharded:
        fsdp_on_cpu.allow()
    ranks = Ranks()
    base = tiny_qwen2(tie_word_embeddings=tied)
    lora, shard = LoraSection(r=4, alpha=8), ranks.shard if is_sharded else None
    policy = Policy(base, lora, attention="sdpa", gradient_checkpointing=is_sharded, shard=shard)
    assert policy.is_sharded == is_sharded
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    section = {} if divergence is None else {"teacher": {"type": "solution", "divergence": divergence, "clip": 2.0}}
    algorithm = AlgorithmSection(tis_cap=2.0, **section).build()
    optim = {"name": optimizer_name, "lr": LR, "grad_clip": None}
    train = {"max_steps": NUM_STEPS, "tokens_per_batch": budget, "check_packing": False}
    updater = Updater(validate({"optim": optim, "train": train}), policy, lambda step: algorithm, ranks)
    gradients = []
    for step in range(NUM_STEPS):
        rng = random.Random(step)
        # Four problems: with three ranks the work is uneven; in step 3 a single problem leaves ranks empty.
        drawn = [random_rollouts(rng, problem_id=str(i)) for i in range(1 if step == 3 else 4)]
        if divergence is not None:
            longer = tuple(rng.randrange(64) for _ in range(20))
            drawn = [[replace(r, teacher_prompt_ids=r.prompt_ids + longer) for r in rollouts] for rollouts in drawn]
        groups = [make_group(algorithm, rollouts) for rollouts in drawn]
        updater.update(step, ranks.share(groups))
        gradients.append(policy.adapter.flat_gradient())  # summed over the ranks, as the optimizer saw it
    weights = torch.cat([parameter.detach().flatten() for parameter in policy.adapter.parameters])
    by_rank = ranks.gather([weights])
    held_out = [Problem(str(n), (1, 2), "1", expert_ids=(tuple(range(3, 9 + n)),) * (n != 1)) for n in range(4)]
    metrics = expert_loss(policy, held_out, updater.budget, 1.0, ranks)
    if ranks.is_main:
        torch.save(
            {
                "gradients": gradients,
                "weights": weights,
                "world": ranks.count,
                "by_rank": by_rank,
                "is_sharded": is_sharded,
                "expert_loss": [metrics["eval/expert_loss"].total, metrics["eval/expert_loss"].count],
            },
            out,
        )
    ranks.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "tied", next(iter(sys.argv[5:]), None))
