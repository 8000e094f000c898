"""The algorithm section chooses its parts by name; here is one union of types for each kind of part.

A type is a class: its `type` is the name, its other fields are the parameters, and `build` returns what `core`
computes with. A bare name in a file stands for the type with its defaults. `build` imports what it needs of `core` when
it is called, because reading a configuration does without torch. To add a type: docs/add_an_algorithm.md.
"""

import functools
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from trapo_lite.config.fields import Number, Positive, PositiveInt, Section

if TYPE_CHECKING:
    from trapo_lite.core import algorithm as core


class Choice(Section):
    """A Choice is one type of a kind, with its parameters."""

    type: str

    def describe(self) -> str:
        """Return the name with its parameters, for people.

        >>> TrustRegion().describe(), Nll().describe()
        ('trust_region (alpha 0.1)', 'nll')
        """
        parameters = [f"{key} {value}" for key, value in self if key not in ("type", "weight", "times_advantage")]
        return f"{self.type} ({', '.join(parameters)})" if parameters else self.type


def by_name(value: Any) -> Any:
    """Return the type that a bare name stands for; anything else as it is."""
    return {"type": value} if isinstance(value, str) else value


class NoPrefixLoss(Choice):
    """Expert tokens are not trained."""

    type: Literal["none"] = "none"
    weight: ClassVar[float] = 0.0
    times_advantage: ClassVar[bool] = False

    def build(self) -> None:
        return None


class TrainedPrefix(Choice):
    """What all prefix losses have."""

    weight: Positive = 1.0
    """The prefix loss is multiplied by it."""
    times_advantage: bool = False
    """Multiply the prefix loss by the rollout's own advantage too."""


class TrustRegion(TrainedPrefix):
    type: Literal["trust_region"] = "trust_region"
    alpha: Annotated[Number, Field(gt=0.0, le=1.0)] = 0.1
    """Edge of the trust region, in probability."""

    def build(self) -> "core.PrefixLoss":
        from trapo_lite.core.losses import trust_region_nll

        return functools.partial(trust_region_nll, alpha=self.alpha)


class Nll(TrainedPrefix):
    type: Literal["nll"] = "nll"

    def build(self) -> "core.PrefixLoss":
        from trapo_lite.core.losses import nll

        return nll


class Dft(TrainedPrefix):
    type: Literal["dft"] = "dft"

    def build(self) -> "core.PrefixLoss":
        from trapo_lite.core.losses import dft

        return dft


class Luffy(TrainedPrefix):
    type: Literal["luffy"] = "luffy"
    times_advantage: bool = True
    gamma: Positive = 0.1
    """Tokens of this probability are pulled hardest."""

    def build(self) -> "core.PrefixLoss":
        from trapo_lite.core.losses import luffy_shaped

        return functools.partial(luffy_shaped, gamma=self.gamma)


class OwnTokens(Choice):
    """What all completion losses have."""

    needs_updates: ClassVar[bool] = False
    """Whether it acts only where a batch is used for several updates: in the first, the ratio is 1."""


class PolicyGradient(OwnTokens):
    type: Literal["policy_gradient"] = "policy_gradient"

    def build(self) -> "core.CompletionLoss":
        from trapo_lite.core.losses import clipped_policy_gradient

        return functools.partial(clipped_policy_gradient, clip_low=None, clip_high=None)


class PpoClip(OwnTokens):
    type: Literal["ppo_clip"] = "ppo_clip"
    needs_updates: ClassVar[bool] = True
    clip_low: Annotated[Number, Field(gt=0.0, lt=1.0)] | None = 0.2
    """The ratio acts down to 1 - clip_low; null: without a lower bound."""
    clip_high: Positive | None = 0.2
    """The ratio acts up to 1 + clip_high; null: without an upper bound."""

    @model_validator(mode="after")
    def _clips(self) -> "PpoClip":
        if self.clip_low is None and self.clip_high is None:
            raise ValueError("clip_low, clip_high: without either nothing is clipped; use type: policy_gradient")
        return self

    def build(self) -> "core.CompletionLoss":
        from trapo_lite.core.losses import clipped_policy_gradient

        return functools.partial(clipped_policy_gradient, clip_low=self.clip_low, clip_high=self.clip_high)


class Cispo(OwnTokens):
    type: Literal["cispo"] = "cispo"
    needs_updates: ClassVar[bool] = True
    ratio_cap: Annotated[Number, Field(ge=1.0)] = 1.28
    """Largest weight of a token; the paper gives no value, this is DAPO's upper bound."""

    def build(self) -> "core.CompletionLoss":
        from trapo_lite.core.losses import cispo

        return functools.partial(cispo, ratio_cap=self.ratio_cap)


class Centered(Choice):
    """A = R - mean(R): TRAPO, Dr. GRPO."""

    type: Literal["centered"] = "centered"

    def build(self) -> "core.Advantage":
        from trapo_lite.core.advantage import group_advantages

        return functools.partial(group_advantages, divide_by_std=False)


class Standardized(Choice):
    """A = (R - mean(R)) / std(R): GRPO."""

    type: Literal["standardized"] = "standardized"

    def build(self) -> "core.Advantage":
        from trapo_lite.core.advantage import group_advantages

        return functools.partial(group_advantages, divide_by_std=True)


class GroupBaseline(Choice):
    """Mean and standard deviation are those of all rollouts of the problem."""

    type: Literal["group"] = "group"
    count_expert: bool = True
    """Whether a rollout that is all expert counts in them."""

    def build(self) -> "core.Baseline":
        from trapo_lite.core.advantage import whole_group

        return functools.partial(whole_group, count_expert=self.count_expert)


class MicroGroupBaseline(Choice):
    """Mean and standard deviation are those of the rollouts with the same prefix."""

    type: Literal["micro_group"] = "micro_group"

    def build(self) -> "core.Baseline":
        from trapo_lite.core.advantage import same_prefix

        return same_prefix


class TokenCount(Choice):
    """Each component of the loss is divided by its global number of tokens."""

    type: Literal["tokens"] = "tokens"


class Constant(Choice):
    """Each component of the loss is divided by the same number of tokens for each problem."""

    type: Literal["constant"] = "constant"
    num_tokens: PositiveInt | None = None
    """None: rollout.max_response_tokens, the padded length that the official code divides by."""


# The names that a configuration may give, by kind.
PrefixLoss = Annotated[NoPrefixLoss | TrustRegion | Nll | Dft | Luffy, Field(discriminator="type")]
CompletionLoss = Annotated[PolicyGradient | PpoClip | Cispo, Field(discriminator="type")]
Advantage = Annotated[Centered | Standardized, Field(discriminator="type")]
Baseline = Annotated[GroupBaseline | MicroGroupBaseline, Field(discriminator="type")]
Normalizer = Annotated[TokenCount | Constant, Field(discriminator="type")]

NAMED = BeforeValidator(by_name)
