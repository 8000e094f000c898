"""Uploads to the hub, against a small server that answers the hub's own library."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from byte_model import write_byte_model
from fake_hub import TOKEN, FakeHub, fake_hub
from huggingface_hub import ModelCard, constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from trapo_lite import cli
from trapo_lite.config import validate
from trapo_lite.config.hub import _problem_of
from trapo_lite.exporting.hub import ADAPTER_FILES
from trapo_lite.exporting.hub_card import CardScore, hub_card

CARD = "---\nlibrary_name: peft\ntags: [trapo, lora]\nbase_model: /somewhere\n---\n\n# LoRA adapter\n"


@pytest.fixture(scope="module")
def trained_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with an adapter that PEFT wrote, its card, and files of a checkpoint that stay here."""
    folder = tmp_path_factory.mktemp("run") / "run"
    base = write_byte_model(tmp_path_factory.mktemp("base"))
    torch.manual_seed(1)
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    model.save_pretrained(str(folder / "adapter"))
    (folder / "adapter/README.md").write_text(CARD)
    (folder / "adapter/optimizer.pt").write_bytes(b"state")
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n# Base\n")
    config = validate(
        {
            "model": {"name": str(base), "dtype": "float32"},
            "data": {"train": ["org/problems:train", str(folder / "mine.jsonl")]},
            "train": {"max_steps": 7},
        }
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    return folder


@pytest.fixture
def run_dir(trained_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_dir, tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        _problem_of.cache_clear()
        yield hub


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_info:
        cli.export(arguments)
    message = capsys.readouterr().err
    assert exit_info.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    return message


@pytest.mark.slow
def test_the_merged_checkpoint_is_uploaded_with_its_card(
    hub: FakeHub, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--run", str(run_dir), "--push-to-hub", "me/sums", "--private"]
    cli.export(command)
    assert f"to {hub.endpoint}/me/sums" in capsys.readouterr().out
    assert hub.repos == {"me/sums": True}
    uploaded, merged = hub.files["me/sums"], run_dir / "merged"
    assert uploaded.keys() == {path.name for path in merged.iterdir()} > {"model.safetensors", "config.json"}
    assert all(uploaded[name] == (merged / name).read_bytes() for name in uploaded if name != "README.md")
    card = ModelCard(uploaded["README.md"].decode())
    assert card.data.to_dict() == {
        "datasets": ["org/problems"],
        "library_name": "transformers",
        "license": "other",
        "license_name": "mine",
        "license_link": "LICENSE",
        "pipeline_tag": "text-generation",
        "tags": ["trapo", "lora", "merged"],
    }
    assert "Trained with trapo_lite on `org/problems`, `mine.jsonl`" in card.text
    assert card.text.startswith((merged / "README.md").read_text().split("---\n")[2].rstrip())

    made = (merged / "config.json").stat().st_mtime_ns
    cli.export(command)  # the same command uploads again and does not merge
    assert "is uploaded as it is" in capsys.readouterr().out and (merged / "config.json").stat().st_mtime_ns == made
    assert "--dtype bfloat16: has no effect on" in error_of([*command, "--dtype", "bfloat16"], capsys)
    assert "eval.temperature=0.7: has no effect on" in error_of([*command, "eval.temperature=0.7"], capsys)


@pytest.mark.slow
def test_a_checkpoint_of_another_adapter_is_not_uploaded(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = run_dir / "checkpoints/step-000003"
    shutil.copytree(run_dir / "adapter", other)
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, other / "adapter_model.safetensors")
    cli.export(["--run", str(run_dir), "--adapter", str(run_dir / "adapter")])
    command = ["--run", str(run_dir), "--push-to-hub", "me/x", "--dry-run", "--adapter"]
    assert "was not made of" in error_of([*command, str(other)], capsys)
    cli.export([*command, str(run_dir / "adapter")])
    assert "\n  Trained with trapo_lite on" in capsys.readouterr().out  # no checkpoint has the weights of adapter/
    cli.export([*command, str(other), "--overwrite"])
    assert "\n  Trained for 3 steps with trapo_lite on" in capsys.readouterr().out


def test_of_an_adapter_three_files_are_uploaded(hub: FakeHub, run_dir: Path) -> None:
    cli.export(["--run", str(run_dir), "--push-to-hub", "org/sums", "--adapter-only"])
    uploaded = hub.files["org/sums"]
    assert uploaded.keys() == set(ADAPTER_FILES) and hub.repos == {"org/sums": False}
    assert uploaded["adapter_model.safetensors"] == (run_dir / "adapter/adapter_model.safetensors").read_bytes()
    assert not (run_dir / "merged").exists()


def test_a_dry_run_asks_nothing_and_shows_what_would_be_uploaded(
    hub: FakeHub, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    command = ["--run", str(run_dir), "--push-to-hub", "org/sums", "--adapter-only", "--private", "--dry-run"]
    cli.export(command)
    printed = capsys.readouterr().out
    assert hub.calls == [] and "would upload 3 files" in printed and "to org/sums, private if it is new" in printed
    sizes = {name: int(size.replace(",", "")) for size, name in re.findall(r"([\d,]+) bytes  (\S+)", printed)}
    for name in ADAPTER_FILES[1:]:
        assert sizes[name] == (run_dir / "adapter" / name).stat().st_size
    shown = "\n".join(line.removeprefix("  ") for line in printed.partition("README.md:\n")[2].splitlines())
    assert yaml.safe_load(shown.split("---\n")[1])["library_name"] == "peft"
    assert sizes["README.md"] == len(shown.encode()) + 1


@pytest.mark.parametrize(
    ("target", "token", "message"),
    [
        ("me/sums", None, "no token of the hub is stored here; run `hf auth login`, or set HF_TOKEN"),
        ("me/sums", "hf_wrong", "the hub refused it (status 401: "),
        ("closed/sums", TOKEN, "the hub refused it (status 403: You don't have the rights"),
        ("sums", TOKEN, "--push-to-hub sums: is no OWNER/NAME; give"),
        ("a/b/c", TOKEN, "is no OWNER/NAME; give"),
        ("me/two words", TOKEN, "is no OWNER/NAME; give"),
    ],
)
def test_a_refusal_is_one_line_before_the_merge(
    hub: FakeHub, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    target: str, token: str | None, message: str,
) -> None:  # fmt: skip
    hub.forbidden.add("closed")
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert message in error_of(["--run", str(run_dir), "--push-to-hub", target], capsys)
    assert not (run_dir / "merged").exists() and hub.files == {}


def test_a_hub_that_cannot_be_reached_is_one_line_before_the_merge(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--run", str(run_dir), "--push-to-hub", "me/sums"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it, or add --dry-run" in error_of(command, capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in error_of(command, capsys)
    assert not (run_dir / "merged").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--private"], "--private: has no effect without --push-to-hub"),
        (["--adapter-only"], "--adapter-only: has no effect without --push-to-hub"),
        (["--dry-run"], "--dry-run: has no effect without --push-to-hub"),
        (
            ["--push-to-hub", "a/b", "--adapter-only", "--dtype", "float32"],
            "--dtype: has no effect with --adapter-only",
        ),
        (
            ["--push-to-hub", "a/b", "--adapter-only", "eval.temperature=0.7"],
            "eval.temperature=0.7: has no effect with --adapter-only",
        ),
        (["--push-to-hub", "a/b", "--adapter-only", "--adapter", "{run}"], "holds no README.md; give a finished run's"),
    ],
)
def test_options_without_effect_are_errors(
    run_dir: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    arguments = ["--run", str(run_dir), *(option.format(run=run_dir) for option in options)]
    assert message in error_of(arguments, capsys)


def test_the_card_names_base_data_and_scores() -> None:
    config = validate({"model": {"name": "org/base"}, "data": {"train": "org/problems@main"}, "optim": {"lr": 3e-5}})
    score = CardScore("adapter", "math500", 500, 0.5, (0.456, 0.544))
    card = ModelCard(hub_card(CARD, config=config, steps=1, scores=[score], may_download=False))
    metadata = card.data.to_dict()
    assert metadata["base_model"] == "org/base" and metadata["datasets"] == ["org/problems"]
    assert "license" not in metadata
    assert "Trained for 1 step with" in card.text
    assert "| adapter | math500 | 500 | 50.0% | 45.6% to 54.4% |" in card.text
    options = yaml.safe_load(card.text.partition("```yaml\n")[2].partition("```")[0])
    assert options["optim"]["lr"] == 3e-5 and options["algorithm"]["name"] == config.algorithm.name
