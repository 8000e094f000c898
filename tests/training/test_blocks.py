"""Every block of configs/algorithm trains, and docs/methods.md describes it."""

import math
import re
from pathlib import Path

import pytest
from run_differences import read_metrics
from safetensors.torch import load_file

from trapo_lite.config import load_config
from trapo_lite.training.trainer import train

BLOCKS = sorted(Path("configs/algorithm").glob("*.yaml"))


def names(path: Path) -> str:
    return path.stem


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=names)
def test_a_step_on_the_tiny_world_moves_the_adapter(block: Path, tmp_path: Path) -> None:
    small = ["rollout.engine=transformers", "rollout.num_problems=4", "rollout.schedule=barrier", "eval.every=0"]
    stages = ["algorithm.first_stage.num_steps=1"] if block.stem == "sft_then_rl" else []
    run = [f"train.max_steps={1 + len(stages)}", f"run.dir={tmp_path}", "run.trackers=[]"]
    folder = train(load_config(["tiny_cpu.yaml", str(block)], [*small, *run, *stages]))
    for row in read_metrics(folder / "metrics.jsonl"):
        assert math.isfinite(row["optim/grad_norm"]) and row["optim/grad_norm"] > 0
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)  # which begins with zeros


@pytest.mark.slow
def test_the_weights_and_ratios_of_a_step_are_in_its_line(tmp_path: Path) -> None:
    """Half a cosine: in the middle of the course it has half of its rise. Step 1 has the value at 0."""
    small = [
        "rollout.engine=transformers",
        "rollout.num_problems=2",
        "eval.every=0",
        "run.trackers=[]",
        "train.max_steps=3",
    ]
    course = "algorithm.prefix_loss.weight={steps: [0, 2], values: [0, 0.8]}"
    chord = load_config(["tiny_cpu.yaml", "algorithm/chord.yaml"], [*small, course, f"run.dir={tmp_path}"])
    rows = read_metrics(train(chord) / "metrics.jsonl")
    assert [row["loss/prefix_weight"] for row in rows] == pytest.approx([0.0, 0.4, 0.8])
    assert rows[0]["loss/completion_weight"] == 1.0 and {row["rollout/ratio_2"] for row in rows} == {1.0}
    schedule = "algorithm.schedule=[{num_rollouts: 2}, {num_rollouts: 1, help_below: null, prefix_ratio: 0.25}]"
    trapo = load_config(["tiny_cpu.yaml"], [*small, schedule, f"run.dir={tmp_path}", "run.name=trapo"])
    rows = read_metrics(train(trapo) / "metrics.jsonl")
    assert all(row["rollout/ratio_2"] == 0.25 and "loss/prefix_weight" not in row for row in rows)


def test_the_page_describes_every_block_and_no_other() -> None:
    text = Path("docs/methods.md").read_text(encoding="utf-8")
    described = re.findall(r"^`algorithm/(\w+)\.yaml`\. ", text, re.MULTILINE)
    assert sorted(described) == [block.stem for block in BLOCKS]
    assert len(re.findall(r"^## ", text, re.MULTILINE)) == len(BLOCKS)
