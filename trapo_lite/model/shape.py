"""Count the sizes of a model and its adapter, from which memory and operations follow, by its configuration alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from trapo_lite.core.errors import ModelError
from trapo_lite.core.tree import PackedBatch

if TYPE_CHECKING:  # seconds that the plan does without
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(RuntimeError, StrictDataclassError, TypeError, ValueError),
)
"""What modelling code raises where a configuration is not what it expects."""

RECURRENT = ("linear_attention", "hybrid", "hybrid_sliding")
NOT_MIXING = ("mlp", "moe")
"""transformers' types of layers that scan, and those whose tokens see no others."""
WITHOUT_ATTENTION = ("linear_attention", "conv", *NOT_MIXING)
"""transformers' types of layers that keep no keys and values."""


@dataclass(frozen=True)
class ModelShape:
    """A ModelShape holds the sizes that memory and operations of a step are computed from.

    linear_parameters:  of the decoder's linear layers
    adapter_parameters: of LoRA on those of them that are targets
    other_parameters:   embeddings, an output layer that is not tied to them, norms, biases
    attention_width, kv_width: heads, and key-value heads, times the size of a head
    num_sliding, window: layers with a sliding window, and how many tokens it holds
    num_without_attention: layers of a recurrence, a convolution or an MLP alone
    num_recurrent: layers with a recurrence, alone or beside attention
    has_head_bias: the output layer has a bias, so that rows keep whole logits
    lora_width: inputs and outputs of all linear layers of the decoder: parameters of one rank of an adapter on them
    """

    num_layers: int
    hidden_size: int
    mlp_width: int
    vocab_size: int
    attention_width: int
    kv_width: int
    lora_width: int
    linear_parameters: int
    other_parameters: int
    adapter_parameters: int
    num_sliding: int = 0
    window: int = 0
    num_without_attention: int = 0
    num_recurrent: int = 0
    has_head_bias: bool = False

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters

    @classmethod
    def of(cls, config: PreTrainedConfig, *, rank: int, targets: str | Sequence[str]) -> ModelShape:
        """Count a model's sizes on the meta device, where it has no weights. targets: as in lora.target_modules.

        Raises ModelError if transformers cannot build it, or if its configuration does not have these sizes.
        """
        require_sizes(config)
        model = meta_model(config)
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        decoder = {name: module for name, module in linears.items() if not name.endswith("lm_head")}
        num_linear = sum(module.weight.numel() for module in decoder.values())
        size = head_size(config)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads(config)
        adapter = adapted(model, rank=rank, targets=targets).parameters()
        layer_types = getattr(config, "layer_types", None) or ()
        return cls(
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            mlp_width=getattr(config, "intermediate_size", None) or max(len(part.weight) for part in decoder.values()),
            vocab_size=config.vocab_size,
            attention_width=num_heads(config) * size,
            kv_width=num_kv_heads * size,
            lora_width=sum(module.in_features + module.out_features for module in decoder.values()),
            linear_parameters=num_linear,
            other_parameters=num_parameters - num_linear,
            adapter_parameters=sum(parameter.numel() for parameter in adapter if parameter.requires_grad),
            num_sliding=num_sliding_layers(config),
            window=getattr(config, "sliding_window", None) or 0,
            num_without_attention=sum(kind in WITHOUT_ATTENTION for kind in layer_types),
            num_recurrent=sum(kind in RECURRENT for kind in layer_types),
            has_head_bias=getattr(model.get_output_embeddings(), "bias", None) is not None,
        )

    def training_flop(
        self, *, num_tokens: int, num_visible: int, num_trained: int, num_in_window: int | None = None
    ) -> float:
        """Return the operations of forward and backward through a frozen base under an adapter, recomputation left out.

        A frozen weight costs 2 a token forward and 2 for the gradient of its input; an adapter's 2 more for its own.
        num_visible: pairs of a token and one that it sees (itself included): 4 forward and 8 backward for each unit of
        attention_width and layer.   num_in_window: the same in layers with a window; None: as many.
        num_trained: rows of the head.
        """
        dense = 4.0 * self.linear_parameters * num_tokens + 6.0 * self.adapter_parameters * num_tokens
        attention = 12.0 * self.attention_width * self._num_pairs(num_visible, num_in_window)
        return dense + attention + 4.0 * self.hidden_size * self.vocab_size * num_trained

    def reading_flop(
        self, *, num_tokens: int, num_visible: int, num_read: int, num_in_window: int | None = None
    ) -> float:
        """Return the operations of a forward pass through the base without the adapter. num_read: rows of the head.

        The others as for `training_flop`.
        """
        attention = 4.0 * self.attention_width * self._num_pairs(num_visible, num_in_window)
        dense = 2.0 * self.linear_parameters * num_tokens
        return dense + attention + 2.0 * self.hidden_size * self.vocab_size * num_read

    def _num_pairs(self, num_visible: int, num_in_window: int | None) -> int:
        """Return the pairs of all layers with attention together."""
        pairs = (self.num_layers - self.num_without_attention - self.num_sliding) * num_visible
        return pairs + self.num_sliding * (num_visible if num_in_window is None else num_in_window)

    def batch_flop(self, batch: PackedBatch) -> float:
        """Return `training_flop` of one packed batch; a token sees as many as stand on its path."""
        num_tokens = batch.num_tokens - batch.num_padding
        num_visible = int((batch.position + 1).sum()) - batch.num_padding
        num_in_window = int((batch.position + 1).clamp(max=self.window).sum()) - batch.num_padding
        return self.training_flop(
            num_tokens=num_tokens,
            num_visible=num_visible,
            num_trained=len(batch.trained),
            num_in_window=num_in_window if self.num_sliding else None,
        )


