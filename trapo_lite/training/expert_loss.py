"""Measure the loss on expert solutions that are not trained: where it rises, imitation has learned enough."""

from collections.abc import Sequence

import torch

from trapo_lite.core.batching import split
from trapo_lite.core.types import Group, Mean, Problem, Rollout
from trapo_lite.model.policy import Policy
from trapo_lite.run.processes import Ranks


def expert_loss(
    policy: Policy, problems: Sequence[Problem], budget: int, temperature: float, ranks: Ranks
) -> dict[str, Mean]:
    """Return the mean of -log pi over the tokens of each problem's first expert solution, over all ranks, as metrics.

    Problems without a solution are left out; without any problem there are no metrics. budget: tokens of a forward
    pass.   Source: arXiv:2512.11470, which ends SFT where this value is lowest.
    """
    with_solution = [problem for problem in problems if problem.expert_ids]
    if not with_solution:
        return {}
    groups = [_as_group(problem) for problem in ranks.share(with_solution)]
    parts = split(groups, budget=budget)
    if policy.is_sharded:  # every rank must run equally many passes
        parts += [[]] * (max(ranks.gather([len(parts)])) - len(parts))
    loss = Mean(0.0, 0)
    for part in parts:
        with torch.no_grad():
            logprobs, _ = policy.token_logprobs(policy.prepare(part), temperature=temperature)
        loss += Mean(-float(logprobs.double().sum()), logprobs.numel())
    return ranks.sum_metrics({"eval/expert_loss": loss})


def _as_group(problem: Problem) -> Group:
    """Return the problem's first expert solution as a group whose tokens are all trained."""
    whole = Rollout(problem.id, 0, problem.prompt_ids, problem.expert_ids[0], finish_reason="expert", train_prefix=True)
    return Group((whole,), (0.0,), (1.0,))
