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


def test_the_page_describes_every_block_and_no_other() -> None:
    text = Path("docs/methods.md").read_text(encoding="utf-8")
    described = re.findall(r"^`algorithm/(\w+)\.yaml`\. ", text, re.MULTILINE)
    assert sorted(described) == [block.stem for block in BLOCKS]
    assert len(re.findall(r"^## ", text, re.MULTILINE)) == len(BLOCKS)
