"""Choose whether rollouts run as packed trees or as rows, by the model's class, before any weight is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from trapo_lite.config import Config, ModelSection
from trapo_lite.core.errors import ConfigError, ModelError
from trapo_lite.model.base import model_config
from trapo_lite.model.packable import check_targets, require_packable
from trapo_lite.model.positions import check_fixed_rope, check_positions, check_rope
from trapo_lite.model.shape import head_size, meta_model, runs_on_meta
from trapo_lite.run.device import fits_flex_attention

OTHER_MODEL = "take a causal language model, such as Llama or Qwen3"


@dataclass(frozen=True)
class Layout:
    """A Layout says how a model's rollouts run.

    model:  on the meta device
    reason: why auto took rows, as the text of the error that model.layout: tree would give; empty otherwise
    """

    name: Literal["tree", "rows"]
    model: PreTrainedModel
    reason: str = ""

    def written_out(self, config: Config) -> Config:
        """Return the configuration with this layout in the place of auto."""
        return config.model_copy(update={"model": config.model.model_copy(update={"layout": self.name})})

    @property
    def line(self) -> str:
        return rows_line(self.reason) if self.reason else ""


def rows_line(reason: str) -> str:
    """Return a line for the user that says why `model.layout: auto` takes rows. reason: text of an error."""
    why = reason.removeprefix("model.name: ").rpartition("; ")[0] or reason  # without what to do
    return f"layout: rows, because {why}; every rollout runs by itself"


def choose_layout(section: ModelSection, *, longest: int | None = None) -> Layout:
    """Decide by the model's config.json and class what `model.layout` means for it.

    longest: tokens of the longest sequence, if it is known: RoPE must be the same at each length up to it

    Raises ModelError or ConfigError for what neither can do, or not the one that is asked for.
    """
    config = model_config(section)
    if section.layout == "rows":
        return Layout("rows", require_rows(config))
    try:
        if longest is not None:
            check_fixed_rope(config, section.name, longest=longest)
        return Layout("tree", require_packable(config))
    except (ConfigError, ModelError) as error:
        if section.layout == "tree":
            raise
        reason = str(error)
    return Layout("rows", require_rows(config), reason)


def require_rows(config: PreTrainedConfig) -> PreTrainedModel:
    """Send tokens through the model on the meta device, as a row. Returns that model; raises ModelError if it fails."""
    model = meta_model(config).eval()
    name = f"model.name: {type(model).__name__}"
    if not getattr(model.config, "is_decoder", True):
        raise ModelError(f"{name}: is_decoder is off in its configuration, so it sees later tokens; {OTHER_MODEL}")
    ids = torch.zeros(1, 8, dtype=torch.long, device="meta")
    runs_on_meta(
        lambda: model(input_ids=ids, use_cache=False).logits,
        name=name,
        complaint="its forward pass takes no tokens alone",
        remedy=OTHER_MODEL,
    )
    return model


def check_model(config: Config) -> Layout:
    """Return how the model's rollouts will run.

    Raises ConfigError or ModelError if the model, by its config.json and its class, has not enough positions, cannot be
    trained, or lacks the layers that `lora.target_modules` names or the RoPE that `model.config_overrides` changes.
    """
    longest = config.longest_computed
    base = model_config(config.model)
    check_positions(base, config.model.name, longest=longest, spelt=config.longest_in_words)
    layout = choose_layout(config.model, longest=longest)
    if config.uses_engine:
        check_fixed_rope(layout.model.config, config.model.name, longest=config.longest_sequence)
    check_rope(layout.model, config.model)
    check_targets(layout.model, config.lora.target_modules)
    return layout


def choose_attention(model: ModelSection, device: torch.device, notify: Callable[[str], None]) -> str:
    """Return how a tree's attention is computed: flex or sdpa.

    Raises ConfigError if FlexAttention is asked for and cannot run.   notify: told why auto does not take it on a GPU
    """
    if device.type != "cuda":
        if model.attention == "flex":
            raise ConfigError("model.attention: FlexAttention has no backward pass on the CPU; set it to auto or sdpa")
        return "sdpa"
    if model.attention == "sdpa":
        return "sdpa"
    head_bytes = head_size(model_config(model)) * getattr(torch, model.dtype).itemsize
    if fits_flex_attention(device, head_bytes=head_bytes):
        return "flex"
    reason = f"FlexAttention needs more shared memory than this GPU has for heads of {head_bytes} bytes ({model.dtype})"
    if model.attention == "flex":
        raise ConfigError(f"model.attention: {reason}; set it to auto or sdpa, or model.dtype: bfloat16")
    notify(f"attention: sdpa, chain by chain: {reason}")
    return "sdpa"
