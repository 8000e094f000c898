"""A base that is spread over the ranks (FSDP2, two and three gloo processes) trains as a whole one does."""

import os
import subprocess
import sys
from pathlib import Path

import fsdp_on_cpu
import pytest
import torch
from run_differences import differences
from test_distributed import run_steps

from trapo_lite.config import LoraSection, ModelSection
from trapo_lite.core.errors import ConfigError
from trapo_lite.model.policy import Policy

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
RUN = "--config configs/tiny_cpu.yaml rollout.engine=transformers rollout.num_problems=3 eval.every=2 "
RUN += "eval.num_problems=4 run.trackers=[] train.save_every=2 algorithm.kl_weight=0.01 optim.updates_per_batch=2"


@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "tied", "divergence"),
    [(2, True, None), (3, False, None), (2, False, "sampled"), (2, True, "reverse_kl")],
)
def test_gradients_and_weights_are_those_of_a_whole_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, tied: bool, divergence: str | None
) -> None:
    """Uneven work, and ranks without any: they must still pass as often as the others, also for a teacher."""
    options = {"optimizer": "sgd", "budget": 60, "tied": tied, "divergence": divergence}
    whole = run_steps(tmp_path / "whole.pt", processes=1, **options)
    for name, value in fsdp_on_cpu.environment().items():
        monkeypatch.setenv(name, value)
    sharded = run_steps(tmp_path / "sharded.pt", processes=processes, **options)
    assert sharded["is_sharded"] and not whole["is_sharded"]
    for mine, theirs in zip(sharded["gradients"], whole["gradients"], strict=True):
        assert (mine - theirs).norm() / theirs.norm() < 1e-5
    torch.testing.assert_close(sharded["weights"], whole["weights"], rtol=0, atol=1e-6)
    assert sharded["expert_loss"] == pytest.approx(whole["expert_loss"], rel=1e-5)


def train(script: str, folder: Path, name: str, *, max_steps: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    command += [*RUN.split(), f"run.dir={folder}", f"run.name={name}", f"train.max_steps={max_steps}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.long
def test_a_whole_run_is_the_same_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts, check of packing, reference, two updates a batch, evaluation, checkpoints."""
    train("scripts/train.py", tmp_path, "whole", max_steps=3)
    for name, value in fsdp_on_cpu.environment().items():
        monkeypatch.setenv(name, value)
    train("tests/fsdp_train.py", tmp_path, "sharded", max_steps=2)
    train("tests/fsdp_train.py", tmp_path, "sharded", max_steps=3)
    assert differences(tmp_path / "whole", tmp_path / "sharded") == []


def test_weights_in_nf4_are_not_sharded(tmp_path: Path) -> None:
    section = ModelSection(name=str(tmp_path), quantize="nf4")
    with pytest.raises(ConfigError, match="nf4 weights are not sharded"):
        Policy.load(section, LoraSection(r=2, alpha=4), device="cpu", shard=lambda model: model)


@pytest.mark.slow
def test_fsdp_1_is_refused() -> None:
    code = "import fsdp_on_cpu; fsdp_on_cpu.allow(); from trapo_lite.run.processes import Ranks; Ranks()"
    environment = {**os.environ, **fsdp_on_cpu.environment(), "FSDP_VERSION": "1", "PYTHONPATH": str(TESTS)}
    environment |= {"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "fsdp_version: found 1" in done.stderr and "configs/accelerate/fsdp2.yaml" in done.stderr
