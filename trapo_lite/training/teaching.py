"""Ask an algorithm's teacher: the base without the adapter, which reads the same completions behind its prompts."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from trapo_lite.core.algorithm import Algorithm, TokenLogprobs
from trapo_lite.core.teacher import Teacher, as_the_teacher_reads, require_same_trained
from trapo_lite.core.tree import PackedBatch
from trapo_lite.core.types import Group
from trapo_lite.model.policy import Policy


def with_teacher(
    policy: Policy, teacher: Teacher, batch: PackedBatch, groups: Sequence[Group], *, temperature: float
) -> PackedBatch:
    """Return the batch of these groups with the teacher's tree, or with its log-probs if they are all that is needed.

    The log-probs of the tokens are computed once, also for several updates. What the divergence over the vocabulary
    needs is too large to be kept, so it is computed again in each update.
    """
    of_teacher = policy.prepare(as_the_teacher_reads(groups))
    require_same_trained(batch, of_teacher)
    if teacher.needs_vocabulary:
        return replace(batch, teacher=of_teacher)
    logprobs = torch.zeros_like(batch.sampler_logprobs)
    logprobs[batch.trained] = policy.reference_logprobs(of_teacher, temperature=temperature)
    return replace(batch, teacher_logprobs=logprobs)


def forward(policy: Policy, algorithm: Algorithm, batch: PackedBatch, *, temperature: float) -> TokenLogprobs:
    """Run the forward passes that the algorithm's loss needs: of the policy, of the reference and of the teacher."""
    reference = policy.reference_logprobs(batch, temperature=temperature) if algorithm.kl_weight > 0 else None
    if batch.teacher is not None:
        logprobs, entropy, divergence = policy.token_divergence(batch, temperature=temperature)
        return TokenLogprobs(logprobs, entropy, reference, divergence)
    logprobs, entropy = policy.token_logprobs(batch, temperature=temperature)
    divergence = None
    if batch.teacher_logprobs is not None:
        divergence = logprobs.detach() - batch.teacher_logprobs[batch.trained]
    return TokenLogprobs(logprobs, entropy, reference, divergence)
