"""The teacher of the algorithm section: none, or the base without the adapter, which reads an expert solution."""

import functools
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from trapo_lite.config.choice import Choice
from trapo_lite.config.fields import Positive, PositiveInt, with_one_slot

if TYPE_CHECKING:
    from trapo_lite.core.teacher import Teacher

SOLUTION = "{solution}"


class NoTeacher(Choice):
    """Train without a teacher."""

    type: Literal["none"] = "none"
    needs_vocabulary: ClassVar[bool] = False

    def build(self) -> None:
        return None


class SolutionTeacher(Choice):
    """Train own tokens towards the base without the adapter, which reads problem and expert solution.

    It reads the same completions behind a prompt of its own; it draws nothing and uses no reward.
    """

    type: Literal["solution"] = "solution"
    divergence: Literal["sampled", "reverse_kl"] = "reverse_kl"
    """sampled: a policy gradient with log p_T - log pi of the sampled token as its advantage. reverse_kl:
    KL(pi || p_T) over the whole vocabulary."""
    clip: Positive | None = None
    """Bound of a token's divergence, in nats. sampled: of |log p_T - log pi|. reverse_kl: a token above it has no
    gradient. null: no bound."""
    weight: Positive = 1.0
    """Factor of the teacher's loss."""
    solution_of: Literal["same", "other"] = "same"
    """other: the teacher reads the solution of another problem, which is the control."""
    instruction: Annotated[str, Field(min_length=1)] = (
        f"\n\nReference solution:\n{SOLUTION}\n\nNow solve the problem in your own words."
    )
    """Text behind the problem in the teacher's prompt, with {solution} where the solution goes."""
    max_prompt_tokens: PositiveInt | None = None
    """Most tokens of the teacher's prompt; a problem with a longer one is left out. null: as many as
    problem, solution and instruction may have (data.max_prompt_tokens + rollout.max_response_tokens + its bytes)."""

    @field_validator("instruction")
    @classmethod
    def _has_slot(cls, instruction: str) -> str:
        return with_one_slot(instruction, SOLUTION)

    @property
    def reads(self) -> tuple[str, str, int | None]:
        """Return what the teacher's prompts follow from."""
        return self.solution_of, self.instruction, self.max_prompt_tokens

    @property
    def needs_vocabulary(self) -> bool:
        """Return whether the divergence is over the whole vocabulary."""
        return self.divergence == "reverse_kl"

    def describe(self) -> str:
        """Return the divergence with its parameters, as text for people.

        >>> SolutionTeacher(clip=0.5, solution_of="other").describe()
        'reverse_kl to a teacher with the solution of another problem (clip 0.5)'
        """
        solution = "the solution" if self.solution_of == "same" else "the solution of another problem"
        clip = "" if self.clip is None else f" (clip {self.clip:g})"
        return f"{self.divergence} to a teacher with {solution}{clip}"

    def build(self) -> "Teacher":
        from trapo_lite.core import losses
        from trapo_lite.core.teacher import Teacher

        loss = losses.vocabulary_distillation if self.needs_vocabulary else losses.sampled_distillation
        return Teacher(
            loss=functools.partial(loss, clip=self.clip),
            weight=self.weight,
            clip=self.clip,
            needs_vocabulary=self.needs_vocabulary,
        )
