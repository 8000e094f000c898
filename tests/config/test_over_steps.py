"""Numbers that change over the steps."""

import math

import pytest

from trapo_lite.config import load_config
from trapo_lite.config.algorithm import AlgorithmSection
from trapo_lite.core.errors import ConfigError

FILES = ["tiny_cpu.yaml", "algorithm/chord.yaml"]


def test_chords_weight_rises_to_its_peak_and_falls_by_a_cosine_while_rl_has_the_rest() -> None:
    section = load_config(FILES).algorithm
    built = [section.build_at(step) for step in range(0, 300)]
    mu = [algorithm.prefix_weight for algorithm in built]
    assert (mu[0], mu[20], mu[200], mu[299]) == pytest.approx((0.0, 0.9, 0.05, 0.05))
    assert mu[10] == pytest.approx(0.45)
    assert mu[65] == pytest.approx(0.05 + 0.85 * (1 + math.cos(math.pi / 4)) / 2)  # a quarter of the way down
    assert [algorithm.completion_weight for algorithm in built] == pytest.approx([1 - value for value in mu])


def test_a_ratio_may_fall_over_the_steps() -> None:
    schedule = [
        {"num_rollouts": 7},
        {"num_rollouts": 1, "prefix_ratio": {"steps": [0, 100], "values": [0.95, 0.05]}, "help_below": None},
    ]
    section = AlgorithmSection(schedule=schedule, prefix_loss="nll", normalizer="tokens")  # type: ignore[arg-type]
    ratios = [section.build_at(step).micro_groups[1].prefix_ratio for step in (0, 50, 100, 500)]
    assert ratios == pytest.approx([0.95, 0.5, 0.05, 0.05])
    assert section.micro_groups[1].prefix_ratio == 0.95  # what limits and checks go by


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{steps: [0, 5], values: [1, 2, 3]}", "steps, values: found 2 and 3"),
        ("{steps: [5, 5], values: [1.0, 2.0]}", "steps: found [5, 5]; give rising numbers"),
        ("{steps: [0, 5], values: [0.0, 0.0]}", "values: all are 0"),
        ("{steps: [0, 5], value: [0.0, 1.0]}", "value: unknown key; did you mean 'values'?"),
        ("{steps: [0, 5], values: [1.0]}", "values: found [1.0]; give at least 2 values"),
        ("{steps: 5, values: [0.5, 1]}", "steps: found 5; write {steps: [0, 100], values: [0.9, 0.1]}"),
        ("{steps: [0], values: [0.5]}", "steps: found [0]; give at least 2 values"),
        ("{steps: [0, 5], values: [-1, 1]}", "values[0]: input should be greater than or equal to 0; found -1"),
    ],
)
def test_a_wrong_course_is_named(value: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(FILES, [f"algorithm.prefix_loss={{type: nll, weight: {value}}}"])
    assert f"algorithm.prefix_loss.weight.{message}" in str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "algorithm.prefix_loss.weight=cosine",
            "algorithm.prefix_loss.weight: found 'cosine'; give a number, or {steps: [",
        ),
        (
            "algorithm.prefix_loss.weight=[0, 1]",
            "algorithm.prefix_loss.weight: found [0, 1]; give a number, or {steps: [",
        ),
        (
            "algorithm.utility.explore=0.2",
            "algorithm.utility.explore: has no effect with algorithm.utility: none; write",
        ),
        ("algorithm.teacher.clip=1", "algorithm.teacher.clip: has no effect with algorithm.teacher: none"),
    ],
)
def test_what_is_no_course_and_what_has_no_part_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("tiny_cpu.yaml", [override])
    assert str(raised.value).startswith(message)


def test_a_ratio_above_one_is_refused_wherever_it_stands_in_a_course() -> None:
    schedule = "[{num_rollouts: 1, prefix_ratio: {steps: [0, 9], values: [2.0, 1.0]}, help_below: null}]"
    with pytest.raises(ConfigError, match=r"schedule\[0\]\.prefix_ratio\.values: found \[2\.0, 1\.0\]"):
        load_config("tiny_cpu.yaml", [f"algorithm.schedule={schedule}"])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            "[{num_rollouts: 1}, {num_rollouts: 1, prefix_ratio: 0.5, help_below: 1, otherwise: skip}, "
            "{num_rollouts: 1, prefix_ratio: 1.0, help_below: 1}]",
            "algorithm.schedule[1].otherwise: skip is possible in the last micro-group only",
        ),
        ("[{num_rollouts: 1, otherwise: skip}]", "algorithm.schedule[0].otherwise: has no effect"),
        ("[{num_rollouts: 1, replaces_rl: true}]", "algorithm.schedule[0].replaces_rl: has no effect"),
        ("[{num_rollouts: 1, otherwise: nothing}]", "algorithm.schedule[0].otherwise: found 'nothing'; give"),
    ],
)
def test_what_becomes_of_a_micro_group_that_does_not_help_is_checked(schedule: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("tiny_cpu.yaml", [f"algorithm.schedule={schedule}", "algorithm.prefix_loss=none"])
    assert message in str(raised.value)


def test_tokens_are_chosen_by_entropy_in_one_prefix_of_a_problem_only() -> None:
    with pytest.raises(ConfigError, match="3 rollouts of a problem may carry the prefix loss"):
        load_config("tiny_cpu.yaml", ["algorithm.prefix_loss.top_entropy=0.2"])
