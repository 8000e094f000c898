"""The use of help: what is observed, how sure it is, and what it decides; in made-up worlds whose truth is known."""

import random
from dataclasses import replace

import numpy as np
import pytest
from builders import rollout

from trapo_lite.config import load_config
from trapo_lite.config.algorithm import AlgorithmSection
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.micro_groups import PRESETS, MicroGroup
from trapo_lite.core.types import Rollout
from trapo_lite.core.utility import Arm, Measured, UtilityRule, adjust, learn, observe

CONTROL = UtilityRule("control", keep=0.9, explore=0.1, gates_help=True, weighs_loss=True)
SAME_PROBLEM = UtilityRule("problem", keep=0.9, explore=0.1, gates_help=True, weighs_loss=True)
RULES = (CONTROL, SAME_PROBLEM)
CODE = PRESETS["reference_code"]
WHOLE = "[{num_rollouts: 1, prefix_ratio: 1.0, help_below: null}]"


def test_nothing_known_is_even_and_much_known_is_sure() -> None:
    assert Measured().probability(CONTROL) == Measured().probability(SAME_PROBLEM) == 0.5
    good, bad = Arm().after([1.0] * 90 + [0.0] * 10, keep=0.9), Arm().after([1.0] * 10 + [0.0] * 90, keep=0.9)
    assert Measured(good, bad).probability(CONTROL) > 0.999 > 0.001 > Measured(bad, good).probability(CONTROL)
    assert Measured(good, bad).gain(CONTROL) == pytest.approx(0.8, abs=0.02)


def test_the_probability_is_that_of_two_normal_means() -> None:
    helped, alone = [1.0] * 6 + [0.0] * 4, [1.0] * 9 + [0.0] * 11
    measured = Measured(Arm().after(helped, keep=0.0), Arm().after(alone, keep=0.0))
    rng = np.random.default_rng(0)
    draws = []
    for rewards in (helped, alone):  # with the prior's two rewards, 0 and 1
        known = np.array([*rewards, 0.0, 1.0])
        draws.append(rng.normal(known.mean(), known.std() / len(known) ** 0.5, size=400_000))
    assert measured.probability(CONTROL) == pytest.approx((draws[0] > draws[1]).mean(), abs=0.003)


def test_the_past_counts_less_with_every_step_until_nothing_is_known() -> None:
    arm = Arm().after([1.0, 1.0], keep=0.5).after([0.0], keep=0.5)
    assert (arm.count, arm.total, arm.squares) == (2.0, 1.0, 1.0)
    sure = {("a", 1): Measured(Arm(100.0, 90.0, 90.0), Arm(100.0, 10.0, 10.0))}
    table = sure
    for _ in range(100):
        table = learn(CONTROL, table, {})
    assert table["a", 1].probability(CONTROL) == pytest.approx(0.5, abs=0.01)


def group_of(rewards: str, guided: str) -> list[Rollout]:
    """Rollouts of the code's schedule: rewards 0 and 1, and g where one was guided."""
    return [
        rollout([1], [20] if flag == "g" else [], [10], reward=float(reward), slot=slot)
        for slot, (reward, flag) in enumerate(zip(rewards, guided, strict=True))
    ]


@pytest.mark.parametrize(
    ("rewards", "guided", "control", "same_problem"),
    [
        # 1 of 4: helped in micro-group 2 (index 1), where one of two succeeds; 2 of 6 then: helped in the next, solved
        ("10001011", "....gggg", {1: ([1, 0], []), 2: ([1], [])}, {1: ([0.75, -0.25], []), 2: ([0.75], [])}),
        # the same, but help was withheld in micro-group 2
        ("10001011", "......gg", {1: ([], [1, 0]), 2: ([1], [])}, {1: ([], []), 2: ([1 - 1 / 3], [])}),
        # 3 of 4: no help is due anywhere
        ("11101111", "........", {}, {}),
        # 2 of 4 is no reason in micro-group 2, 2 of 6 is one in micro-group 3
        ("11000000", "......gg", {2: ([0], [])}, {2: ([-1 / 3], [])}),
    ],
)
def test_what_a_group_says_of_help(rewards: str, guided: str, control: dict, same_problem: dict) -> None:
    """A whole solution (index 3) says nothing."""
    members = group_of(rewards, guided)
    assert observe(CONTROL, CODE, members) == control
    found = observe(SAME_PROBLEM, CODE, members)
    assert found.keys() == same_problem.keys()
    for index, (helped, alone) in found.items():
        assert (helped, alone) == (pytest.approx(same_problem[index][0]), [])


