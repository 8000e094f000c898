"""Hold the sizes of models that many people train, so that a plan needs no network.

The models' own config.json files are no part of this repository. These were written by hand from the sizes that their
publishers give, and hold only what the plan reads.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trapo_lite.config import Config

Sizes = dict[str, Any]


def _sizes(model_type: str, model_class: str, hidden_size: int, intermediate_size: int, **others: Any) -> Sizes:
    return {
        "architectures": [model_class],
        "model_type": model_type,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "tie_word_embeddings": True,
    } | others


def _heads(num_hidden_layers: int, num_attention_heads: int, num_key_value_heads: int) -> Sizes:
    return {
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
    }


def _qwen2(*sizes: int, **others: Any) -> Sizes:
    common = {"vocab_size": 151936, "max_position_embeddings": 32768}
    return _sizes("qwen2", "Qwen2ForCausalLM", *sizes, **common | others)


def _qwen3(*sizes: int, **others: Any) -> Sizes:
    common = {"vocab_size": 151936, "head_dim": 128, "max_position_embeddings": 40960}
    return _sizes("qwen3", "Qwen3ForCausalLM", *sizes, **common | others)


def _llama(*sizes: int, **others: Any) -> Sizes:
    common = {"vocab_size": 128256, "max_position_embeddings": 131072}
    return _sizes("llama", "LlamaForCausalLM", *sizes, **common | others)


def _smollm2(*sizes: int, **others: Any) -> Sizes:
    return _llama(*sizes, vocab_size=49152, max_position_embeddings=8192, **others)


_UNTIED: Sizes = {"tie_word_embeddings": False}
_MATH: Sizes = {"max_position_embeddings": 4096}
_LONG: Sizes = {"max_position_embeddings": 262144}
_DISTILLED: Sizes = {"max_position_embeddings": 131072} | _UNTIED
_QWEN2_1_5B = _qwen2(1536, 8960, **_heads(28, 12, 2))
_QWEN2_7B = _qwen2(3584, 18944, **_heads(28, 28, 4), vocab_size=152064, **_UNTIED)
_QWEN2_14B = _qwen2(5120, 13824, **_heads(48, 40, 8), vocab_size=152064, **_UNTIED)
_QWEN3_4B = _qwen3(2560, 9728, **_heads(36, 32, 8))
_LLAMA_8B = _llama(4096, 14336, **_heads(32, 32, 8), **_UNTIED)

SIZES: dict[str, Sizes] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(576, 1536, **_heads(30, 9, 3)),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _smollm2(960, 2560, **_heads(32, 15, 5)),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(2048, 8192, **_heads(24, 32, 32)),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(896, 4864, **_heads(24, 14, 2)),
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN2_1_5B,
    "Qwen/Qwen2.5-3B-Instruct": _qwen2(2048, 11008, **_heads(36, 16, 2)),
    "Qwen/Qwen2.5-7B-Instruct": _QWEN2_7B,
    "Qwen/Qwen2.5-14B-Instruct": _QWEN2_14B,
    "Qwen/Qwen2.5-32B-Instruct": _qwen2(5120, 27648, **_heads(64, 40, 8), vocab_size=152064, **_UNTIED),
    "Qwen/Qwen2.5-Math-1.5B": _QWEN2_1_5B | _MATH,
    "Qwen/Qwen2.5-Math-1.5B-Instruct": _QWEN2_1_5B | _MATH,
    "Qwen/Qwen2.5-Math-7B": _QWEN2_7B | _MATH,
    "Qwen/Qwen2.5-Math-7B-Instruct": _QWEN2_7B | _MATH,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _QWEN2_1_5B | _DISTILLED,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _QWEN2_7B | _DISTILLED,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": _QWEN2_14B | _DISTILLED,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": _LLAMA_8B,
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, **_heads(28, 16, 8)),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, **_heads(28, 16, 8)),
    "Qwen/Qwen3-4B": _QWEN3_4B,
    "Qwen/Qwen3-4B-Instruct-2507": _QWEN3_4B | _LONG,
    "Qwen/Qwen3-4B-Thinking-2507": _QWEN3_4B | _LONG,
    "Qwen/Qwen3-8B": _qwen3(4096, 12288, **_heads(36, 32, 8), **_UNTIED),
    "Qwen/Qwen3-14B": _qwen3(5120, 17408, **_heads(40, 40, 8), **_UNTIED),
    "Qwen/Qwen3-32B": _qwen3(5120, 25600, **_heads(64, 64, 8), **_UNTIED),
    "Qwen/Qwen3.5-4B": {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "tie_word_embeddings": True,
        "text_config": _heads(32, 16, 4)
        | {
            "model_type": "qwen3_5_text",
            "vocab_size": 248320,
            "hidden_size": 2560,
            "intermediate_size": 9216,
            "head_dim": 256,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "full_attention_interval": 4,
            "max_position_embeddings": 262144,
            "tie_word_embeddings": True,
        },
    },
    "meta-llama/Llama-3.2-1B-Instruct": _llama(2048, 8192, **_heads(16, 32, 8), head_dim=64),
    "meta-llama/Llama-3.2-3B-Instruct": _llama(3072, 8192, **_heads(28, 24, 8), head_dim=128),
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    "mistralai/Mistral-7B-Instruct-v0.3": _sizes(
        "mistral",
        "MistralForCausalLM",
        4096,
        14336,
        **_heads(32, 32, 8),
        **_UNTIED,
        vocab_size=32768,
        max_position_embeddings=32768,
        sliding_window=None,
    ),
    "google/gemma-3-1b-it": _sizes(
        "gemma3_text",
        "Gemma3ForCausalLM",
        1152,
        6912,
        **_heads(26, 4, 1),
        vocab_size=262144,
        head_dim=256,
        sliding_window=512,
        max_position_embeddings=32768,
    ),
}


@contextmanager
def with_published_sizes(config: Config) -> Iterator[Config]:
    """Yield the configuration with a folder as its model that holds the model's published sizes and no weights.

    The folder is temporary. A model that is not in the table, or is a local folder, is left as it is.
    """
    sizes = SIZES.get(config.model.name)
    if sizes is None or Path(config.model.name).is_dir():
        yield config
        return
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"dtype": "bfloat16", **sizes}), encoding="utf-8")
        yield config.model_copy(update={"model": config.model.model_copy(update={"name": folder})})
