"""Compute the sizes of Llama's and Qwen's decoders from config.json by arithmetic, for the plan.

`ModelShape.of` counts any model that transformers builds, but importing it takes longer than the rest of a plan.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from trapo_lite.config import Config
from trapo_lite.core.errors import ConfigError
from trapo_lite.model.shape import ModelShape, is_target

NORMS_OF_HEADS = {"llama": 0, "qwen2": 0, "qwen3": 2}
FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Types of RoPE that do not depend on the length of a sequence."""
BIASED = {"llama": (), "qwen2": ("q_proj", "k_proj", "v_proj"), "qwen3": ()}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def plain_shape(config: Config) -> ModelShape | None:
    """Return the sizes, or None if the model is not a plain Llama or Qwen.

    None if config.json is damaged, relies on its class's defaults, is unusual, or contradicts the rest of the
    configuration. transformers and `inputs.check_model` then report what is wrong. Raises ConfigError if the hub has no
    such model.
    """
    model, lora = config.model, config.lora
    fields = _read(model.name)
    if fields is None or not set(model.config_overrides) <= {*fields, "rope_parameters"} - {"rope_theta"}:
        return None
    fields |= model.config_overrides
    if not _is_plain(fields) or fields["max_position_embeddings"] < config.longest_sequence:
        return None
    hidden, mlp, num_layers, heads, kv_heads = (fields[name] for name in SIZES)
    head_size = fields.get("head_dim") or hidden // heads
    width, kv_width, vocab = heads * head_size, kv_heads * head_size, fields["vocab_size"]
    linears = {  # rows and columns
        "self_attn.q_proj": (hidden, width),
        "self_attn.k_proj": (hidden, kv_width),
        "self_attn.v_proj": (hidden, kv_width),
        "self_attn.o_proj": (width, hidden),
        "mlp.gate_proj": (hidden, mlp),
        "mlp.up_proj": (hidden, mlp),
        "mlp.down_proj": (mlp, hidden),
    }
    sizes_by_name = {f"model.layers.{n}.{name}": sizes for n in range(num_layers) for name, sizes in linears.items()}
    if not _are_known(lora.target_modules, list(sizes_by_name)):
        return None
    biases = sum(columns for name, (_, columns) in linears.items() if name.endswith(BIASED[fields["model_type"]]))
    norms = 2 * hidden + NORMS_OF_HEADS[fields["model_type"]] * head_size
    adapted = sum(sum(sizes) for name, sizes in sizes_by_name.items() if is_target(name, lora.target_modules))
    num_linear = num_layers * sum(rows * columns for rows, columns in linears.values())
    tables = 1 if fields["tie_word_embeddings"] else 2
    return ModelShape(
        num_layers=num_layers,
        hidden_size=hidden,
        mlp_width=mlp,
        vocab_size=vocab,
        attention_width=width,
        kv_width=kv_width,
        lora_width=num_layers * sum(rows + columns for rows, columns in linears.values()),
        linear_parameters=num_linear,
        other_parameters=tables * vocab * hidden + num_layers * (norms + biases) + hidden,
        adapter_parameters=lora.r * adapted,
    )


def _are_known(targets: str | list[str], names: list[str]) -> bool:
    return isinstance(targets, str) or all(any(is_target(name, [target]) for name in names) for target in targets)


def _read(name: str) -> dict[str, Any] | None:
    if Path(name).is_dir():
        file = Path(name) / "config.json"
    else:
        try:
            file = Path(hf_hub_download(name, "config.json"))
        except (OSError, ValueError) as error:  # after a minute of retries, which transformers would repeat
            raise ConfigError(f"model.name: cannot read {name!r}: {error}; give a model folder or hub id") from None
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


def _is_plain(fields: dict[str, Any]) -> bool:
    """Return whether config.json states all that the sizes depend on, and nothing that changes them or is refused."""
    family = fields.get("model_type")
    sizes = [*SIZES, "vocab_size", "max_position_embeddings", *(["head_dim"] if family == "qwen3" else [])]
    ropes = [fields.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    unusual = ("attention_bias", "mlp_bias", "use_sliding_window", "attention_dropout", "quantization_config")
    return (
        family in BIASED
        and isinstance(fields.get("tie_word_embeddings"), bool)
        and all(type(fields.get(name)) is int and fields[name] > 0 for name in sizes)
        and (fields.get("head_dim") or fields["hidden_size"] % fields["num_attention_heads"] == 0)
        and fields["num_attention_heads"] % fields["num_key_value_heads"] == 0
        and not any(fields.get(name) for name in unusual)
        and all(isinstance(rope, dict) and _type_of(rope) in FIXED_ROPE for rope in ropes)
        and set(fields.get("layer_types") or ["full_attention"]) == {"full_attention"}
    )


def _type_of(rope: dict[str, Any]) -> object:
    return rope.get("rope_type", rope.get("type", "default"))
