"""The plan says which method a command trains, and how often it updates by the same rollouts."""

import pytest

from trapo_lite.config import load_config
from trapo_lite.planning.report import plan_lines


@pytest.mark.parametrize(
    ("block", "update", "num_rollouts"),
    [
        ("dapo", "4096 tokens a forward pass, 4 updates by each step's rollouts", 8 * 4),  # three replace a problem
        ("trapo", "clip 1.0, 4096 tokens a forward pass", 8),
        ("hpt", "4096 tokens a forward pass", 8),  # its ninth is a whole expert solution or nothing
        ("sft", "4096 tokens a forward pass", 0),
    ],
)
def test_method_updates_and_tokens(block: str, update: str, num_rollouts: int) -> None:
    lines = plan_lines(load_config(["tiny_cpu.yaml", f"algorithm/{block}.yaml"]))
    assert f"method    {block}" in lines
    assert any(line.startswith("update ") and line.endswith(update) for line in lines)
    most = f"at most   {8 * num_rollouts * 128:,} sampled tokens a step"  # of 8 problems, 128 tokens each
    assert any(line.startswith(most) for line in lines)
