"""Sizes by arithmetic against the model that transformers builds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from trapo_lite.cli import plan
from trapo_lite.config import Config, LoraSection, ModelSection
from trapo_lite.core.errors import ConfigError
from trapo_lite.model.shape import ModelShape
from trapo_lite.planning.llama_qwen_shape import plain_shape

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 32768,
}
TARGETS = ["all-linear", ["q_proj", "down_proj"], ["model.layers.1.self_attn.o_proj"]]


def config_of(model: Path | str, overrides: dict[str, Any] | None = None, *, lora: LoraSection | None = None) -> Config:
    section = ModelSection(name=str(model), config_overrides=overrides or {})
    return Config(model=section, lora=lora or LoraSection())


def saved(folder: Path, config: PreTrainedConfig, **changes: Any) -> Path:
    config.save_pretrained(folder)
    file = folder / "config.json"
    found = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in found.items() if value is not ...}))
    return folder


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**SIZES), LlamaConfig(**SIZES, head_dim=32), Qwen2Config(**SIZES), Qwen3Config(**SIZES, head_dim=16)],
    ids=lambda config: f"{config.model_type}-{getattr(config, 'head_dim', None)}",
)
def test_arithmetic_counts_what_the_model_has(
    tmp_path: Path, config: PreTrainedConfig, tied: bool, targets: str | list[str]
) -> None:
    config.tie_word_embeddings = tied
    lora = LoraSection(r=8, target_modules=targets)
    found = plain_shape(config_of(saved(tmp_path, config), lora=lora))
    assert found == ModelShape.of(config, rank=8, targets=targets)


def test_overrides_are_counted(tmp_path: Path) -> None:
    found = plain_shape(config_of(saved(tmp_path, Qwen2Config(**SIZES)), {"num_hidden_layers": 5}))
    assert found is not None and found.num_layers == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": ...},
        {"num_hidden_layers": "three"},
        {"use_sliding_window": True},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"attention_dropout": 0.1},
        {"model_type": "qwen2_moe"},
        {"num_attention_heads": 5},
        {"num_key_value_heads": 3},
        {"max_position_embeddings": 64},
        {"quantization_config": {"quant_method": "gptq"}},
    ],
    ids=str,
)
def test_what_is_unusual_or_not_said_is_left_to_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert plain_shape(config_of(saved(tmp_path, Qwen2Config(**SIZES), **changes))) is None


def test_another_family_an_unknown_override_and_no_file_are_left_to_transformers(tmp_path: Path) -> None:
    mistral = saved(tmp_path / "mistral", MistralConfig(**SIZES))
    qwen = saved(tmp_path / "qwen", Qwen2Config(**SIZES))
    assert plain_shape(config_of(mistral)) is None
    for overrides in ({"no_such": 1}, {"rope_theta": 1e6}):
        assert plain_shape(config_of(qwen, overrides)) is None
    assert plain_shape(config_of(tmp_path)) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.target_modules=[q_proj, foo]"], "no layer is called 'foo'"),
        (["data.max_prompt_tokens=40000"], "has positions for 32768"),
        (["model.config_overrides={hidden_size: '48'}"], "expected int, got str"),
        (["model.config_overrides={num_hidden_layers: 0}"], "has 0 layers"),
        (["--num-gpus", "0"], "--num-gpus: found 0"),
        (["--sharded", "--num-gpus", "2", "model.quantize=nf4", "model.dtype=bfloat16"], "nf4 weights are not sharded"),
        (["--gpu", "V100"], "take one like it and --gpu-memory"),
        (["model.name=./nowhere"], "no folder './nowhere'"),
    ],
)
def test_what_training_would_refuse_the_plan_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    model = saved(tmp_path, Qwen2Config(**SIZES))
    with pytest.raises(SystemExit) as exit_info:
        plan(["--config", "configs/tiny_cpu.yaml", f"model.name={model}", *overrides])
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


def test_a_model_that_the_hub_does_not_give_is_one_error() -> None:
    with pytest.raises(ConfigError, match=r"model\.name: cannot read 'no/such'"):
        plain_shape(config_of("no/such"))


def test_a_config_json_that_contradicts_itself_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path, LlamaConfig(**SIZES), num_attention_heads=5, head_dim=...)
    with pytest.raises(SystemExit):
        plan(["--config", "configs/tiny_cpu.yaml", f"model.name={model}"])
    assert "not a multiple of the number of attention heads" in capsys.readouterr().err


def test_the_plan_of_such_a_model_needs_no_transformers(tmp_path: Path) -> None:
    model = saved(tmp_path, Qwen2Config(**SIZES))
    program = (
        "import sys; from trapo_lite.cli import plan; "
        f"plan(['--config', 'configs/1x24GB_qlora.yaml', 'model.name={model}']); "
        "assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fits"
