"""The warnings of the first step say what to change, and a healthy run gets none."""

from typing import Any

import pytest

from trapo_lite.config import validate
from trapo_lite.run.early_warnings import early_warnings

HEALTHY = {
    "rollout/truncated": 0.1,
    "rollout/uniform_groups": 0.5,
    "rollout/solved_groups": 0.25,
    "rollout/failed_groups": 0.25,
    "reward/expert": 1.0,
}
SFT = {"schedule": [{"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": None}], "prefix_loss": "nll"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"rollout/truncated": None, "reward/expert": None}, None),
        ({"rollout/truncated": 0.75}, r"75% of the completions were cut at rollout.max_response_tokens (96); raise it"),
        ({"rollout/uniform_groups": 1.0, "rollout/failed_groups": 1.0}, "in every problem (most are not solved)"),
        ({"rollout/uniform_groups": 1.0, "rollout/solved_groups": 1.0}, "in every problem (most are solved)"),
        ({"reward/none": 0.25}, "25% of the rollouts have no reward"),
        ({"reward/none": 0.25, "rollout/uniform_groups": 1.0}, "25% of the rollouts have no reward"),
        ({"reward/none": 1.0, "rollout/uniform_groups": 1.0}, "100% of the rollouts have no reward"),
        ({"reward/expert": 0.0}, "the expert solutions earn nothing"),
    ],
)
def test_each_line_has_its_cause(change: dict[str, Any], expected: str | None) -> None:
    config = validate({"rollout": {"max_response_tokens": 96}})
    lines = early_warnings(HEALTHY | change, config)
    if expected is None:
        assert lines == []
    else:
        [line] = lines
        assert expected in line


def test_without_samples_equal_rewards_are_no_fault() -> None:
    config = validate({"algorithm": SFT})
    assert early_warnings(HEALTHY | {"rollout/uniform_groups": 1.0}, config) == []
