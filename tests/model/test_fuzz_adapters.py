"""Folders of adapters, damaged or made up: one clear error before training, or exactly the tensors that are in them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_qwen2
from fuzzing import changed_byte, damaged, outcome, plain_data
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from trapo_lite.config import LoraSection
from trapo_lite.model.policy import Policy
from trapo_lite.model.saved_adapter import check_start, read_tensors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LORA = LoraSection(r=2, alpha=4.0)


def policy(lora: LoraSection) -> Policy:
    return Policy(tiny_qwen2(), lora, attention="sdpa", gradient_checkpointing=False)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With no tensor that a fresh adapter could have."""
    folder = tmp_path_factory.mktemp("adapter")
    trained = policy(LORA)
    with torch.no_grad():
        for number, parameter in enumerate(trained.adapter.parameters):
            parameter.fill_(0.5 + number)
    trained.adapter.save(folder)
    return folder


def start_from(folder: Path) -> None:
    """Refused, or the policy holds what the file does, tensor by tensor."""
    lora = LORA.model_copy(update={"init_from": str(folder)})

    def load() -> Policy:
        read_tensors(check_start(lora))
        return policy(lora)

    started = outcome(load, mebibytes=4096)
    if isinstance(started, Policy):
        own, saved = started.adapter.state(), load_file(folder / WEIGHTS)
        assert own.keys() == saved.keys()
        assert all(torch.equal(own[name].nan_to_num(7), saved[name].float().nan_to_num(7)) for name in own)
        assert all("lora_" in name for name, value in started.model.named_parameters() if value.requires_grad)
    else:
        assert str(folder) in started or "lora." in started


def copy_of(adapter: Path) -> Path:
    folder = adapter.with_name("adapter-copy")
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(adapter, folder)


@pytest.mark.slow
@given(st.data())
def test_an_adapter_of_any_bytes(adapter: Path, data: st.DataObject) -> None:
    folder = copy_of(adapter)
    name = data.draw(st.sampled_from([WEIGHTS, CONFIG]))
    content = (folder / name).read_bytes()
    head = content[:2000]
    rest = content[2000:]
    changed = data.draw(st.one_of(damaged(content), changed_byte(head).map(lambda first: first + rest)))
    (folder / name).write_bytes(changed)
    start_from(folder)


FIELDS = [
    "r", "lora_alpha", "target_modules", "peft_type", "bias", "use_dora", "use_rslora", "lora_dropout", "rank_pattern",
    "alpha_pattern", "modules_to_save", "layers_to_transform", "layer_replication", "init_lora_weights", "lora_bias",
    "trainable_token_indices", "fan_in_fan_out", "exclude_modules", "megatron_config", "task_type", "inference_mode",
    "base_model_name_or_path", "runtime_config", "eva_config", "corda_config", "auto_mapping", "revision", "made_up",
]  # fmt: skip


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(FIELDS), plain_data(3), min_size=1, max_size=2))
@example({"r": "2"})
@example({"peft_type": "IA3"})
@example({"peft_type": None})
@example({"target_modules": ".*_proj"})
@example({"target_modules": ["q_proj"]})
@example({"target_modules": [1]})
@example({"target_modules": [[]]})
@example({"init_lora_weights": "pissa"})
@example({"layer_replication": [[0, 1], [0, 2]]})
@example({"trainable_token_indices": [1]})
def test_an_adapters_configuration_of_any_content(adapter: Path, changes: dict[str, Any]) -> None:
    folder = copy_of(adapter)
    found = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(found | changes))
    start_from(folder)


@pytest.mark.slow
@given(st.data())
def test_tensors_of_other_names_shapes_and_types(adapter: Path, data: st.DataObject) -> None:
    folder = copy_of(adapter)
    tensors = load_file(folder / WEIGHTS)
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors.pop(name)
    kind = data.draw(st.sampled_from(["gone", "renamed", "prefix", "shape", "type", "more"]))
    if kind == "renamed":
        tensors[name.replace("lora_A", "lora_C").replace("lora_B", "lora_D")] = tensor
    elif kind == "prefix":
        tensors["model." + name] = tensor
    elif kind == "shape":
        tensors[name] = tensor.new_ones(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    elif kind == "type":
        types = [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float64]
        tensors[name] = tensor.to(data.draw(st.sampled_from(types)))
    elif kind == "more":
        tensors |= {name: tensor, name + ".more": tensor.clone()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    start_from(folder)
