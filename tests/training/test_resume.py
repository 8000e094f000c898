"""Runs that were stopped, killed or finished, and are started again."""

import errno
import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from byte_model import CHATML, write_byte_model
from run_differences import differences, read_metrics
from safetensors.torch import load_file, save_file
from tiny_runs import LUFFY, data_file, finished_runs, make_config, model_dir, trained
from transformers import AutoTokenizer

from trapo_lite.cli.endings import exit_when_stopped
from trapo_lite.core.errors import CheckpointError, ConfigError, EngineError
from trapo_lite.data.chat import generation_ends
from trapo_lite.evaluation import REGISTRY
from trapo_lite.evaluation.evaluate import evaluate
from trapo_lite.evaluation.target import target_from_arguments
from trapo_lite.exporting.merge import export_run
from trapo_lite.run.folder import RunFolder, final_adapter
from trapo_lite.training import checkpoint, trainer
from trapo_lite.training.rollouts import RolloutStage
from trapo_lite.training.trainer import train
from trapo_lite.training.update import Updater

pytestmark = pytest.mark.slow


def test_a_copy_of_a_checkpoint_under_another_name_is_left_alone(make_config, trained) -> None:
    folder = trained(train={"max_steps": 1})
    copy = shutil.copytree(folder / "checkpoints/step-000001", folder / "checkpoints/step-000001.bak")
    (folder / "rollouts/step-000001 (copy).jsonl").write_text("{}\n")
    assert final_adapter(train(make_config(train={"max_steps": 2}))) == folder / "adapter"
    assert copy.is_dir()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("state.json", "{", "state.json is damaged: not JSON"),
        ("state.json", "[]", "state.json is damaged: it holds a list"),
        ("state.json", "{}", "state.json is of step None"),
        ("manifest.json", "{", "manifest.json is damaged: not JSON"),
        ("manifest.json", "[]", "manifest.json is damaged: it holds a list"),
        ("manifest.json", "[" * 100_000, "manifest.json is damaged: not JSON"),
    ],
    ids=["cut", "list", "empty", "manifest cut", "manifest list", "manifest deep"],
)
def test_a_checkpoint_whose_json_is_damaged_is_not_used(
    tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    """Also where the checksums were made of what is damaged."""
    step = tmp_path / "step-000002"
    step.mkdir()
    for file in checkpoint.FILES:
        (step / file).write_text('{"step": 2}')
    if name == "state.json":
        (step / name).write_text(content)
    fingerprints = {
        file: {"bytes": len(data := (step / file).read_bytes()), "sha256": hashlib.sha256(data).hexdigest()}
        for file in checkpoint.FILES
    }
    (step / "manifest.json").write_text(json.dumps(fingerprints) if name == "state.json" else content)
    found, messages = checkpoint.find_checkpoint(tmp_path)
    assert found is None and len(messages) == 2 and complaint in messages[0]


def test_stopped_and_resumed_equals_uninterrupted(make_config, trained) -> None:
    whole = trained(name="whole", train={"max_steps": 4})
    trained(name="parts", train={"max_steps": 2})
    parts = train(make_config(name="parts", train={"max_steps": 4}))
    assert differences(whole, parts) == []
    other = train(make_config(name="other", train={"max_steps": 4}, run={"seed": 1}))
    assert differences(whole, other)  # the comparison can fail


@pytest.mark.parametrize(
    ("num_steps", "end"),
    [
        (0, " before the first step was done; run the same command again to begin at step 1\n"),
        (1, "; run the same command again to resume after step 1\n"),
    ],
)
def test_a_stopped_run_speaks_of_a_checkpoint_only_if_there_is_one(
    make_config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, num_steps: int, end: str
) -> None:
    publish = RolloutStage.publish

    def publish_and_stop(stage: RolloutStage, step: int) -> dict:
        if step == num_steps:
            os.kill(os.getpid(), signal.SIGINT)
        return publish(stage, step)

    monkeypatch.setattr(RolloutStage, "publish", publish_and_stop)
    config = make_config(train={"max_steps": 2, "save_every": 2})
    with pytest.raises(SystemExit) as exit_info, exit_when_stopped():
        train(config)
    assert exit_info.value.code == 130
    assert capsys.readouterr().err.endswith(f"stopped by SIGINT{end}")
    assert (checkpoint.find_checkpoint(config.run.folder / "checkpoints")[0] is not None) == (num_steps > 0)


def test_fewer_steps_than_are_done_train_nothing_and_say_so(make_config, trained, capsys) -> None:
    run = trained(train={"max_steps": 2})
    shutil.rmtree(run / "adapter")  # as after Ctrl-C
    capsys.readouterr()
    train(make_config(train={"max_steps": 1}))
    said = capsys.readouterr().out
    assert "  warning: train.max_steps is 1, and more are done, so nothing was trained\n" in said
    assert "  done: 2 steps; " in said


def test_a_run_of_one_step_says_so_in_the_singular(make_config, capsys: pytest.CaptureFixture) -> None:
    train(make_config(train={"max_steps": 1}))
    assert "  done: 1 step; " in capsys.readouterr().out


@pytest.mark.long
def test_lines_beyond_the_checkpoint_are_cut_back(make_config, trained) -> None:
    whole = train(make_config(name="whole", train={"max_steps": 3, "save_every": 3}))
    parts = trained(name="parts", train={"max_steps": 3})
    for step in (2, 3):
        shutil.rmtree(parts / f"checkpoints/step-{step:06d}")
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "torn')
    train(make_config(name="parts", train={"max_steps": 3}))
    assert differences(whole, parts) == []


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(make_config, trained, capsys) -> None:
    whole = trained(name="whole", train={"max_steps": 3})
    trained(name="parts", train={"max_steps": 2})
    damaged = whole.parent / "parts/checkpoints/step-000002/optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    capsys.readouterr()
    parts = train(make_config(name="parts", train={"max_steps": 3}))
    output = capsys.readouterr().out
    assert "step-000002: optimizer.safetensors is damaged" in output and "resuming after step 1" in output
    assert differences(whole, parts) == []


def test_a_checkpoint_of_another_configuration_or_model_is_refused(
    make_config, trained, tmp_path: Path, capsys
) -> None:
    trained(train={"max_steps": 2})
    with pytest.raises(CheckpointError, match=r"optim.lr: 0.001 then, 0.5 now.*--restart"):
        train(make_config(optim={"lr": 0.5}))
    other = write_byte_model(tmp_path / "other", num_layers=1)
    with pytest.raises(CheckpointError, match="another"):
        train(make_config(model={"name": str(other)}))
    capsys.readouterr()
    train(make_config(optim={"lr": 0.5}), restart=True)
    (old,) = [path for path in tmp_path.iterdir() if path.name.startswith("run.old-")]
    assert f"{tmp_path / 'run'}: the run that was here is now in {old}" in capsys.readouterr().out


def replace_state(checkpoint_dir: Path, state: dict) -> None:
    """Write a checkpoint's state as another version would have, with the right checksum."""
    data = json.dumps(state).encode()
    (checkpoint_dir / "state.json").write_bytes(data)
    manifest = json.loads((checkpoint_dir / "manifest.json").read_text())
    manifest["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint_dir / "manifest.json").write_text(json.dumps(manifest))


def test_model_and_data_may_have_moved_but_not_changed(
    make_config, trained, model_dir: Path, data_file: Path, tmp_path: Path
) -> None:
    trained(train={"max_steps": 1})
    checkpoint_dir = next((tmp_path / "run" / "checkpoints").iterdir())
    state = json.loads((checkpoint_dir / "state.json").read_text())  # which once recorded both paths
    state["configuration"] |= {"data.train": str(data_file), "model.name": str(model_dir)}
    state["model"]["_name_or_path"] = str(model_dir)
    replace_state(checkpoint_dir, state)
    model, data = shutil.copytree(model_dir, tmp_path / "moved"), shutil.copy(data_file, tmp_path)
    moved = {"model": {"name": str(model)}, "data": {"train": str(data)}, "train": {"max_steps": 2}}
    assert [row["step"] for row in read_metrics(train(make_config(**moved)) / "metrics.jsonl")] == [1, 2]
    Path(data).write_text(data_file.read_text().replace('"answer": "0"', '"answer": "7"', 1))
    with pytest.raises(CheckpointError, match=r"was made with other data"):
        train(make_config(**moved | {"train": {"max_steps": 3}}))


def test_a_file_of_reward_functions_may_have_moved_but_not_changed_its_part(
    make_config, trained, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/own.py").write_text(
        "def score(problem, answer, response, **row):\n    return len(response) % 3\n"
    )

    def functions(folder: str, weight: float = 0.5) -> dict:
        own = {"type": "function", "path": f"{tmp_path}/{folder}/own.py:score", "weight": weight}
        return {"reward": {"functions": ["math", own]}}

    run = trained(train={"max_steps": 1}, **functions("here"))
    (tmp_path / "here").rename(tmp_path / "there")
    resumed = train(make_config(train={"max_steps": 2}, **functions("there")))
    assert [row["step"] for row in read_metrics(resumed / "metrics.jsonl")] == [1, 2]
    assert "score: changed" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"\(reward\.functions\[1\]\.weight: 0\.5 then, 0\.25 now\)"):
        train(make_config(train={"max_steps": 3}, **functions("there", weight=0.25)))
    (tmp_path / "there/own.py").write_text(
        "def score(problem, answer, response, **row):\n    return len(response) % 5\n"
    )
    step = run / "checkpoints/step-000002"
    state = json.loads((step / "state.json").read_text())  # once a list with whole paths
    kept = {key: value for key, value in state["configuration"].items() if not key.startswith("reward.functions")}
    listed = [{"type": "math", "name": None, "weight": 1.0}]
    listed += [{"type": "function", "path": f"{tmp_path}/here/own.py:score", "name": None, "weight": 0.5}]
    replace_state(step, state | {"configuration": kept | {"reward.functions": listed}})
    train(make_config(train={"max_steps": 3}, run={"deterministic": False}, **functions("there")))
    shown = capsys.readouterr().out
    assert "the reward function score: changed" in shown and "resuming after step 2" in shown


def test_a_deterministic_run_without_numbers_of_threads_has_one(make_config, trained) -> None:
    whole, _ = trained(name="whole", train={"max_steps": 2}), trained(name="parts", train={"max_steps": 1})
    torch.set_num_threads(2)
    unset = {"run": {"num_threads": None}, "rollout": {"num_threads": None}}
    assert differences(whole, train(make_config(name="parts", train={"max_steps": 2}, **unset))) == []
    assert torch.get_num_threads() == 1


def test_a_run_of_the_old_form_of_the_configuration_resumes(make_config, trained) -> None:
    """Its checkpoints have flat keys and lack younger options; what differs in them is still refused."""
    folder = trained(algorithm=LUFFY, train={"max_steps": 1})
    step = folder / "checkpoints/step-000001"
    state = json.loads((step / "state.json").read_text())
    flat = {
        "prefix_loss": "luffy", "alpha": 0.1, "gamma": 0.1, "prefix_weight": 1.0, "prefix_advantage": True,
        "count_expert_in_baseline": True, "divide_by_std": False, "clip_low": None, "clip_high": None,
        "entropy_weight": 0.0, "kl_weight": 0.0, "normalizer": "tokens", "normalizer_tokens": None,
    }  # fmt: skip
    parts = ("prefix_loss", "completion_loss", "advantage", "baseline", "normalizer", "tis_cap", "sequence_bound")
    parts += ("teacher", "utility", "first_stage", "prefix_instruction")
    younger = ("instruction", "template_options", "columns", "answer_from", "filter")
    absent = (*(f"algorithm.{part}" for part in parts), *(f"data.{key}" for key in younger))
    kept = {key: value for key, value in state["configuration"].items() if not key.startswith(absent)}
    old = kept | {f"algorithm.{key}": value for key, value in flat.items()}
    state["configuration"] = old | {"rollout.tis_cap": None, "rollout.sequence_bound": None}
    replace_state(step, state)
    with pytest.raises(CheckpointError, match=r"algorithm\.prefix_loss\.gamma: 0\.1 then, 0\.3 now"):
        train(make_config(algorithm=LUFFY | {"prefix_loss": {"type": "luffy", "gamma": 0.3}}, train={"max_steps": 2}))
    whole = train(make_config(name="whole", algorithm=LUFFY, train={"max_steps": 2}))
    assert differences(whole, train(make_config(algorithm=LUFFY, train={"max_steps": 2}))) == []


def test_a_full_disk_leaves_the_last_good_checkpoint(make_config, trained, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained(train={"max_steps": 1})

    def full(*_args) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", full)
        with pytest.raises(CheckpointError, match=r"the disk is full.*to resume"):
            train(make_config(train={"max_steps": 2}))
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-000001"]
    train(make_config(train={"max_steps": 2}))
    assert differences(folder, trained(name="whole", train={"max_steps": 2})) == []


def test_two_processes_cannot_write_one_run(make_config) -> None:
    config = make_config()
    with RunFolder.open(config, restart=False), pytest.raises(ConfigError, match="another process is writing"):
        train(config)


def pretend(folder: Path, **changed: object) -> None:
    """Have environment.json say that the newest start ran with something else."""
    file = folder / "environment.json"
    starts = json.loads(file.read_text())
    starts[-1] |= changed
    file.write_text(json.dumps(starts))


@pytest.mark.long
def test_each_start_is_on_record_and_forgotten_with_its_steps(make_config, trained) -> None:
    folder = trained(train={"max_steps": 1})

    def starts() -> list[dict]:
        return json.loads((folder / "environment.json").read_text())

    (first,) = starts()
    assert first["after_step"] == 0 and first["processes"] == 1 and first["device"] == "CPU"
    assert first["versions"]["torch"] == torch.__version__ and first["package"]
    assert shlex.split(first["command"]) == sys.orig_argv  # of whatever runs the tests
    train(make_config(train={"max_steps": 3}))
    assert [start["after_step"] for start in starts()] == [0, 1] and starts()[0] == first
    recorded = (folder / "config.yaml").read_text()
    for max_steps in (3, 2):  # complete: nothing is computed, and nothing is put on record
        train(make_config(train={"max_steps": max_steps}))
        assert [start["after_step"] for start in starts()] == [0, 1]
        assert (folder / "config.yaml").read_text() == recorded
    for step in (2, 3):
        shutil.rmtree(folder / f"checkpoints/step-{step:06d}")  # the second start has nothing left to show
    train(make_config(train={"max_steps": 2}))
    assert [start["after_step"] for start in starts()] == [0, 1] and starts()[0] == first
    train(make_config(train={"max_steps": 1}), restart=True)
    assert [start["after_step"] for start in starts()] == [0]


@pytest.mark.long
def test_changed_code_is_a_warning_when_a_run_is_resumed(make_config, trained, capsys) -> None:
    loose = {"run": {"deterministic": False}}
    folder = trained(**loose, train={"max_steps": 1})
    pretend(folder, package="0dd", commit=None, versions={"torch": "2.0"})
    capsys.readouterr()
    train(make_config(**loose, train={"max_steps": 2}))
    warnings = [line for line in capsys.readouterr().out.splitlines() if "  warning: " in line]
    assert len(warnings) == 1 and "step-000001: was made by other code or versions" in warnings[0]
    assert "trapo_lite's files: 0dd then" in warnings[0]
    assert f"torch: 2.0 then, {torch.__version__} now" in warnings[0]
    train(make_config(**loose, train={"max_steps": 3}))  # the newest checkpoint is of the code of now
    pretend(folder, commit="f" * 40, clean=True, command="another", host="elsewhere")  # the same files
    train(make_config(**loose, train={"max_steps": 4}))
    assert "warning: " not in capsys.readouterr().out


def test_changed_code_is_an_error_where_bits_were_promised(make_config, trained, capsys) -> None:
    folder = trained(train={"max_steps": 1})
    pretend(folder, package="0dd")
    train(make_config(train={"max_steps": 1}))
    assert "is complete" in capsys.readouterr().out  # nothing is computed, so nothing is refused
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError, match=r"files: 0dd .*then, .* now.*run\.deterministic=false.*--restart"):
        train(make_config(train={"max_steps": 2}))
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    loose = {"run": {"deterministic": False}, "rollout": {"schedule": "barrier"}}
    train(make_config(**loose, train={"max_steps": 2}))
    assert "warning: " in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"\(run\.deterministic: False then, True now\)"):
        train(make_config(rollout={"schedule": "barrier"}, train={"max_steps": 3}))


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '[{"after_step": 0}]'], ids=repr)
def test_a_run_without_a_record_of_its_code_is_resumed_with_one_line(make_config, trained, capsys, content) -> None:
    folder = trained(train={"max_steps": 1})
    (folder / "environment.json").unlink()
    if content is not None:
        (folder / "environment.json").write_text(content)
    capsys.readouterr()
    train(make_config(train={"max_steps": 2}))
    assert capsys.readouterr().out.count("no record of the code and versions that made it") == 1
    assert [start["after_step"] for start in json.loads((folder / "environment.json").read_text())] == [1]


