"""What an engine cannot serve is refused on the user's path, before a weight is read."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from families import FAMILIES, write_model
from multimodal import write_multimodal
from safetensors.torch import save_file

from trapo_lite import cli

TINY_BASE = Path("trapo_lite/tiny_world/base")
SERVERS = ["rollout.engine=server", "rollout.servers=[http://127.0.0.1:9]", "run.deterministic=false"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--dry-run"], []], ids=["dry run", "run"])
@pytest.mark.parametrize(
    ("name", "engine", "refusal"),
    [
        pytest.param(
            "rwkv, a recurrence of its own",
            ["rollout.engine=transformers"],
            "RwkvForCausalLM: 4 of its layers keep nothing in the cache",
            id="transformers",
        ),
        pytest.param("gemma3", SERVERS, "rollout.engine: {model} is multimodal (gemma3)", id="servers"),
        pytest.param(
            "rwkv, a recurrence of its own",
            ["rollout.engine=vllm"],
            "set it to transformers or take another model, because vLLM cannot serve {model}",
            id="vllm",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "bamba, Mamba-2",
            ["rollout.engine=vllm"],
            "because vLLM cannot serve {model}: it would run transformers' code, in which it serves attention only, "
            "but layer 0 is linear_attention",
            id="vllm through transformers' code",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "qwen3.5, Gated DeltaNet",
            ["rollout.engine=vllm"],
            "vLLM cannot import its class Qwen3_5ForCausalLM, because the module torchvision is missing; install it",
            id="vllm without a module",
            marks=[
                pytest.mark.long,
                pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="the module is there"),
            ],
        ),
    ],
)
def test_a_model_that_the_engine_cannot_serve(
    name: str, engine: list[str], refusal: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = tmp_path / "model"
    if engine == SERVERS:
        write_multimodal("gemma3", model, tied=True)
    else:
        family = FAMILIES[name]
        vocab_size = json.loads((TINY_BASE / "config.json").read_text())["vocab_size"]
        write_model(replace(family, options={**family.options, "vocab_size": vocab_size}), model)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY_BASE / name, model)
    save_file({}, model / "model.safetensors")  # reading weights would end in another error
    command = [
        "--config",
        "configs/tiny_cpu.yaml",
        f"model.name={model}",
        f"run.dir={tmp_path}",
        *engine,
        *options,
        "data.prompt_template={problem}",
        "lora.target_modules=[q_proj]" if name == "bamba, Mamba-2" else "lora.r=8",
    ]
    with pytest.raises(SystemExit) as end:
        cli.train(command)
    assert end.value.code == 2
    assert refusal.format(model=model) in capsys.readouterr().err.replace("\n", " ")
