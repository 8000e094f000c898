"""Run by torchrun: five updates on scripted rollouts, shared out over the ranks; rank 0 writes what came out.

torchrun --nproc_per_node 2 tests/distributed_steps.py OUT.pt sgd BUDGET
"""

import random
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from builders import random_rollouts, tiny_qwen2

from trapo_lite.algorithm import Algorithm, Normalizers, count_normalizers, make_group, needs_forward
from trapo_lite.config import AlgorithmSection, LoraSection, OptimSection
from trapo_lite.policy import Policy
from trapo_lite.update import accumulate_gradient, apply_gradient, flat_gradient, make_batches, make_optimizer

NUM_STEPS = 5
LR = 1e-2


def main(out: str, optimizer_name: str, budget: int) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank, world = accelerator.process_index, accelerator.num_processes
    policy = Policy(tiny_qwen2(), LoraSection(r=4, alpha=8), attention="sdpa", gradient_checkpointing=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    section = OptimSection(name=optimizer_name, lr=LR)
    optimizer = make_optimizer(section, policy.parameters)
    algorithm = Algorithm.from_config(AlgorithmSection(), tis_cap=2.0)
    gradients = []
    for step in range(NUM_STEPS):
        rng = random.Random(step)
        # Four problems: with three ranks the work is uneven; in step 3 a single problem leaves ranks empty.
        groups = [make_group(algorithm, random_rollouts(rng, problem_id=str(i))) for i in range(1 if step == 3 else 4)]
        mine = groups[rank::world]
        counts = gather_object([count_normalizers(algorithm, mine)])
        normalizers = sum(counts, start=Normalizers(0.0, 0.0, 0.0))
        moving = [group for group in mine if needs_forward(algorithm, group)]
        batches = make_batches(policy, moving, budget=budget, temperature=1.0, with_old_logprobs=False)
        accumulate_gradient(policy, algorithm, batches, normalizers, temperature=1.0)
        gradient = accelerator.reduce(flat_gradient(policy), reduction="sum")
        gradients.append(gradient.clone())
        apply_gradient(policy, optimizer, gradient, lr=LR, grad_clip=None)
    weights = torch.cat([parameter.detach().flatten() for parameter in policy.parameters])
    every = accelerator.gather(weights[None]) if world > 1 else weights[None]
    if accelerator.is_main_process:
        torch.save({"gradients": gradients, "weights": weights, "world": world, "by_rank": every}, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
