"""Start vLLM on the language model of a multimodal checkpoint.

vLLM would load the multimodal class, whose modules have other names than those that the adapter was trained under, and
adapters with unknown names are ignored there without a word.
"""

from collections.abc import Generator
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from trapo_lite.config import ModelSection
from trapo_lite.core.errors import EngineError
from trapo_lite.engines.vllm.options import VLLMOptions
from trapo_lite.model.base import model_config, multimodal_type
from trapo_lite.model.language_model import language_model_name


def require_unquantised(options: VLLMOptions) -> None:
    """Raise EngineError for the language model of a multimodal checkpoint in NF4, which vLLM reads by other code."""
    if options.quantize != "none" and multimodal_type(options.model_path) is not None:
        raise EngineError(
            f"model.quantize: vLLM takes the language model out of {options.model_path} with quantize none only, found "
            f"{options.quantize}; set it to none, or rollout.engine: transformers"
        )


def language_model_arguments(options: VLLMOptions) -> dict[str, Any]:
    """Return the arguments that make vLLM build the text class, or none where its own reading of config.json does."""
    text = model_config(ModelSection(name=options.model_path, config_overrides=options.config_overrides))
    is_multimodal = multimodal_type(options.model_path) is not None
    rope = getattr(text, "rope_parameters", None) or {}
    beta = rope.get("llama_4_scaling_beta")
    if beta is not None:  # Ministral 3; vLLM 0.32 reads it from Mistral's own configuration files only
        text.llama_4_scaling = {
            "beta": beta,
            "original_max_position_embeddings": rope["original_max_position_embeddings"],
        }

    def own_part(config: PreTrainedConfig) -> PreTrainedConfig:
        is_real = config.get_text_config().model_type == text.model_type  # vLLM also asks with an empty one
        return text if is_real else config

    arguments: dict[str, Any] = {"hf_overrides": own_part} if is_multimodal or beta is not None else {}
    if is_multimodal:  # not Mistral's own files beside them, in which weights have other names
        arguments |= {"config_format": "hf", "load_format": "hf"}
    return arguments


def read_language_model_only() -> None:
    """Make vLLM read the language model's weights only, as the text class names them. Call it before the engine."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    read_all = DefaultModelLoader.get_all_weights

    def read_own(self: Any, model_config: Any, model: Any) -> Generator[tuple[str, Tensor], None, None]:
        for weight, tensor in read_all(self, model_config, model):
            name = language_model_name(weight)
            if name is not None:
                yield name, tensor

    DefaultModelLoader.get_all_weights = read_own
