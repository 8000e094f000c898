"""A dry run says what a run would do, and refuses what a run would refuse, without weights."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from byte_model import CHATML
from conftest import VLLM_DTYPE
from huggingface_hub import constants

from trapo_lite import cli
from trapo_lite.core.errors import EngineError
from trapo_lite.engines.base import EngineDied
from trapo_lite.engines.vllm import engine as vllm_engine
from trapo_lite.engines.vllm.options import VLLMOptions

TINY = Path("trapo_lite/tiny_world/base")
CHAT = "data.prompt_template=chat"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model with a chat template and without weights."""
    folder = shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def dry_run(model: Path, *overrides: str) -> None:
    options = [f"model.name={model}", "rollout.engine=transformers", *overrides]
    cli.train(["--config", "configs/tiny_cpu.yaml", "--dry-run", *options])


def test_it_names_the_layout_the_prompt_and_what_ends_an_answer(model: Path, capsys: pytest.CaptureFixture) -> None:
    dry_run(model)
    *_, layout, prompt, verdict = capsys.readouterr().out.splitlines()
    assert layout == "layout: tree"
    assert prompt.startswith("prompt: data.prompt_template; an answer ends at ")
    assert verdict == "the dry run found no error and no warning; nothing was written"


@pytest.mark.slow
def test_it_says_what_the_rows_and_their_expert_solutions_are_worth(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"problem": f"{n}+1?", "answer": str(n + 1), "solution": f"\\boxed{{{n + (n > 5)}}}"} for n in range(10)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dry_run(model, f"data.train={file}", "rollout.num_problems=4")
    shown = capsys.readouterr().out
    assert (
        "10 problems of 10 rows" in shown
        and "expert solutions: 4 of 10 looked at are correct, mean reward 0.4" in shown
    )
    assert "warning: most expert solutions get less than 1 from math, the first of reward.functions" in shown
    with pytest.raises(SystemExit):
        dry_run(model, f"data.train={file}", "rollout.num_problems=11")
    assert "rollout.num_problems: 11 a step" in capsys.readouterr().err


def test_it_warns_about_a_template_that_does_not_open_the_answer(model: Path, capsys: pytest.CaptureFixture) -> None:
    (model / "chat_template.jinja").write_text(CHATML.partition("{% if add_generation_prompt %}")[0])
    dry_run(model, CHAT)
    shown = capsys.readouterr().out
    *_, prompt, warning, verdict = shown.splitlines()
    assert prompt.startswith("prompt: the tokenizer's chat template")
    num_warnings = len(re.findall(r"^warning: ", shown, re.MULTILINE))
    assert (
        num_warnings > 1 and verdict == f"the dry run found no error and {num_warnings} warnings; nothing was written"
    )
    assert warning.startswith("warning: data.prompt_template: chat: ") and "ignores add_generation_prompt" in warning


def test_a_model_of_the_hub_is_checked_if_it_was_downloaded_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    dry_run(Path("owner/name"))
    assert capsys.readouterr().out.splitlines()[-2].startswith("warning: model.name: owner/name is no folder here")
    cached = tmp_path / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    shutil.copytree(model, cached / "snapshots" / "abc")
    dry_run(Path("owner/name"))
    *_, layout, prompt, _ = capsys.readouterr().out.splitlines()
    assert layout == "layout: tree" and prompt.startswith("prompt: data.prompt_template; ")


@pytest.mark.parametrize(
    ("template", "overrides", "refusal"),
    [
        ("{{ raise_exception('no') }}", [CHAT], "data.prompt_template: chat, but"),
        ("{{ 1 // 0 }}", [CHAT], "data.prompt_template: chat, but"),
        ("Solve it.", [CHAT], "drops the user message"),
        (None, [CHAT], "has no chat template"),
        (CHATML, ["data.stop_tokens=[two words]"], "data.stop_tokens: 'two words'"),
        (CHATML, ["data.prompt_template=<|turn|>{problem}"], "'<|turn|>': not known to the tokenizer"),
    ],
)
def test_a_prompt_that_a_run_would_refuse(
    template: str | None, overrides: list[str], refusal: str, model: Path, capsys: pytest.CaptureFixture
) -> None:
    (model / "chat_template.jinja").unlink()
    if template is not None:
        (model / "chat_template.jinja").write_text(template)
    with pytest.raises(SystemExit) as end:
        dry_run(model, *overrides)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and refusal in said


@pytest.mark.long
def test_it_asks_vllm_whether_it_serves_the_class(capsys: pytest.CaptureFixture) -> None:
    dry_run(Path("trapo_lite/tiny_world/base"), "rollout.engine=vllm", f"model.dtype={VLLM_DTYPE}")
    assert capsys.readouterr().out.splitlines()[-2].startswith("vLLM has a class for this model that takes adapters; ")


