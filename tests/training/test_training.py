"""Whole runs on a byte-level tiny model with the transformers engine and the real verifier."""

import errno
import hashlib
import json
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from adapter_folders import edited, renamed, with_nan
from byte_model import byte_tokenizer, write_byte_model
from run_differences import differences
from transformers import AddedToken

from trapo_lite.config import Config, validate
from trapo_lite.core.errors import CheckpointError, ConfigError, DataError, EngineError, ModelError, UpdateError
from trapo_lite.evaluation import evaluate
from trapo_lite.export.merge import export_run
from trapo_lite.run.folder import RunFolder, final_adapter, read_metrics
from trapo_lite.training import checkpoint, trainer
from trapo_lite.training.inputs import read_inputs
from trapo_lite.training.trainer import train
from trapo_lite.training.update import Updater

pytestmark = pytest.mark.slow

GRPO = {"name": "grpo", "schedule": [{"num_rollouts": 4}], "prefix_loss": "none"}
SFT = {
    "name": "sft",
    "schedule": [{"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": None}],
    "prefix_loss": "nll",
}
LUFFY = {
    "name": "luffy",
    "schedule": [{"num_rollouts": 3}, {"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": None}],
    "prefix_loss": "luffy",
}
TRAPO = {
    "name": "trapo",
    "schedule": [
        {"num_rollouts": 2},
        {"num_rollouts": 2, "prefix_ratio": 0.5, "help_below": 0.5, "num_trained": 1},
        {"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": 1.0},
    ],
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("byte_model"))


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [
        {"problem": f"{a}+{b}?", "answer": str(a + b), "solution": f"{a} and {b}.\n\nSo \\boxed{{{a + b}}}"}
        for a in range(3)
        for b in range(4)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def make_config(model_dir: Path, data_file: Path, tmp_path: Path):
    def make(*, name: str = "run", algorithm: dict = TRAPO, **changes: dict) -> Config:
        raw = {
            "model": {"name": str(model_dir), "dtype": "float32"},
            "lora": {"r": 4, "alpha": 8},
            "data": {
                "train": str(data_file),
                "expert_text": "full",
                "prompt_template": "{problem}\n",
                "max_prompt_tokens": 16,
            },
            "rollout": {"engine": "transformers", "num_problems": 3, "max_response_tokens": 48},
            "reward": {"num_workers": 1},
            "algorithm": algorithm,
            "optim": {"lr": 1e-3},
            "train": {"max_steps": 2, "save_every": 1},
            "run": {
                "name": name,
                "dir": str(tmp_path),
                "deterministic": True,
                "num_threads": 1,
                "tensorboard": False,
            },
        }
        for section, values in changes.items():
            raw[section] = raw.get(section, {}) | values
        return validate(raw)

    return make


def with_added_token(model_dir: Path, folder: Path) -> Path:
    """The byte model, whose 260 embeddings end at 259, with a tokenizer that knows one token more: <|new|>, 260."""
    shutil.copytree(model_dir, folder)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<|new|>", special=True)])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("data", "rows", "message"),
    [
        ({"prompt_template": "<|new|>{problem}\n"}, {}, "data: the prompt of problem one holds '<|new|>', token 260, "),
        ({}, {"problem": "<|new|>?"}, "data: the prompt of problem one holds '<|new|>', token 260, "),
        ({}, {"solution": "It is <|new|>1."}, "data: the expert solution of problem one holds '<|new|>', token 260, "),
        ({"eos_token": "<|new|>"}, {}, "data.eos_token: '<|new|>' is token 260, "),
    ],
)
def test_a_token_without_an_embedding_is_refused_before_anything_starts(
    make_config, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict, rows: dict, message: str
) -> None:
    """It ended in an IndexError once engine, verifier and model had started; in evaluations as well."""
    monkeypatch.setattr(evaluate, "start_engine", lambda *_, **__: pytest.fail("the engine is started"))
    folder, file = with_added_token(model_dir, tmp_path / "added"), tmp_path / "made.jsonl"
    file.write_text(json.dumps({"id": "one", "problem": "1?", "answer": "1", "solution": "It is 1."} | rows) + "\n")
    config = make_config(
        model={"name": str(folder)},
        data={"train": str(file), **data},
        rollout={"num_problems": 1},
        eval={"data": str(file)},
    )
    for job in (
        partial(train, start_engine=no_model),
        lambda config: evaluate.evaluate(evaluate.EvalTarget(config, None, tmp_path / "out")),
    ):
        with pytest.raises((ConfigError, DataError)) as caught:
            job(config)
        assert str(caught.value).startswith(f"{message}but {folder} has embeddings for the tokens 0 to 259 only; ")
        assert "enlarge the model's embeddings" in str(caught.value)


