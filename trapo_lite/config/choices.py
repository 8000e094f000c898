"""The algorithm section chooses its parts by name; this module has one union of types for each kind of part.

A type is a class: its `type` is the name, its other fields are the parameters, and `build` returns the function that
`core` computes with. A name without parameters in a file stands for the type with its defaults. `build` imports from
`core` only when it is called, because reading a configuration must not need torch. To add a type:
docs/add_an_algorithm.md.
"""

import functools
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from trapo_lite.config.choice import Choice
from trapo_lite.config.fields import Number, Positive, PositiveInt
from trapo_lite.config.over_steps import Weight
from trapo_lite.config.teachers import NoTeacher, SolutionTeacher
from trapo_lite.config.utilities import Control, NoUtility, SameProblem

if TYPE_CHECKING:
    from trapo_lite.core import algorithm as core


class NoPrefixLoss(Choice):
    """Leave expert tokens untrained."""

    type: Literal["none"] = "none"
    weight: ClassVar[float] = 0.0
    times_advantage: ClassVar[bool] = False
    top_entropy: ClassVar[float | None] = None

    def build(self) -> None:
        return None


class PrefixLossChoice(Choice):
    """A PrefixLossChoice is a prefix loss that trains expert tokens."""

    weight: Weight = 1.0
    """Factor of the prefix loss, or its course over the steps."""
    times_advantage: bool = False
    """Whether the prefix loss is also multiplied by the rollout's advantage."""
    top_entropy: Annotated[Number, Field(gt=0.0, lt=1.0)] | None = None
    """Share of a prefix's tokens that are trained: those at which the policy's entropy is highest; None: all."""


class TrustRegion(PrefixLossChoice):
    """Train expert tokens inside a trust region: TRAPO's prefix loss."""

    type: Literal["trust_region"] = "trust_region"
    alpha: Annotated[Number, Field(gt=0.0, le=1.0)] = 0.1
    """Edge of the trust region, in probability."""

    def build(self) -> "core.PrefixLoss":
        from trapo_lite.core.losses import trust_region_nll

        return functools.partial(trust_region_nll, alpha=self.alpha)


class Nll(PrefixLossChoice):
    """Train every expert token alike, by its negative log-likelihood: plain supervised fine-tuning."""

    type: Literal["nll"] = "nll"

    def build(self) -> "core.PrefixLoss":
        from trapo_lite.core.losses import nll

        return nll


class Dft(PrefixLossChoice):
    """Weigh each expert token by its probability, as dynamic fine-tuning (DFT) does."""

    type: Literal["dft"] = "dft"

    def build(self) -> "core.PrefixLoss":
        from trapo_lite.core.losses import dft

        return dft


class ChordPhi(PrefixLossChoice):
    """Weigh each expert token by p (1 - p), as CHORD-phi does."""

    type: Literal["chord_phi"] = "chord_phi"

    def build(self) -> "core.PrefixLoss":
        from trapo_lite.core.losses import chord_phi

        return chord_phi


class Luffy(PrefixLossChoice):
    """Train expert tokens by LUFFY's shaped loss, multiplied by the advantage."""

    type: Literal["luffy"] = "luffy"
    times_advantage: bool = True
    gamma: Positive = 0.1
    """Probability at which a token's gradient is largest."""

    def build(self) -> "core.PrefixLoss":
        from trapo_lite.core.losses import luffy_shaped

        return functools.partial(luffy_shaped, gamma=self.gamma)


class NoCompletionLoss(Choice):
    """Leave own tokens to the teacher or untrained: the reward does not train."""

    type: Literal["none"] = "none"
    weight: ClassVar[float] = 0.0
    needs_updates: ClassVar[bool] = False

    def build(self) -> None:
        return None


class CompletionLossChoice(Choice):
    """A CompletionLossChoice is a completion loss: it trains the policy's own tokens."""

    weight: Weight = 1.0
    """Factor of the completion loss, or its course over the steps."""
    needs_updates: ClassVar[bool] = False
    """Whether the loss has an effect only with several updates per batch; the ratio is 1 in the first."""


class PolicyGradient(CompletionLossChoice):
    """Use the plain policy gradient; the ratio is not clipped."""

    type: Literal["policy_gradient"] = "policy_gradient"

    def build(self) -> "core.CompletionLoss":
        from trapo_lite.core.losses import clipped_policy_gradient

        return functools.partial(clipped_policy_gradient, clip_low=None, clip_high=None)


