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
SAME_PROBLEM = UtilityRule("same_problem", keep=0.9, explore=0.1, gates_help=True, weighs_loss=True)
RULES = (CONTROL, SAME_PROBLEM)
CODE = PRESETS["reference_code"]
WHOLE = "[{num_rollouts: 1, prefix_ratio: 1.0, help_below: null}]"


def arm(*values: float) -> Arm:
    return Arm().after([(value, 1.0) for value in values], keep=0.0)


GOOD, BAD = arm(*[1.0] * 45, *[0.0] * 5), arm(*[1.0] * 5, *[0.0] * 45)


def test_nothing_known_is_even_and_much_known_is_sure() -> None:
    for rule in RULES:
        assert Measured().probability(rule) == 0.5 and Measured().gain(rule) == 0.0
    assert Measured(arm(1.0, 1.0)).probability(CONTROL) == 0.5  # nobody went without help
    assert Measured(GOOD, BAD).probability(CONTROL) > 0.999 > 0.001 > Measured(BAD, GOOD).probability(CONTROL)
    assert Measured(GOOD, BAD).gain(CONTROL) == pytest.approx(0.8, abs=0.04)
    assert 0.5 < Measured(arm(0.5)).probability(SAME_PROBLEM) < 0.9  # one problem is not much


def test_the_probability_is_that_of_two_normal_means() -> None:
    helped, alone = [1.0] * 60 + [0.0] * 40, [1.0] * 45 + [0.0] * 55
    rng = np.random.default_rng(0)
    draws = [rng.normal(np.mean(values), np.std(values) / 10, size=400_000) for values in (helped, alone)]
    found = Measured(arm(*helped), arm(*alone)).probability(CONTROL)
    assert found == pytest.approx((draws[0] > draws[1]).mean(), abs=0.01)  # the prior's two values move it a little


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_scale_of_rewards_does_not_matter(scale: float) -> None:
    def measured(factor: float) -> Measured:
        return Measured(arm(*[factor] * 6, *[-factor] * 4), arm(*[factor] * 4, *[-factor] * 8))

    assert measured(scale).probability(CONTROL) == pytest.approx(measured(1.0).probability(CONTROL))
    assert measured(scale).gain(CONTROL) == pytest.approx(scale * measured(1.0).gain(CONTROL))


def test_a_small_gain_where_success_is_rare_is_not_pulled_away() -> None:
    assert Measured(arm(*[0.0] * 45, *[1.0] * 5), arm(0.0, 0.0, 0.0, 0.0)).gain(CONTROL) == pytest.approx(0.1, abs=0.05)


def test_the_past_counts_less_with_every_step_until_nothing_is_known() -> None:
    older = Arm().after([(1.0, 1.0), (1.0, 1.0)], keep=0.5).after([(0.0, 1.0)], keep=0.5)
    assert (older.weight, older.total, older.squares) == (2.0, 1.0, 1.0)
    assert older.count == pytest.approx(2.0)
    table = {("a", 1): Measured(GOOD, BAD)}
    for _ in range(200):
        table = learn(CONTROL, table, {})
    assert table["a", 1].probability(CONTROL) == pytest.approx(0.5, abs=0.01)


def group_of(rewards: str, guided: str) -> list[Rollout]:
    """Rollouts of the code's schedule: rewards 0 and 1, and g where one was guided."""
    return [
        rollout([1], [20] if flag == "g" else [], [10], reward=float(reward), slot=slot)
        for slot, (reward, flag) in enumerate(zip(rewards, guided, strict=True))
    ]


DRAWN = tuple(replace(group, help_probability=0.8) for group in CODE)


@pytest.mark.parametrize(
    ("rewards", "guided", "control", "same_problem"),
    [
        # 1 of 4: helped in micro-group 2 (index 1), where one of two succeeds; 2 of 6 then: helped in the next, solved.
        # Help had probability 0.8: a helped problem weighs 0.5 / 0.8, the others 0.5 / 0.2.
        (
            "10001011",
            "....gggg",
            {1: ([(0.5, 0.625)], []), 2: ([(1, 0.625)], [])},
            {1: ([(0.25, 1)], []), 2: ([(0.75, 1)], [])},
        ),
        # the same, but help was withheld in micro-group 2
        ("10001011", "......gg", {1: ([], [(0.5, 2.5)]), 2: ([(1, 0.625)], [])}, {2: ([(2 / 3, 1)], [])}),
        # 3 of 4: no help is due anywhere
        ("11101111", "........", {}, {}),
        # 2 of 4 is no reason in micro-group 2, 2 of 6 is one in micro-group 3
        ("11000000", "......gg", {2: ([(0, 0.625)], [])}, {2: ([(-1 / 3, 1)], [])}),
    ],
)
def test_what_a_group_says_of_help(rewards: str, guided: str, control: dict, same_problem: dict) -> None:
    """A whole solution (index 3) says nothing."""
    members = group_of(rewards, guided)
    for rule, expected in ((CONTROL, control), (SAME_PROBLEM, same_problem)):
        observed = observe(rule, DRAWN, members)
        assert observed.keys() == expected.keys()
        for index, sides in observed.items():
            for side, values in zip(sides, expected[index], strict=True):
                assert [part for value in side for part in value] == pytest.approx(
                    [p for value in values for p in value]
                )


