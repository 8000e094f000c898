"""Prepare vLLM tests of a family: heads of a size that vLLM takes, an adapter of the trainer, and scores."""

from dataclasses import replace
from pathlib import Path

import torch
from families import Family, targets_of
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from trapo_lite.config import LoraSection, ModelSection
from trapo_lite.engines.vllm.options import VLLMOptions
from trapo_lite.model.policy import Policy

IDS = [number * 7 % 64 for number in range(40)]  # longer than every window and chunk
WIDE_HEADS = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def with_wide_heads(family: Family) -> Family:
    """Return the family with heads of 32: vLLM's attention on the CPU takes none of 8 or 16."""
    options = dict(family.options)
    if "head_dim" in options and family.model_type != "mamba2":
        options["head_dim"] = 32
        if "global_head_dim" in options:
            options["global_head_dim"] = 32
    else:
        options |= WIDE_HEADS
    for name in ("mamba_d_head", "mamba_headdim"):  # heads times this is twice the hidden size
        if name in options and "hidden_size" in options:
            options[name] *= 2
    if "attention_chunk_size" in options:
        options["attention_chunk_size"] = 32  # vLLM takes multiples of its blocks
    if family.model_type.startswith("lfm2"):
        options["conv_dim"] = options["block_dim"] = options["hidden_size"]  # vLLM reads them, real models have them
    return replace(family, options=options)


def save_random_adapter(base: Path, folder: Path) -> Path:
    """Save an adapter with random weights as the trainer does."""
    lora = LoraSection(r=4, alpha=8, target_modules=targets_of(base))
    policy = Policy.load(ModelSection(name=str(base), dtype="float32"), lora, device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    policy.adapter.save(folder)
    return folder


def load_fresh(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


@torch.no_grad()
def fresh_scores(model: nn.Module) -> torch.Tensor:
    ids = torch.tensor(IDS)
    logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
    return logits[:-1].log_softmax(dim=-1).gather(1, ids[1:, None]).squeeze(1)


def vllm_options(folder: Path, dtype: str) -> VLLMOptions:
    return VLLMOptions(
        model_path=str(folder), max_model_len=64, lora_rank=4, dtype=dtype, kv_cache_gib=0.05, can_merge=True
    )
