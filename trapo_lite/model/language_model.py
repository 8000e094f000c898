"""Take the language model out of a multimodal model: its part of the configuration, and its weights by their names."""

import contextlib
import logging
import re
from collections.abc import Iterator

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trapo_lite.core.errors import ModelError

SENSES = ("vision_config", "audio_config")
"""Parts of a multimodal configuration, also of one that has its language model's sizes in itself."""

RENAMINGS = {
    r"^(?:model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?:model\.)?": "model.",
}
"""Each regular expression finds names of weights in a multimodal checkpoint; the text class has the name beside it."""


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Return whether a configuration describes more than a language model."""
    return config.get_text_config() is not config or not config.sub_configs.keys().isdisjoint(SENSES)


def language_model_config(config: PreTrainedConfig, *, name: str) -> PreTrainedConfig:
    """Return the configuration of the language model alone, with the class that computes it in `architectures`.

    A configuration of text only is returned as it is. Raises ModelError if transformers has no class for the language
    model alone.
    """
    if not is_multimodal(config):
        return config
    text = getattr(config, "text_config", None)
    if not isinstance(text, PreTrainedConfig) or text.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"model.name: {name} is a multimodal model ({config.model_type}), and transformers has no class for its "
            "language model alone; take a model of text only, or one such as Gemma 3, Ministral 3 or Qwen3.5"
        )
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]]
    for key in ("tie_word_embeddings", "quantization_config"):  # of the whole checkpoint
        if hasattr(config, key):
            setattr(text, key, getattr(config, key))
    return text


def language_model_name(weight: str) -> str | None:
    """Return the name in the text class of a weight in a multimodal checkpoint; None: of another part.

    >>> language_model_name("model.language_model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> language_model_name("language_model.lm_head.weight"), language_model_name("lm_head.weight")
    ('lm_head.weight', 'lm_head.weight')
    >>> language_model_name("model.vision_tower.layers.0.mlp.up_proj.weight")
    """
    for pattern, replacement in RENAMINGS.items():
        renamed = re.sub(pattern, replacement, weight)
        if renamed != weight:
            return renamed
    return weight if weight.startswith("lm_head.") else None


@contextlib.contextmanager
def no_report_of_other_parts() -> Iterator[None]:
    """Keep transformers from listing every weight of the other parts as unexpected inside."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


def save_under_own_names(model: PreTrainedModel) -> None:
    """Make `save_pretrained` use the text class's names; transformers would use those of the checkpoint it read."""
    vars(model)["_weight_conversions"] = None
