"""Whole runs on multimodal models, and the checkpoints exported from them."""

import json
from pathlib import Path

import pytest
import torch
from multimodal import FAMILIES, add_by_hand, load_multimodal, write_multimodal
from safetensors.torch import load_file
from tiny_runs import data_file, make_config, model_dir
from transformers import AutoModelForCausalLM

from trapo_lite.exporting.merge import export_run
from trapo_lite.model.base import weights_fingerprint
from trapo_lite.training.trainer import train

IDS = torch.arange(20)[None] * 7 % 256


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "tied"), [(name, name == "gemma3") for name in FAMILIES])
def test_a_run_trains_the_language_model_and_exports_it(
    model_type: str, tied: bool, make_config, tmp_path: Path
) -> None:
    base = write_multimodal(model_type, tmp_path / "base", tied=tied)
    weights = weights_fingerprint(str(base))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = make_config(model={"name": str(base)}, lora={"target_modules": targets}, optim={"lr": 1e-2})
    train(config)
    run = config.run.folder
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2 and steps[1]["engine/probe_mismatch"] < 1e-4
    assert weights_fingerprint(str(base)) == weights

    out = export_run(run).out
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert merged.config.get_text_config() is merged.config
    names = [*load_file(out / "model.safetensors")]
    assert all(name.startswith(("model.layers.", "model.embed", "model.norm", "lm_head.")) for name in names)
    full = load_multimodal(base)
    before = logits_of(full)
    add_by_hand(full, run / "adapter")
    expected = logits_of(full)
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(logits_of(merged), expected, rtol=0, atol=1e-4)

    text_class = type(merged).__name__
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f"a multimodal model ({model_type})" in card and f"named as in {text_class}" in card.replace("\n", " ")
    assert "vllm serve" not in card
    assert f"| left out | all weights of the multimodal base ({model_type})" in (out / "README.md").read_text()
