"""Check how long a model's sequences may be, and whether its rotary embedding is what the configuration asks for."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from trapo_lite.config import ModelSection
from trapo_lite.core.errors import ConfigError, ModelError

NO_LIMIT = 2**31
LONG_BY_SHORT = {"short_factor": "long_factor", "short_mscale": "long_mscale"}
"""Maps each parameter of longrope up to the original length to the one past it."""


def check_positions(config: PreTrainedConfig, name: str, *, longest: int, spelt: str | None = None) -> None:
    """Raise ConfigError if the model has not enough positions.

    longest: tokens of the longest sequence.   spelt: the options that give it, with their values, for the message
    """
    available = num_positions(config)
    if longest > available:
        check_fixed_rope(config, name, longest=longest)  # which more positions would change
        raise ConfigError(
            f"{spelt or _sequence(longest)}, but {name} has positions for {available}; lower them or raise "
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


def one_rope(config: PreTrainedConfig, *, max_model_len: int) -> dict[str, Any] | None:
    """Return `rope_parameters` in which RoPE of type longrope has the long factors at every length, or None.

    None: nothing need be changed, because an engine for sequences up to `max_model_len` tokens would not take the long
    factors. vLLM chooses once, by the longest sequence that it is started for, because keys in its cache cannot be
    turned again when a sequence passes the original length (vLLM 0.32, phi3_long_rope_scaled_rope.py).
    """
    ropes = copy.deepcopy(getattr(config, "rope_parameters", None) or {})
    changing = [rope for rope in _each(ropes) if _has_two_factors(rope)]
    changing = [rope for rope in changing if max_model_len > (_original_length(config, rope) or NO_LIMIT)]
    for rope in changing:
        rope |= {short: rope[long] for short, long in LONG_BY_SHORT.items() if long in rope}
    return ropes if changing else None


def longest_with_one_rope(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence for which an engine may be started without other factors of longrope, or None."""
    return _changing_rope(config).get("longrope")


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
    """Yield the parameters of RoPE, also under their older name."""
    for field in ("rope_parameters", "rope_scaling"):
        yield from _each(getattr(config, field, None) or {})


def _each(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of each type of layer, or those of all layers."""
    return [value for value in parameters.values() if isinstance(value, dict)] or [parameters]


def _type_of(rope: Mapping[str, Any]) -> object:
    return rope.get("rope_type", rope.get("type"))


def _has_two_factors(rope: Mapping[str, Any]) -> bool:
    return _type_of(rope) == "longrope" and any(rope.get(s) != rope.get(long) for s, long in LONG_BY_SHORT.items())


def _original_length(config: PreTrainedConfig, rope: Mapping[str, Any]) -> int | None:
    return getattr(config, "original_max_position_embeddings", None) or rope.get("original_max_position_embeddings")


def check_rope(base: PreTrainedModel, section: ModelSection) -> None:
    """Raise an error unless RoPE has the frequencies that `config_overrides` asks for.

    Transformers ignores other spellings silently. Of a base on the meta device, which has no values, it is only checked
    that there is RoPE. The engine's frequencies show in the first comparison of log-probs.
    """
    rope = section.config_overrides.get("rope_parameters")
    if not rope or rope.get("rope_type", "default") != "default" or "rope_theta" not in rope:
        return
    every = [buffer for name, buffer in base.get_decoder().named_buffers() if name.endswith(".inv_freq")]
    if not every:
        raise ConfigError(
            f"model.config_overrides.rope_parameters: would have no effect, because {section.name} "
            f"({type(base).__name__}) has no rotary embedding; remove them"
        )
    for frequencies in every:
        if frequencies.is_meta:
            continue
        found = frequencies.float().cpu()
        steps = torch.arange(found.numel(), dtype=torch.float32) / found.numel()
        expected = float(rope["rope_theta"]) ** -steps
        if not torch.allclose(found, expected, rtol=1e-3):
            raise ModelError(
                f"model.config_overrides.rope_parameters: theta {rope['rope_theta']} did not reach {section.name}: its "
                f"slowest frequency is {found[-1]:.3g} instead of {expected[-1]:.3g}; compare with the model's "
                "config.json"
            )
