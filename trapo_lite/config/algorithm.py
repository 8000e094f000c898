"""The `algorithm` section: schedule, losses and weights, and which of them go together."""

import functools
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, Tag, model_validator

from trapo_lite.config.fields import (
    Fraction,
    NonNegative,
    Number,
    Positive,
    PositiveInt,
    Section,
    Whole,
    by_text_or_list,
)
from trapo_lite.core.micro_groups import PRESETS, MicroGroup

if TYPE_CHECKING:
    from trapo_lite.core.algorithm import Algorithm


class MicroGroupSection(Section):
    num_rollouts: PositiveInt
    prefix_ratio: Fraction = 0.0
    help_below: Number | None = 0.0
    trace: Annotated[Whole, Field(ge=0)] | None = 0
    num_trained: Annotated[Whole, Field(ge=0)] | None = None


class AlgorithmSection(Section):
    name: str = "trapo"
    """A label for tables and logs; nothing depends on it."""
    schedule: Annotated[
        Annotated[Literal["paper", "reference_code"], Tag("text")] | Annotated[list[MicroGroupSection], Tag("list")],
        by_text_or_list,
    ] = "reference_code"
    """A preset or a list of micro-groups."""
    prefix_loss: Literal["trust_region", "nll", "dft", "luffy", "none"] = "trust_region"
    alpha: Annotated[Number, Field(gt=0.0, le=1.0)] = 0.1
    """Edge of the trust region, in probability."""
    gamma: Positive = 0.1
    """Shape of LUFFY's loss."""
    prefix_weight: NonNegative = 1.0
    prefix_advantage: bool = False
    """Multiply the prefix loss by the rollout's own advantage (LUFFY) instead of 1."""
    count_expert_in_baseline: bool = True
    """Whether a rollout that is all expert counts in its group's mean."""
    divide_by_std: bool = False
    clip_low: Annotated[Number, Field(gt=0.0, lt=1.0)] | None = None
    clip_high: Positive | None = None
    entropy_weight: NonNegative = 0.0
    kl_weight: NonNegative = 0.0
    normalizer: Literal["tokens", "constant"] = "tokens"
    """tokens: each component is divided by its global token count; constant: by normalizer_tokens x problems."""
    normalizer_tokens: PositiveInt | None = None
    """None: rollout.max_response_tokens, the padded length that the official code divides by."""

    @property
    def micro_groups(self) -> tuple[MicroGroup, ...]:
        if isinstance(self.schedule, str):
            return PRESETS[self.schedule]
        return tuple(MicroGroup(**dict(group)) for group in self.schedule)

    @property
    def group_size(self) -> int:
        return sum(group.num_rollouts for group in self.micro_groups)

    @property
    def uses_experts(self) -> bool:
        return any(_can_be_guided(number, group) for number, group in enumerate(self.micro_groups))

    @property
    def trains_prefixes(self) -> bool:
        """Whether a rollout can come up that carries the prefix loss."""
        groups = enumerate(self.micro_groups)
        return any(_can_be_guided(number, group) and group.num_trained != 0 for number, group in groups)

    @property
    def samples(self) -> bool:
        """False where every rollout is the whole expert trace (SFT): nothing is ever asked of an engine."""
        return any(not (g.prefix_ratio == 1.0 and g.help_below is None) for g in self.micro_groups)

    @model_validator(mode="after")
    def _consistent(self) -> "AlgorithmSection":
        if not self.micro_groups:
            raise ValueError("schedule: has no micro-group, so nothing would be sampled; give at least one")
        for index, group in enumerate(self.micro_groups):
            if group.num_trained is not None and group.num_trained > group.num_rollouts:
                raise ValueError(
                    f"schedule[{index}].num_trained: {group.num_trained} of {group.num_rollouts} rollouts cannot carry "
                    "the prefix loss; lower it"
                )
        if not self.samples and (self.prefix_advantage or self.kl_weight > 0):
            raise ValueError(
                "prefix_advantage, kl_weight: nothing is sampled with this schedule, so there are neither advantages "
                "nor own tokens; remove them"
            )
        if self.has_prefix_loss and not self.trains_prefixes:
            raise ValueError(
                f"prefix_loss: {self.prefix_loss} but no micro-group is ever guided (prefix_ratio > 0 with help_below "
                "above 0 after the first, or null) and trained (num_trained not 0), so it would see no tokens; guide a "
                "micro-group or set prefix_loss: none"
            )
        for index, group in enumerate(self.micro_groups):
            if group.prefix_ratio > 0 and not _can_be_guided(index, group):
                raise ValueError(
                    f"schedule[{index}]: prefix_ratio {group.prefix_ratio:g} can never be used: help_below is "
                    f"{group.help_below:g}{' and no rollout comes before it' if index == 0 else ''}; set "
                    "help_below: null (always help) or prefix_ratio: 0"
                )
        return self

    @property
    def has_prefix_loss(self) -> bool:
        return self.prefix_loss != "none" and self.prefix_weight > 0

    def build(
        self,
        *,
        tis_cap: float | None = None,
        sequence_bound: float | None = None,
        max_response_tokens: int | None = None,
    ) -> "Algorithm":
        """Return what `core` computes with.

        max_response_tokens: what `normalizer: constant` divides by if normalizer_tokens is not given
        """
        from trapo_lite.core import losses  # which imports torch: reading a configuration does without
        from trapo_lite.core.algorithm import Algorithm

        prefix_losses = {
            "trust_region": functools.partial(losses.trust_region_nll, alpha=self.alpha),
            "nll": losses.nll,
            "dft": losses.dft,
            "luffy": functools.partial(losses.luffy_shaped, gamma=self.gamma),
        }
        constant = self.normalizer_tokens or max_response_tokens
        if self.normalizer == "constant" and constant is None:
            raise ValueError("normalizer_tokens: not given, and neither is max_response_tokens; give one of them")
        return Algorithm(
            micro_groups=self.micro_groups,
            prefix_loss=prefix_losses[self.prefix_loss] if self.has_prefix_loss else None,
            prefix_weight=self.prefix_weight if self.has_prefix_loss else 0.0,
            prefix_advantage=self.prefix_advantage,
            count_expert_in_baseline=self.count_expert_in_baseline,
            divide_by_std=self.divide_by_std,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            entropy_weight=self.entropy_weight,
            kl_weight=self.kl_weight,
            normalizer_tokens=constant if self.normalizer == "constant" else None,
            tis_cap=tis_cap,
            sequence_bound=sequence_bound,
        )

    def idle_keys(self) -> dict[str, str]:
        has_whole_trace = any(group.prefix_ratio == 1.0 for group in self.micro_groups)
        conditions = {
            "alpha": (self.has_prefix_loss and self.prefix_loss == "trust_region", "prefix_loss: trust_region"),
            "gamma": (self.has_prefix_loss and self.prefix_loss == "luffy", "prefix_loss: luffy"),
            "prefix_weight": (self.prefix_loss != "none", "a prefix_loss"),
            "prefix_advantage": (self.has_prefix_loss, "a prefix_loss and guided rollouts that train it"),
            "count_expert_in_baseline": (self.samples and has_whole_trace, "own rollouts beside whole expert traces"),
            "divide_by_std": (self.samples, "a schedule that samples"),
            "normalizer_tokens": (self.normalizer == "constant", "normalizer: constant"),
        }
        return {key: condition for key, (acts, condition) in conditions.items() if not acts}


def _can_be_guided(index: int, group: MicroGroup) -> bool:
    """A threshold compares with earlier rollouts, which the first micro-group does not have."""
    helps = group.help_below is None or (group.help_below > 0 and index > 0)
    return group.prefix_ratio > 0 and helps