def test_a_token_that_is_not_used_needs_no_embedding(make_config, model_dir: Path, tmp_path: Path) -> None:
    config = make_config(model={"name": str(with_added_token(model_dir, tmp_path / "added"))})
    assert len(read_inputs(config).problems) == 12


def test_a_run_says_what_its_prompts_lack(make_config, model_dir: Path, tmp_path: Path, capsys) -> None:
    """On the terminal of a training run and of an evaluation, once each; nothing where the template fits."""
    shutil.copytree(model_dir, tmp_path / "chat")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "<|im_start|>{{ messages[0].content }}<|im_end|>"
    tokenizer.save_pretrained(tmp_path / "chat")
    data = {"data": str(make_config().data.train), "every": 2, "num_problems": 1}
    for model, is_warned in ((tmp_path / "chat", True), (model_dir, False)):
        config = make_config(name=f"run-{is_warned}", model={"name": str(model)}, eval=data, algorithm=GRPO)
        train(config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 1})}))
        trained = capsys.readouterr().out
        evaluate.evaluate(evaluate.EvalTarget(config, None, tmp_path / f"out-{is_warned}"))
        evaluated = capsys.readouterr().out
        for printed in (trained, evaluated):
            assert (
                printed.count("WARNING: data.prompt_template: differs from the tokenizer's chat template") == is_warned
            )
            assert printed.count("first prompt, 5 tokens: '0' 15, '+' 10, '0' 15, '?' 30, '\\n' 198") == is_warned


def test_a_run_leaves_what_the_folder_promises(make_config, data_file: Path) -> None:
    config = make_config(eval={"every": 2, "data": str(data_file), "num_problems": 2}, run={"tensorboard": True})
    folder = train(config)
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert "eval/accuracy" not in rows[0] and 0.0 <= rows[1]["eval/accuracy"] <= 1.0
    assert rows[1]["rollout/guided"] == 3 / 5  # a random model fails, so every problem gets the whole schedule
    assert rows[1]["reward/expert"] == rows[1]["reward/helped_3"] == 1.0
    rollouts = [json.loads(line) for line in (folder / "rollouts/step-000002.jsonl").read_text().splitlines()]
    assert len(rollouts) == 3 * 5
    for group in (rollouts[:5], rollouts[5:10], rollouts[10:]):
        mean = sum(line["reward"] for line in group) / 5
        assert [line["advantage"] for line in group] == pytest.approx([line["reward"] - mean for line in group])
        assert [line["train_prefix"] for line in group] == [False, False, False, True, True]
        assert [line["micro_group"] for line in group] == [1, 1, 2, 2, 3]
        assert [line["ratio"] for line in group] == [0.0, 0.0, 0.5, 0.5, 1.0]
        first, second = group[0]["prompt"].removesuffix("?\n").split("+")
        assert {line["gold"] for line in group} == {str(int(first) + int(second))}
        assert group[4]["completion"] == "" and group[4]["finish_reason"] == "expert"
        assert all(len(line["completion_ids"]) == len(line["completion_logprobs"]) for line in group)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-000001", "step-000002"]
    assert (folder / "adapter/adapter_model.safetensors").is_file()
    assert list((folder / "tensorboard").iterdir())
    assert trainer.Config is Config and validate_file(folder / "config.yaml") == config


