"""List one tiny model of each family that trains here, which the tests run and docs/models.md shows.

Each has at least four layers, so that every type of layer occurs, and weights large enough that windows, caps, sinks
and recurrent states change its results visibly.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from builders import config_of
from torch import nn
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Family:
    """A Family is a class of transformers with sizes. What works with it is in tests/family_results.jsonl."""

    model_type: str
    options: dict[str, Any]


SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 6}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
FEW_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
# A query and a key are nearly orthogonal now and then, more often in heads of 8. The norm behind them then divides by
# almost nothing, and float32 rounds by up to 2.4e-5 in rows too, with a usual epsilon of 1e-6 (docs/RESULTS.md).
DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "rms_norm_eps": 1e-4,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "mamba_expand": 2,
}

TREE: dict[str, Family] = {
    "llama": Family("llama", {}),
    "llama, biases and wide heads": Family("llama", {"attention_bias": True, "head_dim": 16}),
    "qwen2": Family("qwen2", {}),
    "qwen2, windows": Family("qwen2", {**SLIDING, "use_sliding_window": True}),
    "qwen3": Family("qwen3", {"head_dim": 8}),
    "mistral, windows": Family("mistral", {"sliding_window": 6}),
    "ministral, windows": Family("ministral", {**SLIDING, "head_dim": 8}),
    "phi3, windows": Family("phi3", {"sliding_window": 6}),
    "phi3, partial rotary": Family("phi3", {"sliding_window": None, "partial_rotary_factor": 0.5}),
    "starcoder2, windows": Family("starcoder2", {"sliding_window": 6}),
    "gemma": Family("gemma", {"head_dim": 8}),
    "gemma2, windows and caps": Family("gemma2", {**SLIDING, "head_dim": 8, "attn_logit_softcapping": 2.0}),
    "gemma3, windows": Family("gemma3_text", {**SLIDING, "head_dim": 8}),
    "olmo2": Family("olmo2", {}),
    "olmo3, windows": Family("olmo3", {**SLIDING}),
    "exaone4, windows": Family("exaone4", {**SLIDING}),
    "cohere, scaled logits": Family("cohere", {"logit_scale": 0.25}),
    "cohere2, windows": Family("cohere2", {**SLIDING, "logit_scale": 0.25}),
    "granite, scaled logits": Family("granite", {"logits_scaling": 8.0, "attention_multiplier": 0.2}),
    "granite, windows and sinks": Family("granite_swa", {**SLIDING, "logits_scaling": 8.0}),
    "gpt-oss, windows and sinks": Family("gpt_oss", {**SLIDING, **EXPERTS, "head_dim": 8}),
    "smollm3, NoPE": Family("smollm3", {"no_rope_layer_interval": 4}),
    "glm4, partial rotary": Family("glm4", {"head_dim": 8}),
    "hunyuan": Family("hunyuan_v1_dense", {"head_dim": 8}),
    "apertus": Family("apertus", {}),
    "arcee": Family("arcee", {}),
    "ernie": Family("ernie4_5", {"head_dim": 8}),
    "hyperclovax, scaled logits": Family("hyperclovax", {"logits_scaling": 0.25, "head_dim": 8}),
    "nanochat, capped logits": Family("nanochat", {}),
    "vaultgemma, windows and caps": Family("vaultgemma", {**SLIDING, "head_dim": 8, "attn_logit_softcapping": 2.0}),
    "cwm, windows": Family("cwm", {**SLIDING, "head_dim": 8}),
    "qwen3.5, Gated DeltaNet": Family("qwen3_5_text", DELTA_NET),
    "qwen3.5 with experts, Gated DeltaNet": Family(
        "qwen3_5_moe_text",
        {**DELTA_NET, **FEW_EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "qwen3-next, Gated DeltaNet": Family(
        "qwen3_next",
        {**DELTA_NET, **FEW_EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "olmo-hybrid, Gated DeltaNet": Family("olmo_hybrid", DELTA_NET),
    "bamba, Mamba-2": Family("bamba", {**MAMBA, "attn_layer_indices": [1, 3], "mamba_proj_bias": True}),
    "granite 4 h, Mamba-2": Family(
        "granitemoehybrid",
        {
            **MAMBA,
            **EXPERTS,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "shared_intermediate_size": 16,
            "logits_scaling": 8.0,
        },
    ),
    "granite 4 h without experts, Mamba-2": Family(
        "granitemoehybrid",
        {
            **MAMBA,
            "num_local_experts": 0,
            "mamba_n_groups": 1,  # as in real ones; with several, vLLM normalises each by itself
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "shared_intermediate_size": 16,
            "logits_scaling": 8.0,
        },
    ),
    "falcon-h1, Mamba-2 beside attention": Family("falcon_h1", {**MAMBA, "mamba_d_ssm": 64, "head_dim": 8}),
    "nemotron-h, Mamba-2": Family(
        "nemotron_h",
        {
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "ssm_state_size": 8,
            "chunk_size": 8,
            "head_dim": 8,
        },
    ),
    "zamba2, Mamba-2": Family(
        "zamba2",
        {
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "mamba_ngroups": 2,
            "chunk_size": 8,
            "layers_block_type": ["linear_attention", "hybrid"] * 2,
            "num_mem_blocks": 1,
        },
    ),
    "lfm2, short convolutions": Family("lfm2", {"layer_types": ["conv", "full_attention"] * 2, "conv_bias": True}),
    "lfm2 with experts, short convolutions": Family(
        "lfm2_moe",
        {**FEW_EXPERTS, "layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    ),
    # With its ReLU, one activation that rounds to zero changes a gradient.
    "opt, learnt positions": Family("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "activation_function": "gelu"}),
}

ROWS: dict[str, Family] = {
    "bloom, ALiBi": Family("bloom", {"n_head": 4}),
    "biogpt": Family("biogpt", {}),
    "codegen": Family("codegen", {"rotary_dim": 4}),
    "doge": Family("doge", {}),
    "falcon": Family("falcon", {"alibi": False}),
    "gemma4, windows and shared keys": Family(
        "gemma4_text",
        {
            **SLIDING,
            **{"head_dim": 8, "global_head_dim": 8, "num_kv_shared_layers": 2},
            **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64},
        },
    ),
    "gptj": Family("gptj", {"rotary_dim": 4}),
    "gpt-neo, windows": Family("gpt_neo", {"attention_types": [[["global", "local"], 2]], "window_size": 6}),
    "jamba, Mamba": Family(
        "jamba",
        {
            **{"num_experts": 2, "num_experts_per_tok": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
            **{"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
        },
    ),
    "kimi-linear, Kimi Delta Attention": Family(
        "kimi_linear",
        {
            **{"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_token": 1, "linear_head_dim": 16},
            **{"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
        },
    ),
    "llama4, chunks": Family(
        "llama4_text",
        {"head_dim": 8, "attention_chunk_size": 6, "num_local_experts": 2, "intermediate_size_mlp": 48},
    ),
    "mamba, Mamba": Family("mamba", {"state_size": 8, "intermediate_size": 64}),
    "mamba2, Mamba-2": Family(
        "mamba2",
        {"num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 8, "chunk_size": 8, "expand": 2},
    ),
    "minimax, lightning attention": Family(
        "minimax", {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    ),
    "modernbert decoder, windows": Family("modernbert-decoder", {"sliding_window": 6}),
    "mpt, ALiBi": Family("mpt", {}),
    "nemotron": Family("nemotron", {}),
    "phi, output layer with a bias": Family("phi", {}),
    "recurrent gemma, RG-LRU": Family(
        "recurrent_gemma",
        {"attention_window_size": 8, "head_dim": 8, "lru_width": 32},
    ),
    "rwkv, a recurrence of its own": Family("rwkv", {"attention_hidden_size": 32}),
    "stablelm": Family("stablelm", {}),
    "xglm": Family("xglm", {"d_model": 32, "ffn_dim": 48, "attention_heads": 4, "num_layers": 4}),
    "xlstm, a recurrence of its own": Family("xlstm", {"num_heads": 2, "qk_dim_factor": 0.5}),
    "zaya, compressed convolutional attention": Family(
        "zaya",
        {"moe_intermediate_size": 16, "head_dim": 8, "router_hidden_size": 16},
    ),
}
FAMILIES = TREE | ROWS
# vLLM is measured again on these with every change, one of each class; on the others once.
MOST_TRAINED = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral, windows",
    "phi3, windows",
    "gemma2, windows and caps",
    "gemma3, windows",
    "olmo3, windows",  # through vLLM's general class for transformers' own code
    "exaone4, windows",
    "granite, scaled logits",
    "smollm3, NoPE",
    "lfm2, short convolutions",
    "nemotron-h, Mamba-2",
    "falcon",  # of which vLLM takes no adapters
]
LISTED = ("mamba", "mamba2", "falcon_h1", "nemotron_h", "llama4_text")


def write_model(family: Family, folder: Path) -> Path:
    """Write a model with weights of deviation 0.1, of convolutions 0.5, norms near their own values, sinks of 1."""
    config = config_of(family.model_type, num_hidden_layers=4, **family.options)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sinks" in name:
                parameter.fill_(1.0)
            elif "conv" in name:
                parameter.normal_(std=0.5)
            elif parameter.dim() > 1:
                parameter.normal_(std=0.1)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def targets_of(base: Path) -> str | list[str]:
    """Return the default, all linear layers, or without those that PEFT cannot adapt: Mamba's output, a router."""
    model = AutoModelForCausalLM.from_pretrained(base)
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return sorted(names - {"out_proj", "lm_head", "router"}) if model.config.model_type in LISTED else "all-linear"
