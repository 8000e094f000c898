"""vLLM on the language model of a multimodal checkpoint, and on Ministral's scaling of queries by position."""

from pathlib import Path

import pytest
import torch
from conftest import VLLM_DTYPE, VLLM_ROUNDING
from multimodal import add_by_hand, load_multimodal, write_multimodal
from peft import LoraConfig, get_peft_model

from trapo_lite.config import ModelSection
from trapo_lite.core.errors import EngineError
from trapo_lite.engines import parity
from trapo_lite.engines.vllm.engine import VLLMEngine
from trapo_lite.engines.vllm.language_model import language_model_arguments
from trapo_lite.engines.vllm.options import VLLMOptions
from trapo_lite.model.base import load_base

IDS = [number * 7 % 256 for number in range(40)]  # longer than the window, and than the positions before the scaling


def write_adapter(base_dir: Path, folder: Path) -> Path:
    base = load_base(ModelSection(name=str(base_dir), dtype="float32"), device="cpu", attention="eager")
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(folder))
    return folder


@torch.no_grad()
def text_scores(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.tensor(IDS)
    logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0].float()
    return logits[:-1].log_softmax(dim=-1).gather(1, ids[1:, None]).squeeze(1)


@pytest.mark.long
@pytest.mark.parametrize(("model_type", "tied"), [("gemma3", True), ("mistral3", False)])
def test_vllm_serves_the_language_model_and_its_adapter(model_type: str, tied: bool, tmp_path: Path) -> None:
    folder = write_multimodal(model_type, tmp_path / "model", tied=tied)
    adapter = write_adapter(folder, tmp_path / "adapter")
    full = load_multimodal(folder)
    options = VLLMOptions(
        model_path=str(folder), max_model_len=64, lora_rank=4, dtype=VLLM_DTYPE, kv_cache_gib=0.05, can_merge=True
    )
    engine = VLLMEngine(options, log_path=tmp_path / "vllm.log", start_limit_s=300.0)
    try:
        before = text_scores(full)
        tolerance = {"rtol": 0, "atol": VLLM_ROUNDING}
        torch.testing.assert_close(torch.tensor(engine.score(IDS)), before, **tolerance)
        engine.publish(adapter, 1)
        add_by_hand(full, adapter)
        after = text_scores(full)
        assert (after - before).abs().mean() > 0.1
        torch.testing.assert_close(torch.tensor(engine.score(IDS)), after, **tolerance)
        assert engine.adapter_checksum() == parity.checksum(adapter, dtype=getattr(torch, VLLM_DTYPE))
        engine.merge()
        torch.testing.assert_close(torch.tensor(engine.score(IDS)), after, **tolerance)
    finally:
        engine.close()


def test_nf4_weights_of_a_multimodal_checkpoint_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_multimodal("gemma3", tmp_path / "model", tied=True)
    monkeypatch.setattr("trapo_lite.engines.vllm.engine.require_vllm", lambda *, quantize: None)
    options = VLLMOptions(model_path=str(folder), max_model_len=64, lora_rank=4, dtype="bfloat16", quantize="nf4")
    with pytest.raises(EngineError, match=r"model\.quantize: vLLM takes the language model out of .*set it to none"):
        VLLMEngine(options, log_path=tmp_path / "vllm.log")


def test_a_model_of_text_is_left_to_vllm(tiny_model_dir: Path) -> None:
    assert language_model_arguments(VLLMOptions(model_path=str(tiny_model_dir), max_model_len=8, lora_rank=4)) == {}
