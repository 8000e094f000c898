"""Define the options of the vLLM engine at its start, for both sides of the process boundary."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from trapo_lite.core.errors import EngineError

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class VLLMOptions:
    """Hold the options of one vLLM engine.

    max_model_len:        prompt + prefix + completion, in tokens
    lora_rank:            rank of the adapters; vLLM rounds it up to a rank that it offers
    max_num_seqs:         number of sequences that decode together
    kv_cache_gib:         on the CPU
    gpu_memory_fraction:  on CUDA: share of the card for base, adapters and KV cache
    num_threads:          of the engine on the CPU
    config_overrides:     fields of the model's config.json to replace
    can_merge:            on the CPU, keep what `merge` needs beside the packed weights
    """

    model_path: str
    max_model_len: int
    lora_rank: int
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quantize: Literal["none", "nf4"] = "none"
    max_num_seqs: int = 256
    kv_cache_gib: float = 1.0
    gpu_memory_fraction: float = 0.45
    num_threads: int = 1
    config_overrides: dict[str, Any] = field(default_factory=dict)
    can_merge: bool = False


def round_up_lora_rank(rank: int) -> int:
    """Return the smallest max_lora_rank of vLLM that holds adapters of this rank.

    >>> round_up_lora_rank(8), round_up_lora_rank(24)
    (8, 32)
    """
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise EngineError(f"lora.r: vLLM serves adapters of rank up to {LORA_RANKS[-1]}, found {rank}; lower lora.r")


def servable_dtype() -> Literal["float32", "bfloat16"]:
    """Return the most exact type in which vLLM serves adapters on this machine; its CUDA kernels take no float32."""
    return "bfloat16" if torch.cuda.is_available() else "float32"


def without_expandable_segments(allocator_settings: str) -> str:
    """Return PyTorch's allocator settings without expandable segments, with which vLLM's sleep frees nothing.

    >>> without_expandable_segments("expandable_segments:True, roundup_power2_divisions:[256:1,>:4]")
    'roundup_power2_divisions:[256:1,>:4]'
    """
    left = re.sub(r"\s*expandable_segments\s*:\s*\w*\s*(,|$)", "", allocator_settings, flags=re.IGNORECASE)
    return left.strip(" ,")