def head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // max(1, num_heads(config))


def num_heads(config: PreTrainedConfig) -> int:
    """Return the number of attention heads, 0 for a model without attention."""
    return getattr(config, "num_attention_heads", None) or 0


def num_sliding_layers(config: PreTrainedConfig) -> int:
    """Return how many layers have a sliding window."""
    if getattr(config, "sliding_window", None) is None:
        return 0
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:  # Mistral, Phi-3: the field alone makes every layer slide
        return config.num_hidden_layers
    return layer_types.count("sliding_attention")


def require_sizes(config: PreTrainedConfig) -> None:
    """Raise ModelError if the configuration lacks a size that `ModelShape` needs."""
    sizes = ("num_hidden_layers", "hidden_size", "vocab_size")
    missing = [name for name in sizes if not isinstance(getattr(config, name, None), int)]
    if missing:
        raise ModelError(
            f"model.name: the configuration of {config.model_type} has no {' and no '.join(missing)}, so its size is "
            "not known here; take another model"
        )


def is_target(name: str, targets: str | Sequence[str]) -> bool:
    """Return whether lora.target_modules names this linear layer of the decoder; a text means all of them."""
    return isinstance(targets, str) or any(name == target or name.endswith(f".{target}") for target in targets)


def meta_model(config: PreTrainedConfig, *, attention: str | None = None) -> PreTrainedModel:
    """Build the model in bfloat16 without memory for its weights. Raise ModelError if transformers cannot."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            config = copy.deepcopy(config)  # from_config writes the attention into it
            return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.bfloat16)
    except FAILURES as error:
        if attention is not None and isinstance(error, KeyError) and error.args == (attention,):
            raise ModelError(
                f"model.name: models of type {config.model_type} choose among attention classes of their own, so "
                "packed trees cannot be computed with them; take another model"
            ) from None
        _require_rope_of_layers(config, error)
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"model.name: transformers cannot build a causal language model of type {config.model_type} here "
            f"({type(error).__name__}: {reason}); take another model"
        ) from None


def _require_rope_of_layers(config: PreTrainedConfig, error: Exception) -> None:
    """Raise ModelError if the class looked in `rope_parameters` for a type of layer that has none there."""
    rope, kinds = getattr(config, "rope_parameters", None), getattr(config, "layer_types", None) or ()
    lacking = error.args[0] if isinstance(error, KeyError) and error.args else None
    if isinstance(rope, dict) and lacking in kinds and lacking not in rope:
        form = ", ".join(f"{kind}: {{rope_type: ..., rope_theta: ...}}" for kind in dict.fromkeys(kinds))
        raise ModelError(
            f"model.name or model.config_overrides: rope_parameters: models of type {config.model_type} have one for "
            f"each type of layer, found {rope} without {lacking}; write rope_parameters: {{{form}}}"
        ) from None


def adapted(model: PreTrainedModel, *, rank: int, targets: str | Sequence[str]) -> PeftModel:
    """Add the adapter that training would have to a model on the meta device, which is changed.

    Raises ModelError if PEFT finds nothing to adapt, or takes the targets for something else.
    """
    from peft import LoraConfig, get_peft_model

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    names = targets if isinstance(targets, str) else list(targets)
    lora = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=names)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            return cast("PeftModel", get_peft_model(model, lora, low_cpu_mem_usage=True))
    except FAILURES as error:
        reason = str(error).strip().partition("\n")[0]
        known = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)})
        raise ModelError(
            f"lora.target_modules: {names}: PEFT cannot adapt {type(model).__name__}: {reason}; its layers are "
            f"{', '.join(known)}"
        ) from None


def runs_on_meta(forward: Callable[[], object], *, name: str, complaint: str, remedy: str) -> bool:
    """Return whether a pass on the meta device came to its end. It does not if it needs values, such as a router's.

    Raises ModelError with the reason if it fails otherwise: "name: complaint (reason); remedy".
    """
    try:
        with torch.device("meta"), torch.no_grad():
            forward()
    except ModelError as error:
        raise ModelError(f"{name}: {error}; {remedy}") from None
    except FAILURES as error:
        if isinstance(error, NotImplementedError) or "meta tensor" in str(error):
            return False
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{name}: {complaint} ({type(error).__name__}: {reason}); {remedy}") from None
    return True


def num_pairs(prompt: int, response: int, *, window: int) -> int:
    """Return how many tokens the tokens of a response see together, each at most `window`.

    >>> num_pairs(10, 4, window=100), num_pairs(10, 4, window=12), num_pairs(10, 4, window=3)
    (48, 46, 12)
    """
    num_seeing_all = min(response, max(0, window - prompt))
    return num_seeing_all * (prompt + num_seeing_all // 2) + (response - num_seeing_all) * window
