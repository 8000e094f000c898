"""A dry run says what a run would do, and refuses what a run would refuse, without weights and data."""

import re
import shutil
from pathlib import Path

import pytest
from byte_model import CHATML
from conftest import VLLM_DTYPE

from trapo_lite import cli

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
    *_, layout, prompt = capsys.readouterr().out.splitlines()
    assert layout == "layout: tree"
    assert prompt.startswith("prompt: data.prompt_template; an answer ends at ")


def test_it_warns_about_a_template_that_does_not_open_the_answer(model: Path, capsys: pytest.CaptureFixture) -> None:
    (model / "chat_template.jinja").write_text(CHATML.partition("{% if add_generation_prompt %}")[0])
    dry_run(model, CHAT)
    *_, prompt, warning = capsys.readouterr().out.splitlines()
    assert prompt.startswith("prompt: the tokenizer's chat template")
    assert warning.startswith("WARNING: data.prompt_template: chat: ") and "ignores add_generation_prompt" in warning


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
    assert capsys.readouterr().out.splitlines()[-1] == "vLLM serves adapters on this class of models"


def test_a_model_of_the_hub_is_said_not_to_be_checked_in_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    dry_run(Path("some/model"))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("WARNING: model.name: some/model is no folder here") and "nothing of the model" in last


def test_the_configuration_that_the_page_shows_is_a_whole_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page = Path("docs/train.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    Path("models").mkdir()
    model.rename("models/my-model")
    Path("my_problems.jsonl").write_text('{"problem": "1 + 1?", "answer": "2", "solution": "It is 2."}\n')
    overrides = ["rollout.engine=transformers", "model.config_overrides={max_position_embeddings: 2048}"]
    cli.train(["--config", "mine.yaml", "--dry-run", *overrides])
    said = capsys.readouterr().out
    assert "prompt: the tokenizer's chat template; an answer ends at " in said and "WARNING" not in said