def validate_file(path: Path) -> Config:
    import yaml

    return validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("algorithm", [GRPO, SFT, LUFFY], ids=lambda block: block["name"])
def test_every_algorithm_runs_by_configuration(make_config, algorithm: dict) -> None:
    rows = read_metrics(train(make_config(algorithm=algorithm)) / "metrics.jsonl")
    assert len(rows) == 2
    if algorithm is GRPO:
        assert rows[0]["rollout/guided"] == 0.0 and rows[0]["optim/grad_norm"] == 0.0  # all fail: no advantage
        assert rows[0]["train/skipped_groups"] == 3 and rows[0]["train/tokens"] == 0
    else:
        assert rows[0]["optim/grad_norm"] > 0.0


def test_sft_never_starts_an_engine(make_config) -> None:
    def refuse(*_args, **_kwargs):
        raise AssertionError("an engine was started")

    folder = train(make_config(algorithm=SFT), start_engine=refuse)
    losses = [row["loss/prefix"] for row in read_metrics(folder / "metrics.jsonl")]
    assert losses[1] < losses[0]
    with pytest.raises(AssertionError, match="engine was started"):
        train(make_config(name="other", algorithm=GRPO), start_engine=refuse)


def test_sft_then_rl_starts_from_the_sft_adapter(make_config) -> None:
    sft = train(make_config(name="sft", algorithm=SFT))
    start = {"lora": {"init_from": str(sft / "adapter")}, "optim": {"weight_decay": 0.0}, "train": {"max_steps": 1}}
    rl = train(make_config(name="rl", algorithm=GRPO, **start))
    saved = [(folder / "adapter/adapter_model.safetensors").read_bytes() for folder in (sft, rl)]
    assert saved[0] == saved[1]  # all its problems failed, so the one step moved nothing


