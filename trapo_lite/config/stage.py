"""A stage of the algorithm is a schedule and parts chosen by name; this module checks that they fit each other."""

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, Tag, field_validator, model_validator

from trapo_lite.config.choice import NAMED
from trapo_lite.config.choices import (
    AdvantageSection,
    BaselineSection,
    Centered,
    CompletionLossSection,
    Constant,
    GroupBaseline,
    NormalizerSection,
    PolicyGradient,
    PrefixLossSection,
    TeacherSection,
    TokenCount,
    TrustRegion,
)
from trapo_lite.config.fields import (
    NonNegative,
    Number,
    Positive,
    Section,
    by_text_or_list,
    with_one_slot,
)
from trapo_lite.config.micro_groups import PREFIX, MicroGroupSection, can_be_guided, can_be_trained
from trapo_lite.config.over_steps import OverSteps, at_step
from trapo_lite.config.teachers import NoTeacher
from trapo_lite.core.micro_groups import PRESETS, MicroGroup

if TYPE_CHECKING:
    from trapo_lite.core.algorithm import Algorithm


def _preset(name: str) -> str:
    if name not in PRESETS:
        raise ValueError(f"found {name!r}; give {' or '.join(PRESETS)}, or a list of micro-groups")
    return name


ScheduleSection = Annotated[
    Annotated[str, AfterValidator(_preset), Tag("text")] | Annotated[list[MicroGroupSection], Tag("list")],
    by_text_or_list,
]


