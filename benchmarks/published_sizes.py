"""Hold the sizes of the models that configs/ names, and the card that each configuration needs by the plan.

The models' own config.json files are no part of this repository. These were written by hand from the sizes that their
publishers give, and hold only what the plan reads. SmolLM2's equal the file that its weights came with.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trapo_lite.config import load_config
from trapo_lite.core.errors import ConfigError
from trapo_lite.model.base import model_shape
from trapo_lite.model.layout import check_model
from trapo_lite.planning.memory import shortcoming
from trapo_lite.run.gpus import GIB, GPUS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

QWEN3: dict[str, Any] = {
    **{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "head_dim": 128},
    **{"num_key_value_heads": 8, "max_position_embeddings": 40960, "tie_word_embeddings": True},
}
SIZES: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576},
        **{"intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
        **{"max_position_embeddings": 8192, "tie_word_embeddings": True},
    },
    "google/gemma-3-1b-it": {
        **{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 262144},
        **{"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4},
        **{"num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512, "max_position_embeddings": 32768},
        **{"tie_word_embeddings": True},
    },
    "Qwen/Qwen3-1.7B": {
        **QWEN3,
        **{"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    },
    "Qwen/Qwen3-4B": {
        **QWEN3,
        **{"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    },
    "meta-llama/Llama-3.2-3B-Instruct": {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 3072},
        **{"intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8},
        **{"head_dim": 128, "max_position_embeddings": 131072, "tie_word_embeddings": True},
    },
    "Qwen/Qwen3.5-4B": {
        **{"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "tie_word_embeddings": True},
        "text_config": {
            **{"model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 2560, "intermediate_size": 9216},
            **{"num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256},
            **{"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128},
            **{"linear_value_head_dim": 128, "full_attention_interval": 4, "max_position_embeddings": 262144},
            "tie_word_embeddings": True,
        },
    },
    "Qwen/Qwen2.5-Math-7B": {
        **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584},
        **{"intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
        **{"max_position_embeddings": 4096, "tie_word_embeddings": False},
    },
}


@dataclass(frozen=True)
class Start:
    """A Start is a configuration that people start from.

    overrides: settings with which it is planned for a card
    smaller:   settings that make it fit a smaller card, which is named too
    """

    config: str
    num_gpus: int = 1
    overrides: tuple[str, ...] = ()
    smaller: tuple[str, ...] = ()
    note: str = ""


STARTS = (
    Start("smollm2_135m", overrides=("model.dtype=bfloat16",), note=", or two CPU cores"),
    Start("gemma3_1b"),
    Start("qwen3_1.7b"),
    Start("llama3.2_3b"),
    Start("qwen3_4b", smaller=("optim.name=adamw_8bit",)),
    Start("qwen3.5_4b", smaller=("rollout.max_response_tokens=3072", "train.tokens_per_batch=4096")),
    Start("1x24GB_qlora"),
    Start("8xA100_lora", num_gpus=8),
)


def least_memory(start: Start, *overrides: str) -> float:
    """Return the least GiB of a card, in tenths, with which scripts/plan.py says that the configuration fits."""
    name = load_config([CONFIGS / f"{start.config}.yaml"]).model.name
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"dtype": "bfloat16", **SIZES[name]}), encoding="utf-8")
        settings = [f"model.name={folder}", *start.overrides, *overrides]
        config = load_config([CONFIGS / f"{start.config}.yaml"], settings)
        config = check_model(config).written_out(config)
        shape = model_shape(config)

    def fits(tenths: int) -> bool:
        return shortcoming(config, shape, gpu_memory=tenths * GIB / 10) is None

    low, high = 0, 2000  # tenths of a GiB; it does not fit `low` and fits `high`
    if not fits(high):
        raise ConfigError(f"configs/{start.config}.yaml: does not fit 200 GiB; make it smaller")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high / 10


def smallest_cards(gib: float) -> str:
    """Return the cards of the plan's table with the least memory that is enough.

    >>> smallest_cards(22.5), smallest_cards(80.0)
    ('23.5 GiB (RTX 3090, RTX 4090)', '93.1 GiB (H100 NVL)')
    """
    memory = min(gpu.memory for gpu in GPUS.values() if gpu.memory >= gib * GIB)
    names = sorted(name for name, gpu in GPUS.items() if gpu.memory == memory)
    return f"{memory / GIB:.1f} GiB ({', '.join(names)})"


def start_rows() -> list[str]:
    """Return the rows of the table of configurations, each with the card that it needs."""
    rows = []
    for start in STARTS:
        name = load_config([CONFIGS / f"{start.config}.yaml"]).model.name
        gib = least_memory(start)
        card = smallest_cards(gib) + start.note
        if start.smaller:
            card += f"; with `{' '.join(start.smaller)}`: {smallest_cards(least_memory(start, *start.smaller))}"
        count = f"{start.num_gpus} x " if start.num_gpus > 1 else ""
        rows.append(f"| `configs/{start.config}.yaml` | {name} | {gib:.1f} | {count}{card} |")
    return rows