def test_help_is_given_as_often_as_it_is_likely_to_be_useful_and_trained_as_much() -> None:
    useful, harmful = Measured(Arm(50, 45, 45), Arm(50, 5, 5)), Measured(Arm(50, 5, 5), Arm(50, 45, 45))
    table = {("a", 1): useful, ("a", 2): harmful, ("b", 1): harmful}
    first, second, third, whole = adjust(CONTROL, table, CODE, "a")
    assert first == CODE[0]
    assert (second.help_probability, round(second.prefix_weight, 3)) == (0.9, 1.0)  # a tenth is withheld, to compare
    assert (third.help_probability, round(third.prefix_weight, 3)) == (0.1, 0.0)  # a tenth is given, to compare
    assert (whole.help_probability, whole.prefix_weight) == (
        0.1,
        third.prefix_weight,
    )  # by the nearest that is measured
    assert [group.help_probability for group in adjust(CONTROL, table, CODE, "b")] == [1.0, 0.1, 0.5, 0.5]
    assert adjust(SAME_PROBLEM, {("a", 1): Measured(Arm(50, 45, 45))}, CODE, "a")[1].help_probability > 0.99


def test_either_decision_can_be_left_out() -> None:
    table = {("a", 1): Measured(Arm(50, 5, 5), Arm(50, 45, 45))}
    only_weight = UtilityRule("control", keep=0.9, explore=0.1, gates_help=False, weighs_loss=True)
    only_help = UtilityRule("control", keep=0.9, explore=0.1, gates_help=True, weighs_loss=False)
    assert [adjust(rule, table, CODE, "a")[1].help_probability for rule in (only_weight, only_help)] == [0.9, 0.1]
    assert [round(adjust(rule, table, CODE, "a")[1].prefix_weight, 2) for rule in (only_weight, only_help)] == [0, 1]


def simulate(rule: UtilityRule, change: float, *, num_steps: int = 30, seed: int = 0) -> Measured:
    """Problems of all difficulties; help changes a rollout's chance of success by `change`."""
    rng = random.Random(seed)
    schedule = (MicroGroup(4, 0.0, 0.0), MicroGroup(2, 0.5, 0.5))
    table = {}
    for _ in range(num_steps):
        [_, adjusted] = adjust(rule, table, schedule, "a")
        helped: list[float] = []
        alone: list[float] = []
        for _ in range(8):
            chance = rng.random()
            own = [float(rng.random() < chance) for _ in range(4)]
            is_helped = sum(own) / 4 < 0.5 and rng.random() < adjusted.help_probability
            later = [float(rng.random() < chance + (change if is_helped else 0.0)) for _ in range(2)]
            flags = "...." + ("gg" if is_helped else "..")
            members = [
                rollout([1], [20] if flag == "g" else [], [10], reward=reward, slot=slot)
                for slot, (reward, flag) in enumerate(zip([*own, *later], flags, strict=True))
            ]
            found = observe(rule, schedule, members).get(1, ([], []))
            helped, alone = helped + found[0], alone + found[1]
        table = learn(rule, table, {("a", 1): (helped, alone)})
    return table["a", 1]


def test_useful_and_harmful_help_are_told_apart() -> None:
    for seed in range(5):
        assert simulate(CONTROL, 0.4, seed=seed).probability(CONTROL) > 0.8
        assert simulate(CONTROL, -0.4, seed=seed).probability(CONTROL) < 0.3


def test_comparing_within_a_problem_flatters_help_and_the_control_does_not() -> None:
    """Help is given where a problem happened to fail, so its next rollouts do better whether they are helped or not."""
    gains = {rule.compares: [simulate(rule, 0.0, seed=seed).gain(rule) for seed in range(40)] for rule in RULES}
    assert abs(np.mean(gains["control"])) < 2.5 * np.std(gains["control"]) / 40**0.5
    assert np.mean(gains["problem"]) > 0.05


def test_a_weight_multiplies_the_prefix_loss_of_its_rollout_alone() -> None:
    members = [rollout([1], [], [10], reward=1.0), replace(rollout([1], [20], [11], slot=4), prefix_weight=0.25)]
    group = make_group(AlgorithmSection().build(max_response_tokens=8), members)
    assert group.prefix_weights == (1.0, 0.25) and group.advantages == (0.5, -0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.utility={type: control, keep: 1.0}"], "algorithm.utility.keep: input should be less than 1"),
        (
            ["algorithm.utility={type: control, gates_help: false, weighs_loss: false}"],
            "algorithm.utility.gates_help, weighs_loss: without either",
        ),
        (["algorithm.utility=contrl"], "algorithm.utility: found 'contrl'; did you mean 'control'?"),
        (
            [
                "algorithm.utility=control",
                "algorithm.schedule=[{num_rollouts: 1, prefix_ratio: 1.0, help_below: null}]",
            ],
            "algorithm.utility: is measured by how the policy goes on",
        ),
    ],
)
def test_a_utility_that_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("tiny_cpu.yaml", overrides)
    assert str(raised.value).startswith(message)
