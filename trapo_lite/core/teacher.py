"""A teacher is the base without the adapter, which reads an expert solution and judges the policy's own tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from trapo_lite.core.tree import PackedBatch
from trapo_lite.core.types import Group

TeacherLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps logprobs, old_logprobs and divergence to a loss per token of the same shape."""


@dataclass(frozen=True)
class Teacher:
    """A Teacher says how own tokens are trained towards the base that reads an expert solution.

    needs_vocabulary: the divergence is KL(policy || teacher) over the whole vocabulary; otherwise it is estimated by
                      the sampled token, as log pi - log p_T
    clip:             bound of a token's divergence in the loss; None: none
    """

    loss: TeacherLoss
    weight: float
    clip: float | None
    needs_vocabulary: bool

    def clips(self, divergence: Tensor) -> Tensor:
        """Return, per token, whether the bound acts on its divergence."""
        return divergence.abs() > (math.inf if self.clip is None else self.clip)


def as_the_teacher_reads(groups: Sequence[Group]) -> list[Group]:
    """Return the same rollouts behind the teacher's prompts. Raises ValueError if a problem has none."""
    for group in groups:
        if not all(rollout.teacher_prompt_ids for rollout in group.rollouts):
            raise ValueError(f"teacher: problem {group.rollouts[0].problem_id} has no prompt for the teacher")
    return [
        replace(group, rollouts=tuple(replace(r, prompt_ids=r.teacher_prompt_ids) for r in group.rollouts))
        for group in groups
    ]


def require_same_trained(batch: PackedBatch, teacher: PackedBatch) -> None:
    """Raise ValueError unless both batches have the same trained tokens, each at the same number from 0 to K."""
    trained, of_teacher = batch.input_ids[batch.trained], teacher.input_ids[teacher.trained]
    if trained.shape != of_teacher.shape or not bool((trained == of_teacher).all()):
        raise ValueError(
            f"teacher: its tree has {len(of_teacher)} trained tokens, which are not the policy's {len(trained)} in the "
            "same order"
        )
