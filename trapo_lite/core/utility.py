"""Measure whether an expert prefix helps, and decide by that whether it is given and how much it is trained.

TRAPO helps where the policy fails. It does not ask whether help then leads to more success: an expert whose steps the
policy cannot follow is shown again and again. Here two running estimates are kept for each micro-group and source of
problems: the reward of rollouts that were helped, and of rollouts that the schedule would have helped but were not.
These are drawn at random, so that both are of the same kind of problems.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from trapo_lite.core.micro_groups import MicroGroup, micro_group_of_slots, prefix_ratio
from trapo_lite.core.types import Rollout

PRIOR_COUNT = 2.0
"""How many problems the prior stands for; its mean and variance are those of all that was seen."""
WIDE = 0.25
"""Variance before anything is seen: that of rewards 0 and 1, equally often."""

Value = tuple[float, float]
"""A problem's mean reward in a micro-group, or gain, and its weight: one over the probability of what was done."""


@dataclass(frozen=True)
class Arm:
    """An Arm holds the sums of weights, of their squares, of weight * value and weight * value^2; older ones shrink."""

    weight: float = 0.0
    squared_weight: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def after(self, values: Sequence[Value], *, keep: float) -> "Arm":
        """Return the arm after a step with these values. keep: share of the past that still counts."""
        return Arm(
            self.weight * keep + sum(weight for _, weight in values),
            self.squared_weight * keep + sum(weight**2 for _, weight in values),
            self.total * keep + sum(weight * value for value, weight in values),
            self.squares * keep + sum(weight * value**2 for value, weight in values),
        )

    def __add__(self, other: "Arm") -> "Arm":
        return Arm(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def count(self) -> float:
        """Return how many equally weighted values would say as much; without new ones it shrinks by `keep` a step."""
        return self.weight**2 / self.squared_weight if self.squared_weight else 0.0

    @property
    def mean(self) -> float:
        return self.total / self.weight if self.weight else 0.0

    @property
    def variance(self) -> float:
        return max(0.0, self.squares / self.weight - self.mean**2) if self.weight else 0.0


@dataclass(frozen=True)
class UtilityRule:
    """A UtilityRule says how utility is measured and what it decides.

    compares:     control: helped problems with others that help was withheld from at random;
                  same_problem: helped rollouts with the unguided ones of the same problem, which help was given for
                  because they failed
    keep:         share of the past that still counts after a step
    explore:      least probability of helping, and in `control` of withholding help
    gates_help:   whether help is given with a probability by its use (`Measured.use`); otherwise as scheduled
    weighs_loss:  whether its use multiplies the prefix loss
    """

    compares: Literal["control", "same_problem"]
    keep: float
    explore: float
    gates_help: bool
    weighs_loss: bool


@dataclass(frozen=True)
class Measured:
    """A Measured is what is known of one micro-group's help."""

    helped: Arm = field(default_factory=Arm)
    alone: Arm = field(default_factory=Arm)

    def gain(self, rule: UtilityRule) -> float:
        """Return the estimated reward with help less that without."""
        return self._difference(rule)[0]

    def probability(self, rule: UtilityRule) -> float:
        """Return the probability that help raises the reward, by the normal distribution; 0.5 if nothing is known."""
        mean, variance = self._difference(rule)
        return 0.5 * (1.0 + math.erf(mean / math.sqrt(2.0 * variance)))

    def use(self, rule: UtilityRule) -> float:
        """Return twice the probability, at most 1: help is given in full until it is likelier to harm than to help.

        Where neither helped rollouts nor others succeed, nothing speaks against help, and imitation is all there is.
        """
        return min(1.0, 2.0 * self.probability(rule))

    def _difference(self, rule: UtilityRule) -> tuple[float, float]:
        """Return mean and variance of the gain. What little is known of one arm is taken to be as in both."""
        if rule.compares == "same_problem":
            helped = self.helped
            return _shrunk(helped, prior_mean=0.0, prior_variance=helped.variance + helped.mean**2)
        both = self.helped + self.alone
        prior = {"prior_mean": both.mean, "prior_variance": both.variance}
        (helped, first), (alone, second) = (_shrunk(arm, **prior) for arm in (self.helped, self.alone))
        return helped - alone, first + second


def _shrunk(arm: Arm, *, prior_mean: float, prior_variance: float) -> tuple[float, float]:
    """Return the mean of an arm with PRIOR_COUNT values of the prior, and the variance of that mean."""
    share = arm.count / (arm.count + PRIOR_COUNT)
    variance = share * arm.variance + (1.0 - share) * max(prior_variance, WIDE * (arm.count == 0.0))
    mean = share * arm.mean + (1.0 - share) * prior_mean
    return mean, max(variance, 1e-4 * WIDE) / (arm.count + PRIOR_COUNT)


Table = Mapping[tuple[str, int], Measured]
"""Maps (source of problems, index of the micro-group) to what is known."""
Observations = Mapping[tuple[str, int], tuple[Sequence[Value], Sequence[Value]]]
"""Maps the same to the values of a step: with help, and without."""


def is_measured(micro_group: MicroGroup) -> bool:
    """Return whether its help can be measured: it shows a part of a solution, which the policy goes on from."""
    return 0.0 < micro_group.prefix_ratio < 1.0


def observe(
    rule: UtilityRule, micro_groups: Sequence[MicroGroup], rollouts: Sequence[Rollout]
) -> dict[int, tuple[list[Value], list[Value]]]:
    """Return, by index of the micro-group, what a problem's rollouts say: values with help, and without.

    micro_groups: as they were drawn, with their probabilities of help

    Of a micro-group whose threshold asked for no help, nothing is learned. A value is weighted by one over the
    probability of what was done: the policy improves while that probability changes, so without weights the two means
    would be of different steps.
    """
    slots = micro_group_of_slots(micro_groups)
    known = [rollout for rollout in rollouts if rollout.reward is not None]
    unguided = [rollout.reward or 0.0 for rollout in known if not rollout.is_guided]
    observed: dict[int, tuple[list[Value], list[Value]]] = {}
    for index, micro_group in enumerate(micro_groups):
        earlier = [rollout.reward or 0.0 for rollout in rollouts if slots[rollout.slot] < index]
        mine = [rollout for rollout in known if slots[rollout.slot] == index]
        if not is_measured(micro_group) or not mine or prefix_ratio(micro_group, earlier) == 0.0:
            continue
        reward, was_helped = sum(rollout.reward or 0.0 for rollout in mine) / len(mine), mine[0].is_guided
        if rule.compares == "control":
            probability = micro_group.help_probability
            weight = 0.5 / (probability if was_helped else 1.0 - probability)
            observed[index] = ([(reward, weight)], []) if was_helped else ([], [(reward, weight)])
        elif was_helped and unguided:
            observed[index] = ([(reward - sum(unguided) / len(unguided), 1.0)], [])
    return observed


def learn(rule: UtilityRule, table: Table, observations: Observations) -> dict[tuple[str, int], Measured]:
    """Return what is known after a step."""
    return {
        key: Measured(
            helped=table.get(key, Measured()).helped.after(observations.get(key, ((), ()))[0], keep=rule.keep),
            alone=table.get(key, Measured()).alone.after(observations.get(key, ((), ()))[1], keep=rule.keep),
        )
        for key in sorted({*table, *observations})
    }


def adjust(rule: UtilityRule, table: Table, micro_groups: Sequence[MicroGroup], source: str) -> tuple[MicroGroup, ...]:
    """Return the micro-groups with the probability of help and the weight of their prefix losses.

    A whole expert solution leaves nothing to the policy, so its own reward says nothing of its use. It goes by the
    nearest micro-group that shows a part, an earlier one before a later one, and is not shown to explore.
    """
    measured = [index for index, micro_group in enumerate(micro_groups) if is_measured(micro_group)]
    adjusted = []
    for index, micro_group in enumerate(micro_groups):
        if micro_group.prefix_ratio == 0.0 or not measured:
            adjusted.append(micro_group)
            continue
        nearest = min(measured, key=lambda other: (other > index, abs(other - index)))
        use = table.get((source, nearest), Measured()).use(rule)
        least = rule.explore if index == nearest else 0.0
        most = 1.0 - rule.explore if index == nearest and rule.compares == "control" else 1.0
        adjusted.append(
            replace(
                micro_group,
                help_probability=min(max(use, least), most) if rule.gates_help else most,
                prefix_weight=use if rule.weighs_loss else 1.0,
            )
        )
    return tuple(adjusted)
