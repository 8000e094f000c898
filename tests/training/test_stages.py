"""A run with a first stage: SFT and then RL by one command, in one folder, resumed wherever it was killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from builders import random_rollouts, tiny_qwen2
from run_differences import differences, read_metrics
from tiny_runs import GRPO, SFT, TRAPO, data_file, make_config, model_dir

from trapo_lite.config import LoraSection, load_config, validate
from trapo_lite.config.algorithm import AlgorithmSection
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.errors import CheckpointError, ConfigError
from trapo_lite.core.types import Group
from trapo_lite.model.policy import Policy
from trapo_lite.run.processes import Ranks
from trapo_lite.training.trainer import train
from trapo_lite.training.update import Updater

FIRST = {key: value for key, value in SFT.items() if key != "name"}
TWO_STAGES = {**GRPO, "name": "sft_then_rl", "first_stage": {"num_steps": 2, **FIRST}}


@pytest.mark.slow
def test_the_first_stage_is_a_run_of_sft_and_the_second_samples(make_config) -> None:
    both = read_metrics(train(make_config(algorithm=TWO_STAGES, train={"max_steps": 4})) / "metrics.jsonl")
    alone = read_metrics(train(make_config(name="sft", algorithm=SFT)) / "metrics.jsonl")
    names = ("optim/grad_norm", "loss/prefix", "prefix/probability", "train/tokens")
    assert [[row[name] for name in names] for row in both[:2]] == [[row[name] for name in names] for row in alone]
    assert [row["reward/own"] is None for row in both] == [True, True, False, False]
    assert [row["rollout/guided"] for row in both] == [1.0, 1.0, 0.0, 0.0]


def groups_of(step: int) -> list[Group]:
    rng = random.Random(step)
    algorithm = AlgorithmSection().build(max_response_tokens=8)
    return [make_group(algorithm, random_rollouts(rng, problem_id=str(index))) for index in range(3)]


def policy() -> Policy:
    torch.manual_seed(0)
    return Policy(tiny_qwen2(), LoraSection(r=4, alpha=8), attention="sdpa", gradient_checkpointing=False)


def updater_of(trained: Policy, *, max_steps: int, lr: float, first_stage: dict | None = None) -> Updater:
    parts = {"schedule": [{"num_rollouts": 8}, {"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": None}]}
    algorithm = parts | ({"first_stage": parts | first_stage} if first_stage else {})
    optim = {"lr": lr, "warmup_steps": 2, "scheduler": "linear"}
    train = {"max_steps": max_steps, "check_packing": False}
    config = validate({"algorithm": algorithm, "optim": optim, "train": train})
    return Updater(config, trained, lambda step: config.algorithm.build_at(step, max_response_tokens=8), Ranks())


@pytest.mark.slow
def test_each_stage_has_its_own_optimizer_warm_up_and_rate() -> None:
    """Two updaters, one after the other on one policy, do what one with two stages does."""
    in_one, in_two = policy(), policy()
    both = updater_of(in_one, max_steps=7, lr=1e-3, first_stage={"num_steps": 3, "lr": 1e-2})
    rates = [both.update(step, groups_of(step))["optim/lr"] for step in range(7)]
    first = updater_of(in_two, max_steps=3, lr=1e-2)
    expected = [first.update(step, groups_of(step))["optim/lr"] for step in range(3)]
    second = updater_of(in_two, max_steps=4, lr=1e-3)
    expected += [second.update(step - 3, groups_of(step))["optim/lr"] for step in range(3, 7)]
    assert rates == expected == pytest.approx([5e-3, 1e-2, 1e-2, 5e-4, 1e-3, 1e-3, 5e-4])
    for one, other in zip(in_one.adapter.parameters, in_two.adapter.parameters, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_problems_without_an_expert_solution_are_in_neither_stage(make_config, tmp_path: Path) -> None:
    source = Path(make_config().data.sources[0])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    without = {row["problem"] for row in rows[::3]}
    file = tmp_path / "some.jsonl"
    kept = [{k: v for k, v in row.items() if k != "solution" or row["problem"] not in without} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    folder = train(make_config(algorithm=TWO_STAGES, data={"train": str(file)}, train={"max_steps": 6}))
    drawn = [json.loads(line)["prompt"].strip() for path in folder.glob("rollouts/*") for line in path.open()]
    assert len(drawn) == 2 * 3 + 4 * 3 * 4 and not without & set(drawn)


@pytest.mark.slow
@pytest.mark.parametrize("had_one", [True, False])
def test_a_resume_with_or_without_a_first_stage_names_it_once(make_config, had_one: bool) -> None:
    with_it, without_it = TWO_STAGES | {"first_stage": {"num_steps": 1, **FIRST}}, {**GRPO, "name": "sft_then_rl"}
    before, after = (with_it, without_it) if had_one else (without_it, with_it)
    train(make_config(algorithm=before, train={"max_steps": 2}))
    with pytest.raises(CheckpointError) as failed:
        train(make_config(algorithm=after, train={"max_steps": 3}))
    line = "given then, not set now" if had_one else "not set then, given now"
    assert f"(algorithm.first_stage: {line})" in str(failed.value)


def command(folder: Path) -> list[str]:
    small = ["rollout.engine=transformers", "rollout.num_problems=2", "eval.every=0", "run.trackers=[]"]
    steps = ["algorithm.first_stage.num_steps=3", "train.max_steps=6", "train.save_every=1"]
    files = ["--config", "tiny_cpu.yaml", "--config", "algorithm/sft_then_rl.yaml"]
    return [sys.executable, "-m", "trapo_lite", "train", *files, *small, *steps, f"run.dir={folder}"]


@pytest.mark.long
@pytest.mark.parametrize("at_step", [2, 3, 5], ids=["in-sft", "at-the-border", "in-rl"])
def test_killed_and_resumed_equals_uninterrupted(at_step: int, tmp_path: Path, whole_run: Path) -> None:
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "tiny_cpu" / "checkpoints" / f"step-{at_step:06d}"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "tiny_cpu" / "adapter").exists()  # it was not done
    subprocess.run(command(tmp_path), check=True, capture_output=True)
    assert differences(tmp_path / "tiny_cpu", whole_run) == []


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(command(folder), check=True, capture_output=True)
    return folder / "tiny_cpu"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.max_steps=20"], "algorithm.first_stage.num_steps: 20 is not below train.max_steps (20)"),
        (["algorithm.first_stage.num_steps=0"], "algorithm.first_stage.num_steps: "),
        (["algorithm.first_stage.steps=5"], "algorithm.first_stage.steps: unknown key; did you mean 'num_steps'?"),
        (
            ["algorithm.first_stage.prefix_loss={type: nll, alpha: 1}"],
            "algorithm.first_stage.prefix_loss.alpha: unknown key",
        ),
        (
            ["algorithm.first_stage.prefix_loss=nl"],
            "algorithm.first_stage.prefix_loss: found 'nl'; did you mean 'nll'?",
        ),
        (["algorithm.first_stage=5"], "algorithm.first_stage: found 5"),
    ],
)
def test_a_wrong_first_stage_is_one_clear_error(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(["tiny_cpu.yaml", "algorithm/sft_then_rl.yaml"], overrides)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_a_first_stage_cannot_be_begun_without_its_schedule() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.first_stage\.schedule: is missing"):
        load_config("tiny_cpu.yaml", ["algorithm.first_stage={num_steps: 5}"])


def test_a_warm_up_must_end_in_each_stage() -> None:
    files = ["tiny_cpu.yaml", "algorithm/sft_then_rl.yaml"]
    with pytest.raises(ConfigError, match=r"optim\.warmup_steps: 25 is not below the 20 steps of stage 1"):
        load_config(files, ["optim.warmup_steps=25"])
    with pytest.raises(ConfigError, match=r"optim\.warmup_steps: 15 is not below the 10 steps of stage 2"):
        load_config(files, ["optim.warmup_steps=15", "algorithm.first_stage.num_steps=30"])


def test_a_course_begins_with_its_stage() -> None:
    course = "{steps: [0, 10], values: [0.0, 1.0]}"
    algorithm = load_config(
        ["tiny_cpu.yaml", "algorithm/sft_then_rl.yaml"],
        [f"algorithm.completion_loss={{type: policy_gradient, weight: {course}}}"],
    ).algorithm
    weights = [algorithm.build_at(step, max_response_tokens=8).completion_weight for step in (20, 25, 30, 39)]
    assert weights == pytest.approx([0.0, 0.5, 1.0, 1.0])


@pytest.mark.slow
def test_each_stage_has_its_packing_check_and_its_outlook(make_config, capsys: pytest.CaptureFixture) -> None:
    train(make_config(algorithm={**TRAPO, "first_stage": TWO_STAGES["first_stage"]}, train={"max_steps": 4}))
    said = "".join(capsys.readouterr())
    assert said.count("packing check: 1 rollouts") == 1 and said.count("packing check: ") == 2
    assert said.count("left at the pace of this step") == 2


@pytest.mark.slow
def test_a_ratio_that_falls_from_one_is_sampled_from_a_published_policy(make_config) -> None:
    ratio = {"steps": [0, 2], "values": [1.0, 0.1]}
    falling = {
        "schedule": [{"num_rollouts": 2, "prefix_ratio": ratio, "help_below": None, "num_trained": 1}],
        "prefix_loss": "nll",
    }
    config = make_config(algorithm=falling, train={"max_steps": 3})
    assert config.algorithm.samples and config.algorithm.shows_parts
    rows = read_metrics(train(config) / "metrics.jsonl")
    assert [row["rollout/completion_tokens"] is None for row in rows] == [True, False, False]
    assert all(row["mismatch/abs"] < 1e-5 for row in rows[1:])


def test_a_first_stage_is_in_the_resolved_file(tmp_path: Path) -> None:
    config = load_config(["tiny_cpu.yaml", "algorithm/sft_then_rl.yaml"])
    file = tmp_path / "resolved.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file) == config
