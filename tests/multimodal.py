"""Write tiny multimodal models with random weights, by the multimodal classes themselves."""

from pathlib import Path
from typing import Any

import torch
from byte_model import byte_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

END = byte_tokenizer().eos_token_id
TEXT: dict[str, Any] = {
    "vocab_size": len(byte_tokenizer()),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": END,
}
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "image_size": 28, "patch_size": 14}
LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2}
SIZES = {"depth": 1, "num_heads": 2, "out_hidden_size": 64}
ROPE = {"rope_type": "default", "rope_theta": 1e5, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 8}

# Maps a type to (text options, vision options).
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}, VISION | LAYERS),
    "mistral3": (
        {"model_type": "ministral3", "rope_parameters": ROPE},
        VISION | LAYERS | {"model_type": "pixtral", "head_dim": 16},
    ),
    "qwen3_5": ({"layer_types": ["full_attention"] * 2}, VISION | SIZES),
}


def write_multimodal(model_type: str, folder: Path, *, tied: bool, **more: Any) -> Path:
    """Write a model by the multimodal class itself, with weights of deviation 0.1, and a tokenizer of bytes.

    more: options of the text part
    """
    text, vision = FAMILIES[model_type]
    options = {"text_config": TEXT | text | more, "vision_config": vision, "tie_word_embeddings": tied}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[model_type](**options), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.05))
    byte_tokenizer().save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def load_multimodal(folder: Path) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def add_by_hand(model: Any, adapter: Path) -> None:
    """Add alpha / r = 2 times B A to the weights of the multimodal class's own modules."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, b in tensors.items():
        if ".lora_B." in name:
            module = name.removeprefix("base_model.model.model.").removesuffix(".lora_B.weight")
            weight = model.model.language_model.get_submodule(module).weight
            weight.data += 2 * b @ tensors[name.replace(".lora_B.", ".lora_A.")]