class StageSection(Section):
    """A StageSection chooses the schedule and the parts of the loss, for all steps or those of one stage."""

    schedule: ScheduleSection = "reference_code"
    """Name of a preset, or a list of micro-groups."""
    prefix_loss: Annotated[PrefixLossSection, NAMED] = TrustRegion()
    """Loss of expert tokens."""
    completion_loss: Annotated[CompletionLossSection, NAMED] = PolicyGradient()
    """Loss of the policy's own tokens."""
    teacher: Annotated[TeacherSection, NAMED] = NoTeacher()
    """Whether own tokens are also trained towards the base that reads an expert solution."""
    advantage: Annotated[AdvantageSection, NAMED] = Centered()
    baseline: Annotated[BaselineSection, NAMED] = GroupBaseline()
    """Rollouts that a rollout's reward is compared with."""
    tis_cap: Positive | None = None
    """Cap of the importance weight trainer / sampler of the policy's own tokens; None: no weight (the paper's loss)."""
    sequence_bound: Annotated[Number, Field(gt=1.0)] | None = None
    """Bound of a rollout's ratio trainer / sampler, a geometric mean over its own tokens. A rollout whose ratio is not
    between 1 / bound and bound gets no policy gradient. None: every rollout gets one."""
    prefix_instruction: Annotated[str, Field(min_length=1)] = (
        f"\n\nThis is the beginning of a solution:\n{PREFIX}\n\nGo on from where it ends."
    )
    """Text behind the problem in a prompt that shows a prefix (prefix_in: prompt), with {prefix} where that goes."""
    entropy_weight: NonNegative = 0.0
    kl_weight: NonNegative = 0.0
    normalizer: Annotated[NormalizerSection, NAMED] = TokenCount()
    """Number that the sums over tokens are divided by."""

    @property
    def micro_groups(self) -> tuple[MicroGroup, ...]:
        """Return the schedule, with the largest ratios of all steps."""
        return self.micro_groups_at(None)

    def micro_groups_at(self, step: int | None) -> tuple[MicroGroup, ...]:
        if isinstance(self.schedule, str):
            return PRESETS[self.schedule]
        return tuple(group.build(step) for group in self.schedule)

    @property
    def group_size(self) -> int:
        return sum(group.num_rollouts for group in self.micro_groups)

    @property
    def uses_experts(self) -> bool:
        return any(can_be_guided(index, group) for index, group in enumerate(self.micro_groups))

    @property
    def has_teacher(self) -> bool:
        return self.teacher.type != "none"

    @property
    def trains_prefixes(self) -> bool:
        """Return whether a rollout may carry the prefix loss."""
        groups = enumerate(self.micro_groups)
        return any(can_be_trained(index, group) for index, group in groups)

    @property
    def samples(self) -> bool:
        """Return whether anything is sampled; in SFT every rollout is a whole expert solution, so nothing is."""
        return self.num_sampled > 0

    @property
    def num_sampled(self) -> int:
        """Return how many rollouts of a problem may be sampled: all but those that are always a whole solution."""
        groups = zip(self.micro_groups, self._ratios, strict=True)
        never = [min(ratios) == 1.0 and (g.help_below is None or g.otherwise == "skip") for g, ratios in groups]
        return sum(g.num_rollouts for g, is_expert in zip(self.micro_groups, never, strict=True) if not is_expert)

    @property
    def shows_parts(self) -> bool:
        """Return whether a micro-group may show a part of an expert solution."""
        return any(0.0 < ratio < 1.0 or min(ratios) < ratio for ratios in self._ratios for ratio in ratios)

    @property
    def _ratios(self) -> list[list[float]]:
        """Return, for each micro-group, the ratios that it may have."""
        if isinstance(self.schedule, str):
            return [[group.prefix_ratio] for group in self.micro_groups]
        return [group.ratios for group in self.schedule]

    @property
    def _most_trained(self) -> int:
        """Return how many rollouts of a problem may carry the prefix loss."""
        guided = [group for index, group in enumerate(self.micro_groups) if can_be_guided(index, group)]
        return sum(group.num_rollouts if group.num_trained is None else group.num_trained for group in guided)

    @property
    def weights_over_steps(self) -> list[str]:
        """Return the losses whose weight is a course over steps."""
        weights = {"prefix": self.prefix_loss.weight, "completion": self.completion_loss.weight}
        return [part for part, weight in weights.items() if isinstance(weight, OverSteps)]

    @field_validator("prefix_instruction")
    @classmethod
    def _has_a_place(cls, instruction: str) -> str:
        return with_one_slot(instruction, PREFIX)

    @model_validator(mode="after")
    def _consistent(self) -> "StageSection":
        if not self.micro_groups:
            raise ValueError("schedule: has no micro-group, so nothing would be sampled; give at least one")
        for index, group in enumerate(self.micro_groups):
            if group.num_trained is not None and group.num_trained > group.num_rollouts:
                raise ValueError(
                    f"schedule[{index}].num_trained: {group.num_trained} of {group.num_rollouts} rollouts cannot carry "
                    "the prefix loss; lower it"
                )
            if group.prefix_ratio > 0 and not can_be_guided(index, group):
                raise ValueError(
                    f"schedule[{index}]: prefix_ratio {group.prefix_ratio:g} can never be used: help_below is "
                    f"{group.help_below:g}{' and no rollout comes before it' if index == 0 else ''}; set "
                    "help_below: null (always help) or prefix_ratio: 0"
                )
        if not self.samples and self.prefix_loss.times_advantage:
            raise ValueError(
                "prefix_loss.times_advantage: nothing is sampled with this schedule, so every advantage is 0 and "
                "nothing would be trained; set it to false"
            )
        if self.prefix_loss.type != "none" and not self.trains_prefixes:
            raise ValueError(
                f"prefix_loss: {self.prefix_loss.type}, but no answer begins with a prefix that is trained (one in the "
                "prompt never is, nor one with num_trained: 0); guide a micro-group, or set prefix_loss: none"
            )
        if self.samples and {self.prefix_loss.type, self.completion_loss.type, self.teacher.type} == {"none"}:
            raise ValueError(
                "completion_loss: none, and neither a prefix loss nor a teacher, so nothing would be trained; set "
                "completion_loss: policy_gradient or teacher: solution"
            )
        is_without_expert = isinstance(self.baseline, GroupBaseline) and not self.baseline.count_expert
        if is_without_expert and not any(group.prefix_ratio == 1.0 for group in self.micro_groups):
            raise ValueError(
                "baseline.count_expert: no rollout of this schedule is all expert (prefix_ratio: 1), so there is none "
                "to leave out; remove it"
            )
        for index, group in enumerate(self.micro_groups):
            if group.otherwise == "skip" and index + 1 < len(self.micro_groups):
                raise ValueError(
                    f"schedule[{index}].otherwise: skip is possible in the last micro-group only, because later ones "
                    "compare with the mean of all earlier rollouts; move it to the end"
                )
            if group.replaces_rl and self.has_teacher:
                raise ValueError(
                    f"schedule[{index}].replaces_rl: leaves own tokens untrained, which a teacher trains in every "
                    "problem; set teacher: none or replaces_rl: false"
                )
            for key in ("otherwise", "replaces_rl", "prefix_in"):
                default = MicroGroupSection.model_fields[key].default
                if group.prefix_ratio == 0.0 and getattr(group, key) != default:
                    raise ValueError(
                        f"schedule[{index}].{key}: has no effect, because the micro-group never helps (prefix_ratio is "
                        "0); remove it or set prefix_ratio"
                    )
            if group.replaces_rl and (self.prefix_loss.type == "none" or self.prefix_loss.times_advantage):
                raise ValueError(
                    f"schedule[{index}].replaces_rl: where it helps, own tokens are not trained, and with this prefix "
                    "loss nothing would be; set prefix_loss: nll, or replaces_rl: false"
                )
        if self.prefix_loss.type != "none" and self.prefix_loss.top_entropy is not None and self._most_trained > 1:
            raise ValueError(
                f"prefix_loss.top_entropy: {self._most_trained} rollouts of a problem may carry the prefix loss, and "
                "tokens are chosen in one prefix; set num_trained so that one does, or top_entropy: null"
            )
        return self

    def build(self, step: int = 0, *, max_response_tokens: int | None = None) -> "Algorithm":
        """Return the Algorithm that `core` computes with when `step` updates are done.

        max_response_tokens: divisor of `normalizer: constant` if it has no num_tokens
        """
        from trapo_lite.core.algorithm import Algorithm  # imports torch, which reading a configuration must not need

        normalizer_tokens = None
        if isinstance(self.normalizer, Constant):
            normalizer_tokens = self.normalizer.num_tokens or max_response_tokens
            if normalizer_tokens is None:
                raise ValueError("normalizer.num_tokens: not given, nor is max_response_tokens; give one of them")
        return Algorithm(
            micro_groups=self.micro_groups_at(step),
            prefix_loss=self.prefix_loss.build(),
            prefix_weight=at_step(self.prefix_loss.weight, step),
            times_advantage=self.prefix_loss.times_advantage,
            top_entropy=self.prefix_loss.top_entropy,
            completion_loss=self.completion_loss.build(),
            completion_weight=at_step(self.completion_loss.weight, step),
            advantage=self.advantage.build(),
            baseline=self.baseline.build(),
            entropy_weight=self.entropy_weight,
            kl_weight=self.kl_weight,
            normalizer_tokens=normalizer_tokens,
            tis_cap=self.tis_cap,
            sequence_bound=self.sequence_bound,
            teacher=self.teacher.build(),
        )

    def idle_keys(self) -> dict[str, str]:
        shows_prefixes = any(group.prefix_in == "prompt" for group in self.micro_groups)
        return self._idle_losses() | ({} if shows_prefixes else {"prefix_instruction": "prefix_in: prompt"})

    def _idle_losses(self) -> dict[str, str]:
        if not self.samples:
            of_advantages, of_own_losses = ("advantage", "baseline"), ("tis_cap", "sequence_bound")
            keys_of_sampled_tokens = ("completion_loss", "teacher", *of_advantages, *of_own_losses, "kl_weight")
            return dict.fromkeys(keys_of_sampled_tokens, "a schedule that samples")
        if self.completion_loss.type != "none":
            return {}
        idle: dict[str, str] = {}
        if not self.has_teacher:
            idle |= dict.fromkeys(("tis_cap", "sequence_bound"), "a loss of own tokens")
        if not self.prefix_loss.times_advantage:
            idle |= dict.fromkeys(("advantage", "baseline"), "a completion_loss")
        return idle
