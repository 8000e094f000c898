"""Check how long a model's sequences may be, and whether its rotary embedding is what the configuration asks for."""

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
    computed as they are alone. An engine chooses by the longest sequence that it is started for, or of its batch.
    """
    for kind, original in _changing_rope(config).items():
        limit = num_positions(config) if original is None else original
        if longest > limit:
            raise ConfigError(
                f"{_sequence(longest)}, but {name} has RoPE of type {kind}, whose frequencies for all sequences of a "
                f"batch change when one has more than {limit}; lower them to that (SFT without evaluations takes more, "
                "as rows)"
            )


def _sequence(longest: int) -> str:
    return f"data.max_prompt_tokens + rollout.max_response_tokens (or eval's): {longest} tokens"


def num_positions(config: PreTrainedConfig) -> int:
    """Return the longest sequence of the model: without limit if its configuration names none, as with ALiBi."""
    available = getattr(config, "max_position_embeddings", None)
    return available if isinstance(available, int) else NO_LIMIT


def _changing_rope(config: PreTrainedConfig) -> dict[str, int | None]:
    """Return the kinds of RoPE in use that depend on the length, each with the longest length at which it does not yet.

    None as length: the configuration does not say. They stand in `rope_parameters`, for all layers or for each type of
    layer, or in `rope_scaling`, its older spelling.
    """
    kinds: dict[str, int | None] = {}
    for field in ("rope_parameters", "rope_scaling"):
        parameters = getattr(config, field, None) or {}
        nested = [value for value in parameters.values() if isinstance(value, dict)]
        for rope in nested or [parameters]:
            kind = rope.get("rope_type", rope.get("type"))
            if kind == "longrope" or (isinstance(kind, str) and "dynamic" in kind):
                own = getattr(config, "original_max_position_embeddings", None)
                kinds[kind] = (own or rope.get("original_max_position_embeddings")) if kind == "longrope" else None
    return kinds


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