def test_a_run_killed_before_it_left_its_adapter_leaves_it_when_started_again(make_config, trained, capsys) -> None:
    folder = trained(train={"max_steps": 1})
    shutil.copytree(folder / "adapter", folder / "old")
    train(make_config(train={"max_steps": 2}))
    newest = (folder / "adapter/adapter_model.safetensors").read_bytes()
    shutil.rmtree(folder / "adapter")
    (folder / "old").rename(folder / "adapter")  # as if killed between the last checkpoint and the new adapter
    train(make_config(train={"max_steps": 2}))
    assert (folder / "adapter/adapter_model.safetensors").read_bytes() == newest
    capsys.readouterr()
    train(make_config(train={"max_steps": 2}))
    assert "is complete: 2 steps done" in capsys.readouterr().out


def test_an_adapter_of_an_earlier_end_is_not_taken_for_the_runs(make_config, trained) -> None:
    folder = trained(train={"max_steps": 1})
    assert final_adapter(folder) == folder / "adapter"
    shutil.copytree(folder / "adapter", folder / "old")
    train(make_config(train={"max_steps": 2}))
    assert final_adapter(folder) == folder / "adapter"
    shutil.rmtree(folder / "adapter")
    with pytest.raises(ConfigError, match=r"is not finished, so .*--adapter .*checkpoints/step-000002"):
        final_adapter(folder)
    (folder / "old").rename(folder / "adapter")  # as if killed in its second life, after a checkpoint
    with pytest.raises(ConfigError, match=r"resumed up to step-000002; .*--adapter .*step-000002 or --adapter .*"):
        final_adapter(folder)
    with pytest.raises(ConfigError, match="resumed up to step-000002"):
        export_run(folder)