class PpoClip(CompletionLossChoice):
    """Clip the ratio as PPO does."""

    type: Literal["ppo_clip"] = "ppo_clip"
    needs_updates: ClassVar[bool] = True
    clip_low: Annotated[Number, Field(gt=0.0, lt=1.0)] | None = 0.2
    """The ratio is clipped below 1 - clip_low; null: no lower bound."""
    clip_high: Positive | None = 0.2
    """The ratio is clipped above 1 + clip_high; null: no upper bound."""

    @model_validator(mode="after")
    def _clips(self) -> "PpoClip":
        if self.clip_low is None and self.clip_high is None:
            raise ValueError("clip_low, clip_high: without either nothing is clipped; use type: policy_gradient")
        return self

    def build(self) -> "core.CompletionLoss":
        from trapo_lite.core.losses import clipped_policy_gradient

        return functools.partial(clipped_policy_gradient, clip_low=self.clip_low, clip_high=self.clip_high)


class Cispo(CompletionLossChoice):
    """Cap the ratio, and keep every token's gradient, as CISPO does."""

    type: Literal["cispo"] = "cispo"
    needs_updates: ClassVar[bool] = True
    ratio_cap: Annotated[Number, Field(ge=1.0)] = 1.28
    """Largest weight of a token. The paper gives no value; 1.28 is DAPO's upper bound."""

    def build(self) -> "core.CompletionLoss":
        from trapo_lite.core.losses import cispo

        return functools.partial(cispo, ratio_cap=self.ratio_cap)


class Centered(Choice):
    """A Centered advantage is A = R - mean(R), as in TRAPO and Dr. GRPO."""

    type: Literal["centered"] = "centered"

    def build(self) -> "core.Advantage":
        from trapo_lite.core.advantage import group_advantages

        return functools.partial(group_advantages, divide_by_std=False)


class Standardized(Choice):
    """A Standardized advantage is A = (R - mean(R)) / std(R), as in GRPO."""

    type: Literal["standardized"] = "standardized"

    def build(self) -> "core.Advantage":
        from trapo_lite.core.advantage import group_advantages

        return functools.partial(group_advantages, divide_by_std=True)


class GroupBaseline(Choice):
    """A GroupBaseline takes mean and standard deviation over all rollouts of the problem."""

    type: Literal["group"] = "group"
    count_expert: bool = True
    """Whether a rollout that is a whole expert solution counts in mean and standard deviation."""

    def build(self) -> "core.Baseline":
        from trapo_lite.core.advantage import whole_group

        return functools.partial(whole_group, count_expert=self.count_expert)


class MicroGroupBaseline(Choice):
    """A MicroGroupBaseline takes mean and standard deviation over the rollouts with the same prefix."""

    type: Literal["micro_group"] = "micro_group"

    def build(self) -> "core.Baseline":
        from trapo_lite.core.advantage import same_prefix

        return same_prefix


class TokenCount(Choice):
    """A TokenCount divides each component of the loss by its global number of tokens."""

    type: Literal["tokens"] = "tokens"


class Constant(Choice):
    """A Constant divides each component of the loss by a fixed number of tokens per problem."""

    type: Literal["constant"] = "constant"
    num_tokens: PositiveInt | None = None
    """Tokens per problem; None: rollout.max_response_tokens, the padded length that the official code divides by."""


# The types that a configuration may name, one union for each part of the algorithm.
PrefixLossSection = Annotated[NoPrefixLoss | TrustRegion | Nll | Dft | ChordPhi | Luffy, Field(discriminator="type")]
CompletionLossSection = Annotated[PolicyGradient | PpoClip | Cispo | NoCompletionLoss, Field(discriminator="type")]
AdvantageSection = Annotated[Centered | Standardized, Field(discriminator="type")]
TeacherSection = Annotated[NoTeacher | SolutionTeacher, Field(discriminator="type")]
BaselineSection = Annotated[GroupBaseline | MicroGroupBaseline, Field(discriminator="type")]
UtilitySection = Annotated[NoUtility | Control | SameProblem, Field(discriminator="type")]
NormalizerSection = Annotated[TokenCount | Constant, Field(discriminator="type")]

KINDS = {
    "prefix_loss": PrefixLossSection,
    "completion_loss": CompletionLossSection,
    "teacher": TeacherSection,
    "advantage": AdvantageSection,
    "baseline": BaselineSection,
    "normalizer": NormalizerSection,
    "utility": UtilitySection,
}
FIELDS_BY_TYPE = {
    (key, choice.model_fields["type"].default): choice.model_fields
    for key, kind in KINDS.items()
    for choice in get_args(get_args(kind)[0])
}
"""Fields of each type by (key of the algorithm section, name of the type)."""
