"""Check how long a model's sequences may be, and whether its rotary embedding is what the configuration asks for."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from trapo_lite.config import ModelSection
from trapo_lite.core.errors import ConfigError, ModelError

NO_LIMIT = 2**31


def check_positions(config: PreTrainedConfig, name: str, *, longest: int) -> None:
    """Raise ConfigError if the model has not enough positions. longest: tokens of the longest sequence."""
    available = num_positions(config)
    if longest > available:
        check_fixed_rope(config, name, longest=longest)  # which more positions would change
        raise ConfigError(
            f"{_sequence(longest)}, but {name} has positions for {available}; lower them or raise "
            "max_position_embeddings in model.config_overrides"
        )


def check_fixed_rope(config: PreTrainedConfig, name: str, *, longest: int) -> None:
    """Raise ConfigError if the frequencies of the model's RoPE change with the length of sequences up to `longest`.

    RoPE of type longrope changes its frequencies past `original_max_position_embeddings`, of type dynamic past
    `max_position_embeddings`, and then for all sequences of a batch: rollouts that are packed together would not be
    computed as they are alone.
    """
    for kind, original in _changing_rope(config).items():
        limit = num_positions(config) if original is None else original
        if longest > limit:
            raise ConfigError(
                f"{_sequence(longest)}, but {name} has RoPE of type {kind}, whose frequencies for all sequences of a "
                f"batch change when one has more than {limit}; lower them to that (SFT without evaluations takes more, "
                "as rows)"
            )


def serve_one_rope(config: PreTrainedConfig, *, max_model_len: int) -> str | None:
    """Give RoPE of type longrope the long factors at every length, as an engine for `max_model_len` tokens has it.

    vLLM chooses once, by the longest sequence that it is started for, because keys in its cache cannot be turned again
    when a sequence passes the original length (vLLM 0.32, phi3_long_rope_scaled_rope.py). Trainer and engine then
    compute the same. Returns a line for the user, or None if nothing was changed.
    """
    line = None
    for rope in filter(_has_two_factors, _ropes(config)):
        original = _original_length(config, rope)
        if original is not None and max_model_len > original:
            rope["short_factor"] = list(rope["long_factor"])
            line = (
                f"RoPE: long factors for every sequence, because one may have {max_model_len} tokens, more than "
                f"{original}; vLLM chooses in the same way"
            )
    return line


def _sequence(longest: int) -> str:
    return f"data.max_prompt_tokens + rollout.max_response_tokens (or eval's): {longest} tokens"


def num_positions(config: PreTrainedConfig) -> int:
    """Return the longest sequence of the model: without limit if its configuration names none, as with ALiBi."""
    available = getattr(config, "max_position_embeddings", None)
    return available if isinstance(available, int) else NO_LIMIT


def _changing_rope(config: PreTrainedConfig) -> dict[str, int | None]:
    """Return the kinds of RoPE in use that depend on the length, each with the longest length at which it does not yet.

    None as length: the configuration does not say.
    """
    kinds: dict[str, int | None] = {}
    for rope in _ropes(config):
        if _has_two_factors(rope):
            kinds["longrope"] = _original_length(config, rope)
        elif "dynamic" in (kind := str(_type_of(rope))):
            kinds[kind] = None
    return kinds


def _ropes(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """Yield the parameters of RoPE: of all layers or of each type of layer, also under their older name."""
    for field in ("rope_parameters", "rope_scaling"):
        parameters = getattr(config, field, None) or {}
        nested = [value for value in parameters.values() if isinstance(value, dict)]
        yield from nested or [parameters]


def _type_of(rope: Mapping[str, Any]) -> object:
    return rope.get("rope_type", rope.get("type"))


def _has_two_factors(rope: Mapping[str, Any]) -> bool:
    return _type_of(rope) == "longrope" and rope.get("short_factor") != rope.get("long_factor")


def _original_length(config: PreTrainedConfig, rope: Mapping[str, Any]) -> int | None:
    return getattr(config, "original_max_position_embeddings", None) or rope.get("original_max_position_embeddings")


def check_rope(base: PreTrainedModel, section: ModelSection) -> None:
    """Raise ConfigError unless RoPE has the frequencies that `config_overrides` asks for.

    Transformers ignores other spellings silently. The engine's frequencies show in the first comparison of
    log-probs.
    """
    rope = section.config_overrides.get("rope_parameters")
    if not rope or rope.get("rope_type", "default") != "default" or "rope_theta" not in rope:
        return
    buffers = dict(base.get_decoder().named_buffers())
    found = buffers["rotary_emb.inv_freq"].float().cpu()
    steps = torch.arange(found.numel(), dtype=torch.float32) / found.numel()
    expected = float(rope["rope_theta"]) ** -steps
    if not torch.allclose(found, expected, rtol=1e-3):
        raise ModelError(
            f"model.config_overrides.rope_parameters: theta {rope['rope_theta']} did not reach {section.name}: its "
            f"slowest frequency is {found[-1]:.3g} instead of {expected[-1]:.3g}; compare with the model's config.json"
        )