@pytest.mark.long
def test_whatever_ends_a_run_the_steps_it_logged_are_kept(make_config) -> None:
    class Dies(Updater):
        def update(self, step, groups):
            if step == 2:
                raise EngineError("it died")
            return super().update(step, groups)

    config = make_config(train={"max_steps": 4, "save_every": 100})
    folder = config.run.folder
    with pytest.raises(EngineError):
        train(config, make_updater=Dies)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000002"]
    whole = train(make_config(name="whole", train={"max_steps": 4, "save_every": 100}))
    assert differences(whole, train(config)) == []


def test_a_policy_that_moved_after_the_last_logged_step_is_not_saved_as_that_step(make_config, monkeypatch) -> None:
    write = trainer.LogBook.write

    def fails_in_the_second_step(self, step: int, *args, **kwargs) -> None:
        if step == 2:
            raise OSError(28, "No space left on device")
        write(self, step, *args, **kwargs)

    config = make_config(train={"max_steps": 3, "save_every": 100})
    with monkeypatch.context() as patch:
        patch.setattr(trainer.LogBook, "write", fails_in_the_second_step)
        with pytest.raises(OSError, match="No space"):
            train(config)
    whole = train(make_config(name="whole", train={"max_steps": 3, "save_every": 100}))
    assert differences(whole, train(config)) == []


