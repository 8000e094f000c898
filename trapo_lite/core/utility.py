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
"""How many rewards the prior stands for: of mean and standard deviation 0.5, or gains of mean 0."""


@dataclass(frozen=True)
class Arm:
    """An Arm holds the number of rewards, their sum and the sum of their squares; older ones count less."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def after(self, values: Sequence[float], *, keep: float) -> "Arm":
        """Return the arm after a step with these rewards. keep: share of the past that still counts."""
        return Arm(
            self.count * keep + len(values),
            self.total * keep + sum(values),
            self.squares * keep + sum(value * value for value in values),
        )

    def mean_and_variance(self, *, prior_mean: float) -> tuple[float, float]:
        """Return the mean and the variance of that mean, with a prior of standard deviation 0.5."""
        count = self.count + PRIOR_COUNT
        mean = (self.total + PRIOR_COUNT * prior_mean) / count
        squares = self.squares + PRIOR_COUNT * (prior_mean**2 + 0.25)
        return mean, max(squares / count - mean**2, 1e-6) / count


@dataclass(frozen=True)
class UtilityRule:
    """A UtilityRule says how utility is measured and what it decides.

    compares:     control: helped rollouts with those of other problems that help was withheld from at random;
                  problem: helped rollouts with the unguided ones of the same problem, which help was given for because
                  they failed
    keep:         share of the past that still counts after a step
    explore:      least probability of helping, and in `control` of withholding help
    gates_help:   whether help is given with the probability that it is useful; otherwise it is given as scheduled
    weighs_loss:  whether that probability multiplies the prefix loss
    """

    compares: Literal["control", "problem"]
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

    def _difference(self, rule: UtilityRule) -> tuple[float, float]:
        if rule.compares == "problem":
            return self.helped.mean_and_variance(prior_mean=0.0)
        helped, alone = (arm.mean_and_variance(prior_mean=0.5) for arm in (self.helped, self.alone))
        return helped[0] - alone[0], helped[1] + alone[1]


Table = Mapping[tuple[str, int], Measured]
"""Maps (source of problems, index of the micro-group) to what is known."""
Observations = Mapping[tuple[str, int], tuple[Sequence[float], Sequence[float]]]
"""Maps the same to the values of a step: of helped rollouts, and of rollouts without help."""


def is_measured(micro_group: MicroGroup) -> bool:
    """Return whether its help can be measured: it shows a part of a solution, which the policy goes on from."""
    return 0.0 < micro_group.prefix_ratio < 1.0


def observe(
    rule: UtilityRule, micro_groups: Sequence[MicroGroup], rollouts: Sequence[Rollout]
) -> dict[int, tuple[list[float], list[float]]]:
    """Return, by index of the micro-group, what a problem's rollouts say: values with help, and without.

    Of a micro-group whose threshold asked for no help, nothing is learned.
    """
    slots = micro_group_of_slots(micro_groups)
    known = [rollout for rollout in rollouts if rollout.reward is not None]
    unguided = [rollout.reward or 0.0 for rollout in known if not rollout.is_guided]
    found = {}
    for index in (index for index, micro_group in enumerate(micro_groups) if is_measured(micro_group)):
        earlier = [rollout.reward or 0.0 for rollout in rollouts if slots[rollout.slot] < index]
        if prefix_ratio(micro_groups[index], earlier) == 0.0:
            continue
        mine = [rollout for rollout in known if slots[rollout.slot] == index]
        helped = [rollout.reward or 0.0 for rollout in mine if rollout.is_guided]
        alone = [rollout.reward or 0.0 for rollout in mine if not rollout.is_guided]
        if rule.compares == "problem":
            base = sum(unguided) / len(unguided) if unguided else None
            found[index] = ([] if base is None else [reward - base for reward in helped], [])
        else:
            found[index] = (helped, alone)
    return found


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
    nearest micro-group before it that shows a part, or by the first one.
    """
    measured = [index for index, micro_group in enumerate(micro_groups) if is_measured(micro_group)]
    adjusted = []
    for index, micro_group in enumerate(micro_groups):
        if micro_group.prefix_ratio == 0.0:
            adjusted.append(micro_group)
            continue
        by = max((other for other in measured if other <= index), default=measured[0])
        probability = table.get((source, by), Measured()).probability(rule)
        most = 1.0 - rule.explore if rule.compares == "control" and index in measured else 1.0
        given = min(max(probability, rule.explore), most)
        adjusted.append(
            replace(
                micro_group,
                help_probability=given if rule.gates_help else most,
                prefix_weight=probability if rule.weighs_loss else 1.0,
            )
        )
    return tuple(adjusted)
