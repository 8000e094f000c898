"""scripts/plan.py refuses what training would refuse, with one message and before anything is loaded."""

from pathlib import Path

import pytest
from transformers import LlamaConfig, Qwen2Config

from trapo_lite.cli import plan

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 32768,
}


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
        (["model.name=no/such"], "cannot read 'no/such'"),
    ],
)
def test_what_training_would_refuse_the_plan_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    Qwen2Config(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        plan(["--config", "configs/tiny_cpu.yaml", f"model.name={tmp_path}", *overrides])
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


def test_a_config_json_that_contradicts_itself_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LlamaConfig(**SIZES).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 5'))
    with pytest.raises(SystemExit):
        plan(["--config", "configs/tiny_cpu.yaml", f"model.name={tmp_path}"])
    assert "not a multiple of the number of attention heads" in capsys.readouterr().err