def test_an_adapter_under_other_names_is_no_start(make_config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else SFT-then-RL would be RL: found before a model is loaded, and so are weights that are not finite."""
    sft = train(make_config(name="sft", algorithm=SFT, train={"max_steps": 1}))
    monkeypatch.setattr(trainer.Policy, "load", no_model)
    for name, tensors, complaint in (("names", renamed, "28 of 28 tensors are missing"), ("nan", with_nan, "finite")):
        wrong = edited(sft / "adapter", tmp_path / name, tensors=tensors)
        with pytest.raises(ConfigError, match=complaint):
            train(make_config(name="rl", algorithm=GRPO, lora={"init_from": str(wrong)}), start_engine=no_model)


def test_what_a_run_leaves_can_be_read_by_others_and_says_what_it_is(make_config, model_dir: Path) -> None:
    folder = train(make_config(algorithm=SFT, data={"eos_token": "<|im_end|>"}, train={"max_steps": 1}))
    (plain := folder / "plain").touch()
    files = [*(folder / "adapter").iterdir(), *(folder / "checkpoints/step-000001").iterdir()]
    assert len(files) == 3 + 6 and {file.stat().st_mode for file in files} == {plain.stat().st_mode}
    assert json.loads((folder / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == str(model_dir)
    card = (folder / "adapter/README.md").read_text()
    assert "r = 4, alpha = 8" in card and "`<\\|im_end\\|>`" in card and "base_model:" not in card
    assert f"vllm serve {model_dir} --enable-lora --max-lora-rank 8 --lora-modules trained=." in card


def test_a_copy_of_a_checkpoint_under_another_name_is_left_alone(make_config) -> None:
    folder = train(make_config(train={"max_steps": 1}))
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


def test_stopped_and_resumed_equals_uninterrupted(make_config) -> None:
    whole = train(make_config(name="whole", train={"max_steps": 4}))
    train(make_config(name="parts", train={"max_steps": 2}))
    parts = train(make_config(name="parts", train={"max_steps": 4}))
    assert differences(whole, parts) == []
    other = train(make_config(name="other", train={"max_steps": 4}, run={"seed": 1}))
    assert differences(whole, other)  # the comparison can fail


def test_lines_beyond_the_checkpoint_are_cut_back(make_config) -> None:
    whole = train(make_config(name="whole", train={"max_steps": 3, "save_every": 3}))
    parts = train(make_config(name="parts", train={"max_steps": 3}))
    for step in (2, 3):
        shutil.rmtree(parts / f"checkpoints/step-{step:06d}")
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "torn')
    train(make_config(name="parts", train={"max_steps": 3}))
    assert differences(whole, parts) == []


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(make_config, capsys) -> None:
    whole = train(make_config(name="whole", train={"max_steps": 3}))
    train(make_config(name="parts"))
    damaged = whole.parent / "parts/checkpoints/step-000002/optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    capsys.readouterr()
    parts = train(make_config(name="parts", train={"max_steps": 3}))
    output = capsys.readouterr().out
    assert "step-000002: optimizer.safetensors is damaged" in output and "resuming after step 1" in output
    assert differences(whole, parts) == []


def test_a_checkpoint_of_another_configuration_or_model_is_refused(make_config, tmp_path: Path, capsys) -> None:
    train(make_config())
    with pytest.raises(CheckpointError, match=r"optim.lr: 0.001 then, 0.5 now.*--restart"):
        train(make_config(optim={"lr": 0.5}))
    other = write_byte_model(tmp_path / "other", num_layers=1)
    with pytest.raises(CheckpointError, match="another"):
        train(make_config(model={"name": str(other)}))
    capsys.readouterr()
    train(make_config(optim={"lr": 0.5}), restart=True)
    (old,) = [path for path in tmp_path.iterdir() if path.name.startswith("run.old-")]
    assert f"{tmp_path / 'run'}: the run that was here is now in {old}" in capsys.readouterr().out


def test_a_run_of_the_old_form_of_the_configuration_resumes(make_config) -> None:
    """Its config.yaml and its checkpoints have flat keys; what differs in them is still refused."""
    folder = train(make_config(algorithm=LUFFY, train={"max_steps": 1}))
    step = folder / "checkpoints/step-000001"
    state = json.loads((step / "state.json").read_text())
    flat = {
        "prefix_loss": "luffy", "alpha": 0.1, "gamma": 0.1, "prefix_weight": 1.0, "prefix_advantage": True,
        "count_expert_in_baseline": True, "divide_by_std": False, "clip_low": None, "clip_high": None,
        "entropy_weight": 0.0, "kl_weight": 0.0, "normalizer": "tokens", "normalizer_tokens": None,
    }  # fmt: skip
    parts = ("prefix_loss", "completion_loss", "advantage", "baseline", "normalizer", "tis_cap", "sequence_bound")
    kept = {
        key: value
        for key, value in state["configuration"].items()
        if not any(key.startswith(f"algorithm.{part}") for part in parts)
    }
    old = kept | {f"algorithm.{key}": value for key, value in flat.items()}
    state["configuration"] = old | {"rollout.tis_cap": None, "rollout.sequence_bound": None}
    (step / "state.json").write_text(json.dumps(state))
    manifest = json.loads((step / "manifest.json").read_text())
    data = (step / "state.json").read_bytes()
    manifest["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (step / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"algorithm\.prefix_loss\.gamma: 0\.1 then, 0\.3 now"):
        train(make_config(algorithm=LUFFY | {"prefix_loss": {"type": "luffy", "gamma": 0.3}}, train={"max_steps": 2}))
    whole = train(make_config(name="whole", algorithm=LUFFY, train={"max_steps": 2}))
    assert differences(whole, train(make_config(algorithm=LUFFY, train={"max_steps": 2}))) == []


def test_a_full_disk_leaves_the_last_good_checkpoint(make_config, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(make_config(train={"max_steps": 1}))

    def full(*_args) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", full)
        with pytest.raises(CheckpointError, match=r"the disk is full.*to resume"):
            train(make_config(train={"max_steps": 2}))
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-000001"]
    train(make_config(train={"max_steps": 2}))
    assert differences(folder, train(make_config(name="whole"))) == []


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


def test_each_start_is_on_record_and_forgotten_with_its_steps(make_config) -> None:
    folder = train(make_config(train={"max_steps": 1}))

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


def test_changed_code_is_a_warning_when_a_run_is_resumed(make_config, capsys) -> None:
    loose = {"run": {"deterministic": False}}
    folder = train(make_config(**loose, train={"max_steps": 1}))
    pretend(folder, package="0dd", commit=None, versions={"torch": "2.0"})
    capsys.readouterr()
    train(make_config(**loose, train={"max_steps": 2}))
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1 and "step-000001: was made by other code or versions" in warnings[0]
    assert "trapo_lite's files: 0dd then" in warnings[0]
    assert f"torch: 2.0 then, {torch.__version__} now" in warnings[0]
    train(make_config(**loose, train={"max_steps": 3}))  # the newest checkpoint is of the code of now
    pretend(folder, commit="f" * 40, clean=True, command="another", host="elsewhere")  # the same files
    train(make_config(**loose, train={"max_steps": 4}))
    assert "WARNING" not in capsys.readouterr().out


def test_changed_code_is_an_error_where_bits_were_promised(make_config, capsys) -> None:
    folder = train(make_config(train={"max_steps": 1}))
    pretend(folder, package="0dd")
    train(make_config(train={"max_steps": 1}))
    assert "is complete" in capsys.readouterr().out  # nothing is computed, so nothing is refused
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError, match=r"files: 0dd .*then, .* now.*run\.deterministic=false.*--restart"):
        train(make_config(train={"max_steps": 2}))
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    loose = {"run": {"deterministic": False}, "rollout": {"schedule": "barrier"}}
    train(make_config(**loose, train={"max_steps": 2}))
    assert "WARNING: " in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"\(run\.deterministic: False then, True now\)"):
        train(make_config(rollout={"schedule": "barrier"}, train={"max_steps": 3}))


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '[{"after_step": 0}]'], ids=repr)
def test_a_run_without_a_record_of_its_code_is_resumed_with_one_line(make_config, capsys, content) -> None:
    folder = train(make_config(train={"max_steps": 1}))
    (folder / "environment.json").unlink()
    if content is not None:
        (folder / "environment.json").write_text(content)
    capsys.readouterr()
    train(make_config(train={"max_steps": 2}))
    assert capsys.readouterr().out.count("no record of the code and versions that made it") == 1
    assert [start["after_step"] for start in json.loads((folder / "environment.json").read_text())] == [1]


def no_model(*_args, **_kwargs):
    raise AssertionError("a model was loaded before the mistake was found")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"train": "nowhere.jsonl"}}, DataError, "nowhere.jsonl"),
        ({"model": {"name": "./no-model"}}, ConfigError, "no folder './no-model'"),
        ({"lora": {"init_from": "no-adapter"}}, ConfigError, "no adapter_config.json"),
        (
            {"lora": {"target_modules": ["q_proj", "k_prj"]}},
            ConfigError,
            "called 'k_prj'; there are down_proj",
        ),
        ({"model": {"name": "tests/no-model"}}, ConfigError, "no folder 'tests/no-model'"),
        ({"data": {"max_prompt_tokens": 5000}}, ConfigError, "positions for 4096"),
        ({"data": {"max_prompt_tokens": 2}}, DataError, "line 1: problem: 5 tokens.*raise data.max_prompt_tokens"),
        ({"model": {"config_overrides": {"rope_theta": 4e4}}}, ConfigError, "rope_parameters"),
        ({"rollout": {"num_problems": 13}}, ConfigError, "12 usable problems; lower it"),
        ({"data": {"eos_token": "<|nonsense|>"}}, DataError, "eos_token"),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else "-".join(value),
)
def test_bad_input_is_refused_before_a_model_is_loaded(make_config, monkeypatch, changes, error, message) -> None:
    monkeypatch.setattr(trainer.Policy, "load", no_model)
    with pytest.raises(error, match=message):
        train(make_config(**changes), start_engine=no_model)


def test_a_folder_without_weights_or_with_an_adapter_is_no_model(make_config, model_dir: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(model_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match=r"cannot load .*give a folder with weights"):
        train(make_config(model={"name": str(bare)}))
    adapter = train(make_config(algorithm=SFT, name="sft", train={"max_steps": 1})) / "adapter"
    with pytest.raises(ConfigError, match="is an adapter"):
        train(make_config(model={"name": str(adapter)}))


def test_a_run_killed_before_it_left_its_adapter_leaves_it_when_started_again(make_config, capsys) -> None:
    folder = train(make_config(train={"max_steps": 1}))
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


def test_an_adapter_of_an_earlier_end_is_not_taken_for_the_runs(make_config) -> None:
    folder = train(make_config(train={"max_steps": 1}))
    assert final_adapter(folder) == folder / "adapter"
    shutil.copytree(folder / "adapter", folder / "old")
    train(make_config(train={"max_steps": 2}))
    assert final_adapter(folder) == folder / "adapter"
    shutil.rmtree(folder / "adapter")
    (folder / "old").rename(folder / "adapter")  # as if killed in its second life, after a checkpoint
    with pytest.raises(ConfigError, match=r"gone on to step-000002; .*--adapter .*step-000002 or --adapter .*/adapter"):
        final_adapter(folder)
    with pytest.raises(ConfigError, match="gone on to step-000002"):
        export_run(folder)


def test_whatever_ends_a_run_the_steps_it_logged_are_kept(make_config) -> None:
    class Dies(Updater):
        def update(self, step, groups):
            if step == 2:
                raise EngineError("it died")
            return super().update(step, groups)

    config = make_config(train={"max_steps": 4, "save_every": 100})
    folder = config.run.folder
    with pytest.raises(EngineError):
        train(config, make_updater=Dies.from_config)
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


def test_a_mismatch_of_sampler_and_trainer_is_an_alarm(make_config, capsys) -> None:
    train(make_config(name="calm", train={"max_steps": 1}))
    assert "sampler and trainer differ" not in capsys.readouterr().out
    folder = train(make_config(name="loud", train={"max_steps": 1}, rollout={"mismatch_alarm": 1e-12}))
    assert "step 1: WARNING: sampler and trainer differ" in capsys.readouterr().out
    (row,) = read_metrics(folder / "metrics.jsonl")
    assert 0 < row["mismatch/abs"] <= row["mismatch/p99"] < 1e-4
    stages = ("publish", "score", "sample", "verdicts", "update", "idle")
    assert sum(row[f"time/{stage}"] for stage in stages) == pytest.approx(row["time/step"])
    assert row["time/idle"] >= 0 and row["time/first_token"] > row["time/publish"] > 0


def test_a_run_that_goes_on_says_that_its_export_is_of_an_earlier_end(make_config, capsys) -> None:
    folder = train(make_config(train={"max_steps": 1}))
    said = capsys.readouterr().out
    assert "an earlier end" not in said
    assert f"next: python scripts/evaluate.py --run {folder} --benchmarks NAME ..." in said
    assert f"next: python scripts/export.py --run {folder}" in said
    (folder / "merged").mkdir()
    train(make_config(train={"max_steps": 2}))
    said = capsys.readouterr().out
    assert "adapter/ is from an earlier end of this run; it is replaced when the run ends" in said
    assert f"python scripts/export.py --run {folder} --overwrite" in said
    shutil.rmtree(folder / "merged")
    train(make_config(train={"max_steps": 3}))
    assert "merged/" not in capsys.readouterr().out


def test_no_expert_traces_where_the_schedule_needs_them(make_config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trainer.Policy, "load", no_model)
    file = tmp_path / "bare.jsonl"
    file.write_text('{"problem": "1+1?", "answer": "2"}\n')
    with pytest.raises(DataError, match="no expert trace"):
        train(make_config(data={"train": str(file)}))


# ----- the update as the trainer wires it


def test_a_run_with_gradient_checkpointing_checks_its_packing_and_equals_one_without(make_config, capsys) -> None:
    train(make_config(name="plain"))
    assert capsys.readouterr().out.count("packing check: ") == 1
    train(make_config(name="checkpointed", model={"gradient_checkpointing": True}))
    assert capsys.readouterr().out.count("packing check: ") == 1
    plain, checkpointed = (
        read_metrics(make_config(name=name).run.folder / "metrics.jsonl") for name in ("plain", "checkpointed")
    )
    for one, other in zip(plain, checkpointed, strict=True):
        assert other["optim/grad_norm"] == pytest.approx(one["optim/grad_norm"], rel=1e-4)
        assert one["speed/trained_tokens_per_second"] > 0 and one["memory/peak_gib"] > 0 and one["train/tflop"] > 0


def test_packing_is_checked_in_the_first_step_that_has_a_gradient(make_config, capsys) -> None:
    """A random model fails at everything, so GRPO without help has none; nothing was compared until it has."""
    grpo = make_config(algorithm=GRPO, train={"max_steps": 1})
    train(grpo)
    assert "packing check" not in capsys.readouterr().out

    class Later(Updater):
        def update(self, step, groups):
            return super().update(step, groups if step > 0 else [])

    train(make_config(name="later", train={"max_steps": 4}), make_updater=Later.from_config)
    assert capsys.readouterr().out.count("packing check: ") == 1


def test_what_does_not_fit_the_gpu_is_refused_unless_told_otherwise(make_config, monkeypatch) -> None:
    monkeypatch.setattr(trainer.device, "total_memory", lambda _: 2.0**20)

    def no_engine(*_: object, **__: object):
        pytest.fail("an engine was started")

    with pytest.raises(ConfigError, match=r"does not fit the GPU.*train\.check_memory=false"):
        train(make_config(), start_engine=no_engine)
    with pytest.raises(pytest.fail.Exception, match="an engine was started"):
        train(make_config(name="anyway", train={"check_memory": False}), start_engine=no_engine)


def test_a_budget_that_memory_lowered_stays_lowered(make_config, monkeypatch, capsys) -> None:
    given: list[int] = []

    class ShortOfMemory(Updater):
        def update(self, step, groups):
            given.append(self.tokens_per_batch)
            compute, failed = self.policy.token_logprobs, []

            def token_logprobs(batch, *, temperature):
                if step == 0 and batch.num_tokens > 100 and not failed:
                    failed.append(batch)
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return compute(batch, temperature=temperature)

            monkeypatch.setattr(self.policy, "token_logprobs", token_logprobs)
            return super().update(step, groups)

    config = make_config(train={"check_packing": False, "max_steps": 3})
    folder = train(config, make_updater=ShortOfMemory.from_config)
    assert given[0] > given[1] == given[2]
    assert [row["train/out_of_memory"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 0, 0]
    assert f"memory ran out; forward passes have {given[1]} tokens" in capsys.readouterr().out


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
def test_what_messages_advise_is_taken_when_a_run_goes_on(make_config, change: dict) -> None:
    inexact = {"run": {"deterministic": False}}
    train(make_config(**inexact, train={"max_steps": 1}))
    raw = change | {"train": {"max_steps": 2} | change.get("train", {})} | inexact
    rows = read_metrics(train(make_config(**raw)) / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]


def test_no_memory_in_the_optimizer_is_one_error(make_config, monkeypatch) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.optim.AdamW, "step", out_of_memory)
    with pytest.raises(UpdateError, match=r"in the optimizer's step; start again with optim\.name: adamw_8bit"):
        train(make_config(train={"check_packing": False}))
