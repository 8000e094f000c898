"""Whole runs on a byte-level tiny model with the transformers engine and the real verifier."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from adapter_folders import edited, renamed, with_nan
from byte_model import byte_tokenizer
from run_differences import read_metrics
from tiny_runs import GRPO, LUFFY, SFT, data_file, finished_runs, make_config, model_dir, trained
from transformers import AddedToken

from trapo_lite.config import Config, validate
from trapo_lite.core.errors import CheckpointError, ConfigError, DataError, ModelError, UpdateError
from trapo_lite.evaluation import evaluate
from trapo_lite.training import trainer
from trapo_lite.training.inputs import read_inputs
from trapo_lite.training.trainer import train
from trapo_lite.training.update import Updater

pytestmark = pytest.mark.slow


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


def test_a_stop_token_that_is_several_tokens_is_refused_before_anything_starts(
    make_config, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(data={"stop_tokens": ["two words"]}, eval={"data": str(data_file)})
    monkeypatch.setattr(evaluate, "start_engine", lambda *_, **__: pytest.fail("the engine is started"))
    for job in (read_inputs, lambda config: evaluate.evaluate(evaluate.EvalTarget(config, None, tmp_path / "out"))):
        with pytest.raises(DataError, match=r"data\.stop_tokens: 'two words' is 9 tokens, and must be one token"):
            job(config)
    assert not (tmp_path / "out").exists()


def test_an_expert_text_that_opens_the_thought_again_is_refused_if_the_experts_are_used(
    make_config, tmp_path: Path
) -> None:
    file = tmp_path / "thoughts.jsonl"
    file.write_text(json.dumps({"problem": "1?", "answer": "1", "solution": "<think>\nOne.\n</think>\nIt is 1."}))
    data = {"train": str(file), "prompt_template": "{problem}\n<think>\n"}
    with pytest.raises(ConfigError, match=r"data\.expert_text: full, but the prompt ends in <think>, .*: opened$"):
        read_inputs(make_config(data=data, rollout={"num_problems": 1}))
    read_inputs(make_config(data=data, rollout={"num_problems": 1}, algorithm=GRPO))
    read_inputs(make_config(data={**data, "expert_text": "opened"}, rollout={"num_problems": 1}))


@pytest.mark.long
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
            assert printed.count("prompt: data.prompt_template; an answer ends at '<|endoftext|>'\n") == 1
            assert (
                printed.count("warning: data.prompt_template: differs from the tokenizer's chat template") == is_warned
            )
            assert printed.count("first prompt, 5 tokens: '0' 15, '+' 10, '0' 15, '?' 30, '\\n' 198") == is_warned


def test_a_run_leaves_what_the_folder_promises(make_config, data_file: Path) -> None:
    data = {"every": 2, "data": str(data_file), "num_problems": 2}
    config = make_config(eval=data, run={"trackers": ["tensorboard"]})
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


def test_sft_then_rl_starts_from_the_sft_adapter(make_config, capsys: pytest.CaptureFixture) -> None:
    sft = train(make_config(name="sft", algorithm=SFT))
    start = {"lora": {"init_from": str(sft / "adapter")}, "optim": {"weight_decay": 0.0}, "train": {"max_steps": 1}}
    rl = train(make_config(name="rl", algorithm=GRPO, **start))
    saved = [(folder / "adapter/adapter_model.safetensors").read_bytes() for folder in (sft, rl)]
    assert saved[0] == saved[1]  # all its problems failed, so the one step moved nothing
    moved = (sft / "adapter").rename(sft / "moved")
    start |= {"lora": {"init_from": str(moved)}, "train": {"max_steps": 2}}
    train(make_config(name="rl", algorithm=GRPO, **start))  # resumes
    assert "lora.init_from: is not taken again" in capsys.readouterr().out


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
    assert "r = 4, alpha = 8" in card and "`<\\|im_end\\|>`, `<\\|endoftext\\|>`" in card and "base_model:" not in card
    assert f"vllm serve {model_dir} --enable-lora --max-lora-rank 8 --lora-modules trained=." in card
    assert "prompt = '{problem}\\n'.replace(" in card


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
        (
            {"data": {"shares": [1]}, "rollout": {"num_problems": 13}},
            ConfigError,
            r"by data.shares 13 of them from this source, but .*sums.jsonl has 12 usable problems; lower it or",
        ),
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


def test_each_source_has_its_share_of_every_step(make_config, data_file: Path, tmp_path: Path, capsys) -> None:
    small = tmp_path / "small.jsonl"
    small.write_text(
        "".join(json.dumps({"id": f"s{n}", "problem": f"{n}-1?", "answer": str(n - 1)}) + "\n" for n in (5, 6))
    )
    config = make_config(
        algorithm=GRPO, data={"train": [str(data_file), str(small)], "shares": [2, 1]}, rollout={"num_problems": 3}
    )
    train(config)
    for file in sorted((config.run.folder / "rollouts").iterdir()):
        ids = [json.loads(line)["problem_id"] for line in file.read_text().splitlines()]
        assert len(ids) == 3 * 4 and sum(name.startswith("s") and not name.startswith("sums") for name in ids) == 4
    assert f"2 from {data_file} (12 problems, 0.33 times each), 1 from {small} (2 problems, 1 times each)" in (
        capsys.readouterr().out
    )


def test_a_mismatch_of_sampler_and_trainer_is_an_alarm(make_config, capsys) -> None:
    train(make_config(name="calm", train={"max_steps": 1}))
    assert "sampler and trainer differ" not in capsys.readouterr().out
    folder = train(make_config(name="loud", train={"max_steps": 1}, rollout={"mismatch_alarm": 1e-12}))
    assert "warning: step 1: sampler and trainer differ" in capsys.readouterr().out
    (row,) = read_metrics(folder / "metrics.jsonl")
    assert 0 < row["mismatch/abs"] <= row["mismatch/p99"] < 1e-4
    stages = ("publish", "score", "sample", "verdicts", "update", "idle")
    assert sum(row[f"time/{stage}"] for stage in stages) == pytest.approx(row["time/step"])
    assert row["time/idle"] >= 0 and row["time/first_token"] > row["time/publish"] > 0


def test_no_expert_traces_where_the_schedule_needs_them(make_config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trainer.Policy, "load", no_model)
    file = tmp_path / "bare.jsonl"
    file.write_text('{"problem": "1+1?", "answer": "2"}\n')
    with pytest.raises(DataError, match="no expert trace"):
        train(make_config(data={"train": str(file)}))


# ----- the update as the trainer wires it


@pytest.mark.long
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


@pytest.mark.long
def test_packing_is_checked_in_the_first_step_that_has_a_gradient(make_config, capsys) -> None:
    """A random model fails at everything, so GRPO without help has none; nothing was compared until it has."""
    grpo = make_config(algorithm=GRPO, train={"max_steps": 1})
    train(grpo)
    assert "packing check" not in capsys.readouterr().out

    class Later(Updater):
        def update(self, step, groups):
            return super().update(step, groups if step > 0 else [])

    train(make_config(name="later", train={"max_steps": 4}), make_updater=Later)
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
    folder = train(config, make_updater=ShortOfMemory)
    assert given[0] > given[1] == given[2]
    assert [row["train/out_of_memory"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 0, 0]
    assert f"memory ran out; forward passes have {given[1]} tokens" in capsys.readouterr().out


def test_no_memory_in_the_optimizer_is_one_error(make_config, monkeypatch) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.optim.AdamW, "step", out_of_memory)
    with pytest.raises(UpdateError, match=r"in the optimizer's step; start again with optim\.name: adamw_8bit"):
        train(make_config(train={"check_packing": False}))


def test_what_is_drawn_as_one_source_is_part_of_the_data(make_config, data_file: Path, tmp_path: Path) -> None:
    """The same rows in the same order, but another boundary between two sources with shares."""
    rows = [json.loads(line) | {"id": str(number)} for number, line in enumerate(data_file.read_text().splitlines())]

    def config(boundary: int, max_steps: int):
        for name, part in (("one", rows[:boundary]), ("two", rows[boundary:])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        data = {"train": [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")], "shares": [1, 1]}
        return make_config(algorithm=GRPO, data=data, rollout={"num_problems": 2}, train={"max_steps": max_steps})

    train(config(4, 1))
    with pytest.raises(CheckpointError, match="was made with other data"):
        train(config(8, 2))