class SlowEngine:
    """A SlowEngine gives a notice, and then answers as `answer` says."""

    answer: Exception | None = None

    def __init__(self, options: VLLMOptions, *, log_path: Path, notify: Callable[[str], None]) -> None:
        self.log_path, self.notify = log_path, notify
        log_path.write_text("last words")

    def wait_for_class(self) -> None:
        self.notify(f"5 s so far (log: {self.log_path})")
        if self.answer is not None:
            raise self.answer

    def close(self) -> None: ...


@pytest.mark.parametrize("answer", [None, EngineDied("it died"), EngineError("no class")], ids=["yes", "died", "no"])
def test_a_log_that_an_error_names_is_kept_and_waiting_is_shown(
    answer: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(SlowEngine, "answer", answer)
    monkeypatch.setattr(vllm_engine, "VLLMEngine", SlowEngine)
    for check in ("require_vllm", "require_card"):
        monkeypatch.setattr(vllm_engine, check, lambda **options: None)
    with pytest.raises(SystemExit) if answer else nullcontext():
        dry_run(TINY, "rollout.engine=vllm")
    shown = capsys.readouterr()
    [log] = re.findall(r"^5 s so far \(log: (.*)\)$", shown.out, re.MULTILINE)
    assert Path(log).exists() == Path(log).parent.exists() == isinstance(answer, EngineDied)
    assert ("set rollout.engine: transformers" in shown.err.replace("\n", " ")) == isinstance(answer, EngineDied)


def test_a_model_of_the_hub_is_said_not_to_be_checked_in_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    dry_run(Path("some/model"))
    last = capsys.readouterr().out.splitlines()[-2]
    assert last.startswith("warning: model.name: some/model is no folder here") and "nothing of the model" in last


def test_the_configuration_that_the_page_shows_is_a_whole_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page = Path("docs/train.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    Path("models").mkdir()
    model.rename("models/my-model")
    rows = [{"problem": f"{n} + 1?", "answer": str(n + 1), "solution": f"\\boxed{{{n + 1}}}"} for n in range(64)]
    Path("my_problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["rollout.engine=transformers", "model.config_overrides={max_position_embeddings: 2048}"]
    cli.train(["--config", "mine.yaml", "--dry-run", *overrides])
    said = capsys.readouterr().out
    assert "prompt: the tokenizer's chat template; an answer ends at " in said and "warning: " not in said


def test_what_a_run_would_refuse_of_trackers_and_evaluation_data(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "eval.jsonl"
    file.write_text('{"question without a known name": "1 + 1?", "answer": "2"}\n')
    with pytest.raises(SystemExit):
        dry_run(model, f"eval.data={file}", "eval.every=1")
    assert "eval.jsonl line 1: problem" in capsys.readouterr().err
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(SystemExit):
        dry_run(model, "run.trackers=[wandb]")
    assert "run.trackers: wandb is not installed; run `pip install wandb`" in capsys.readouterr().err


@pytest.mark.slow
def test_it_says_what_would_become_of_a_run_of_that_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = [f"run.dir={tmp_path}", "run.name=again", "rollout.engine=transformers", "rollout.num_problems=2"]
    command = ["--config", "configs/tiny_cpu.yaml", "eval.every=0", *options]
    cli.train([*command, "train.max_steps=1"])
    capsys.readouterr()
    cli.train([*command, "train.max_steps=2", "--dry-run"])
    assert (
        f"{tmp_path}/again: holds a run of these settings; it would be resumed after step 1\n"
        in capsys.readouterr().out
    )
    cli.train([*command, "train.max_steps=1", "--dry-run"])
    assert "again: holds a run with 1 step done, and train.max_steps is 1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.train([*command, "train.max_steps=2", "optim.lr=0.5", "--dry-run"])
    assert "optim.lr: 0.001 then, 0.5 now" in capsys.readouterr().err
    cli.train([*command, "train.max_steps=2", "optim.lr=0.5", "--dry-run", "--restart"])
    assert "holds a run" not in capsys.readouterr().out


@pytest.mark.slow
def test_it_refuses_a_run_whose_reward_function_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def score(response): return len(response) / 100\n")
    command = ["--config", "configs/tiny_cpu.yaml", "eval.every=0", f"run.dir={tmp_path}", "run.name=own"]
    command += ["rollout.engine=transformers", "rollout.num_problems=2"]
    command += [f"reward.functions={{type: function, path: {mine}:score}}"]
    cli.train([*command, "train.max_steps=1"])
    mine.write_text("def score(response): return len(response) / 99\n")
    with pytest.raises(SystemExit):
        cli.train([*command, "train.max_steps=2", "--dry-run"])
    assert "the reward function score: changed" in capsys.readouterr().err


@pytest.mark.slow
def test_it_tries_own_functions_on_the_evaluation_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine.py").write_text("def score(response): return 1.0\n")
    function = f"reward.functions={{type: function, path: {tmp_path}/mine.py:score}}"
    cli.train(["--config", "configs/tiny_cpu.yaml", "--dry-run", "rollout.engine=transformers", function])
    said = capsys.readouterr().out
    assert "dev.jsonl: 200 problems\nreward score: problem dev-" in said