def test_help_is_given_as_often_as_it_is_likely_to_be_useful_and_trained_as_much() -> None:
    useful, harmful = Measured(GOOD, BAD), Measured(BAD, GOOD)
    table = {("a", 1): useful, ("a", 2): harmful, ("b", 1): harmful}
    first, second, third, whole = adjust(CONTROL, table, CODE, "a")
    assert first == CODE[0]
    assert (second.help_probability, round(second.prefix_weight, 3)) == (0.9, 1.0)  # a tenth is withheld, to compare
    assert (third.help_probability, round(third.prefix_weight, 3)) == (0.1, 0.0)  # a tenth is given, to compare
    assert whole.help_probability < 0.001 and whole.prefix_weight == third.prefix_weight  # by the nearest; not explored
    assert [round(group.help_probability, 3) for group in adjust(CONTROL, table, CODE, "b")] == [1.0, 0.1, 0.9, 1.0]
    assert adjust(SAME_PROBLEM, {("a", 1): Measured(GOOD)}, CODE, "a")[1].help_probability > 0.99


def test_help_has_the_benefit_of_the_doubt() -> None:
    """Nothing speaks against help where neither side succeeds; help that is likelier to harm is lowered."""
    nobody = Measured(arm(*[0.0] * 30), arm(*[0.0] * 10))
    assert (nobody.probability(CONTROL), nobody.use(CONTROL)) == (0.5, 1.0)
    doubtful = Measured(arm(*[1.0] * 4, *[0.0] * 6), arm(*[1.0] * 5, *[0.0] * 5))
    assert doubtful.use(CONTROL) == 2 * doubtful.probability(CONTROL) < 1.0


def test_a_whole_solution_before_every_part_goes_by_the_next_one() -> None:
    schedule = (MicroGroup(1, 1.0, None), MicroGroup(1, 0.5, None))
    assert adjust(CONTROL, {("a", 1): Measured(BAD, GOOD)}, schedule, "a")[0].prefix_weight < 0.001


def test_a_step_in_which_nothing_can_be_measured_is_as_scheduled() -> None:
    schedule = (MicroGroup(2, 0.0, 0.0), MicroGroup(1, 1.0, 0.5))
    assert adjust(CONTROL, {}, schedule, "a") == schedule


def test_either_decision_can_be_left_out() -> None:
    table = {("a", 1): Measured(BAD, GOOD)}
    only_weight = UtilityRule("control", keep=0.9, explore=0.1, gates_help=False, weighs_loss=True)
    only_help = UtilityRule("control", keep=0.9, explore=0.1, gates_help=True, weighs_loss=False)
    assert [adjust(rule, table, CODE, "a")[1].help_probability for rule in (only_weight, only_help)] == [0.9, 0.1]
    assert [round(adjust(rule, table, CODE, "a")[1].prefix_weight, 2) for rule in (only_weight, only_help)] == [0, 1]


def simulate(rule: UtilityRule, change: float, *, rises: bool = False, num_steps: int = 40, seed: int = 0) -> list:
    """Return what is known after each step. Problems of all difficulties; help changes a rollout's chance of success.

    rises: the policy learns meanwhile, from hardly any success to nearly always
    """
    rng = random.Random(seed)
    schedule = (MicroGroup(4, 0.0, 0.0), MicroGroup(2, 0.5, 0.5))
    table, known = {}, []
    for step in range(num_steps):
        adjusted = adjust(rule, table, schedule, "a")
        helped, alone = [], []
        for _ in range(8):
            chance = rng.random() if not rises else 0.05 + 0.85 * step / num_steps
            own = [float(rng.random() < chance) for _ in range(4)]
            is_helped = sum(own) / 4 < 0.5 and rng.random() < adjusted[1].help_probability
            later = [float(rng.random() < chance + (change if is_helped else 0.0)) for _ in range(2)]
            flags = "...." + ("gg" if is_helped else "..")
            members = [
                rollout([1], [20] if flag == "g" else [], [10], reward=reward, slot=slot)
                for slot, (reward, flag) in enumerate(zip([*own, *later], flags, strict=True))
            ]
            observed = observe(rule, adjusted, members).get(1, ([], []))
            helped, alone = helped + observed[0], alone + observed[1]
        table = learn(rule, table, {("a", 1): (helped, alone)})
        known.append(table["a", 1])
    return known


def test_useful_and_harmful_help_are_told_apart() -> None:
    useful = [simulate(CONTROL, 0.4, seed=seed)[-1].probability(CONTROL) for seed in range(20)]
    harmful = [simulate(CONTROL, -0.4, seed=seed)[-1].probability(CONTROL) for seed in range(20)]
    assert np.mean(useful) > 0.9 and np.mean(harmful) < 0.15
    assert min(useful) > max(harmful)


@pytest.mark.parametrize("rises", [False, True])
def test_help_without_effect_is_rarely_taken_for_useful_or_harmful(rises: bool) -> None:
    """Also while the policy improves and the probability of help changes with it, which is why values have weights."""
    known = [measured for seed in range(40) for measured in simulate(CONTROL, 0.0, rises=rises, seed=seed)[20:]]
    probabilities = np.array([measured.probability(CONTROL) for measured in known])
    assert abs(probabilities.mean() - 0.5) < 0.08
    assert (probabilities < 0.05).mean() < 0.12 and (probabilities > 0.95).mean() < 0.12


def test_comparing_within_a_problem_flatters_help_and_the_control_does_not() -> None:
    """Help is given where a problem happened to fail, so its next rollouts do better whether they are helped or not."""
    gains = {rule.compares: [simulate(rule, 0.0, seed=seed)[-1].gain(rule) for seed in range(40)] for rule in RULES}
    assert abs(np.mean(gains["control"])) < 2.5 * np.std(gains["control"]) / 40**0.5
    assert np.mean(gains["same_problem"]) > 0.05


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