def test_a_run_that_goes_on_says_that_its_export_is_of_an_earlier_end(make_config, capsys) -> None:
    folder = train(make_config(train={"max_steps": 1}))
    said = capsys.readouterr().out
    assert "an earlier end" not in said
    assert f"next: trapo-lite evaluate --run {folder} --data FILE  (its accuracy)" in said
    assert f"next: trapo-lite export --run {folder}" in said
    (folder / "merged").mkdir()
    train(make_config(train={"max_steps": 2}))
    said = capsys.readouterr().out
    assert "adapter/ is from an earlier end of this run; it is replaced when the run ends" in said
    assert f"trapo-lite export --run {folder} --overwrite" in said
    shutil.rmtree(folder / "merged")
    train(make_config(train={"max_steps": 3}))
    assert "merged/" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"check_packing": False}},
        {"train": {"check_memory": False}},
        {"model": {"attention": "sdpa"}},
        {"model": {"gradient_checkpointing": True}},
        {"train": {"tokens_per_batch": 500}},
    ],
    ids=str,
)
def test_what_messages_advise_is_taken_when_a_run_goes_on(make_config, trained, change: dict) -> None:
    inexact = {"run": {"deterministic": False}}
    trained(**inexact, train={"max_steps": 1})
    raw = change | {"train": {"max_steps": 2} | change.get("train", {})} | inexact
    rows = read_metrics(train(make_config(**raw)) / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]


