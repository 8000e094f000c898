"""Define the options of a micro-group, and whether its rollouts can ever be guided."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trapo_lite.config.fields import Number, PositiveInt, Section, Whole
from trapo_lite.config.over_steps import OverSteps, Ratio, at_step
from trapo_lite.core.micro_groups import MicroGroup

PREFIX = "{prefix}"


class MicroGroupSection(Section):
    """A MicroGroupSection is one micro-group of a schedule (`core.micro_groups.MicroGroup`)."""

    num_rollouts: PositiveInt
    prefix_ratio: Ratio = 0.0
    """Share of the expert solution; a list: one of these is drawn for each problem and step; or its course."""
    help_below: Number | None = 0.0
    trace: Annotated[Whole, Field(ge=0)] | None = 0
    num_trained: Annotated[Whole, Field(ge=0)] | None = None
    otherwise: Literal["unguided", "skip"] = "unguided"
    """What becomes of its rollouts where it does not help: they are drawn without a prefix, or not at all."""
    prefix_in: Literal["answer", "prompt"] = "answer"
    """Where the prefix stands: the answer begins with it, or the prompt shows it (prefix_instruction)."""
    replaces_rl: bool = False
    """Where it helps, the problem's own tokens are not trained."""

    @model_validator(mode="after")
    def _is_a_share(self) -> "MicroGroupSection":
        if max(self.ratios) > 1.0:
            raise ValueError(f"prefix_ratio.values: found {self.ratios}; give shares from 0 to 1")
        if self.prefix_in == "prompt" and self.build(None).prefix_ratio == 1.0:
            raise ValueError(
                "prefix_in: prompt, with prefix_ratio 1: the prompt would show the whole solution and its answer; "
                "lower prefix_ratio"
            )
        return self

    @property
    def ratios(self) -> list[float]:
        """Return the ratios that are drawn from, or those that a course connects."""
        ratio = self.prefix_ratio
        return ratio.values if isinstance(ratio, OverSteps) else ratio if isinstance(ratio, list) else [ratio]

    def build(self, step: int | None) -> MicroGroup:
        """Return the micro-group of a step; None: with the largest ratio of all steps."""
        ratio, drawn = self.prefix_ratio, ()
        if isinstance(ratio, list):
            ratio, drawn = max(ratio), tuple(ratio)
        ratio = max(self.ratios) if step is None else at_step(ratio, step)
        return MicroGroup(**dict(self) | {"prefix_ratio": ratio, "drawn_from": drawn})


def can_be_guided(index: int, group: MicroGroup) -> bool:
    """Return whether the micro-group of this index can ever help."""
    # A threshold compares with earlier rollouts, which the first micro-group does not have.
    helps = group.help_below is None or (group.help_below > 0 and index > 0)
    return group.prefix_ratio > 0 and helps


def can_be_trained(index: int, group: MicroGroup) -> bool:
    """Return whether a rollout of the micro-group may carry the prefix loss."""
    return can_be_guided(index, group) and group.num_trained != 0 and group.prefix_in == "answer"