# ----- a base or a prompt that changes after training


@pytest.mark.parametrize("what", ["weights", "template", "ends"])
def test_what_an_adapter_was_trained_with_may_not_change_unseen(
    make_config, data_file: Path, tmp_path: Path, what: str
) -> None:
    """Resuming, evaluating and exporting name the change; a prompt that is given on purpose is taken."""
    base = write_byte_model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(base)
    data = {"prompt_template": "chat", "max_prompt_tokens": 64}
    config = make_config(model={"name": str(base)}, data=data, train={"max_steps": 1}, algorithm=LUFFY)
    run = train(config)
    longer = make_config(model={"name": str(base)}, data=data, train={"max_steps": 2}, algorithm=LUFFY)
    target = partial(
        target_from_arguments,
        run=run,
        model=None,
        adapter=None,
        base=False,
        data=str(data_file),
        benchmarks=[],
        registry=REGISTRY,
        allow_part=False,
        num_samples=None,
        restart=False,
        config=[],
    )
    if what == "weights":
        tensors = load_file(base / "model.safetensors")
        save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, base / "model.safetensors")
        expected = r"trained on other weights than .*base holds now \([0-9a-f]{16} then"
    elif what == "template":
        tokenizer.chat_template = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant: ")
        assert tokenizer.chat_template != CHATML
        tokenizer.save_pretrained(base)
        expected = r"trained with another prompt than .*base gives now.*Then: '.*assistant\\n'; now: '.*assistant: '"
    else:
        (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id, 65]}))
        expected = r"trained with other tokens that end an answer than .*Then: \[259, 257\]; now: \[259, 257, 65\]"
    generation_ends.cache_clear()
    with pytest.raises(ConfigError, match=expected):
        evaluate(target(out=tmp_path / "out", overrides=["eval.num_problems=2"]))
    with pytest.raises(ConfigError, match=expected):
        export_run(run)
    assert not (run / "merged").exists()
    by_key = {"weights": "another model", "template": "another prompt or end", "ends": "another prompt or end"}
    with pytest.raises(CheckpointError, match=by_key[what]):
        train(longer)
    if what == "template":
        given = ["data.prompt_template=chat", "eval.num_problems=2"]
        assert evaluate(target(out=tmp_path / "out", overrides=given))
