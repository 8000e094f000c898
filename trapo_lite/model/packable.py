"""Can packed trees run through a model, and can its adapter be served? Asked of its class on the meta device."""

import inspect

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from trapo_lite.config import Config
from trapo_lite.core.errors import ConfigError, ModelError
from trapo_lite.model.base import check_positions, model_config
from trapo_lite.model.shape import FAILURES, adapted, is_target, meta_model, require_sizes
from trapo_lite.model.tree_attention import ATTENTION, TreeLayout

NUM_TOKENS = 8
OTHER_MODEL = "take a model with full causal attention, such as Llama or Qwen"


def require_packable(config: PreTrainedConfig) -> PreTrainedModel:
    """Send the tokens of a tree through the model on the meta device: no weights, no results. Returns that model.

    Raises ModelError if the tree's layout does not reach the attention of every layer, if attention needs more than the
    layout, or if the decoder takes no positions; ConfigError if it draws random numbers. Whether the results are right
    is what `packing_check` tests in the first step of a run.
    """
    require_sizes(config)
    model = meta_model(config, attention=ATTENTION).eval()
    name, num_layers = f"model.name: {type(model).__name__}", config.num_hidden_layers
    # Some look for it among the tokens, whose values the meta device has not. Their configurations may refuse None.
    object.__setattr__(model.config, "pad_token_id", None)
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ModelError(f"{name}: its output layer has a bias or is none, which is not computed here; {OTHER_MODEL}")
    decoder = model.get_decoder()
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        raise ModelError(f"{name}: its decoder takes no position_ids, which packed trees need; {OTHER_MODEL}")
    widths: list[tuple[int, int]] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, _scaling: float) -> Tensor:
        widths.append((query.shape[2], key.shape[2]))
        return query.new_empty(*query.shape[:3], value.shape[-1])

    ids = torch.zeros(1, NUM_TOKENS, dtype=torch.long, device="meta")
    try:
        with torch.device("meta"), torch.no_grad():
            layout = TreeLayout(attend)
            decoder(input_ids=ids, position_ids=ids, use_cache=False, tree_layout=layout).last_hidden_state  # noqa: B018
    except ModelError as error:
        raise ModelError(f"{name}: {error}; {OTHER_MODEL}") from None
    except FAILURES as error:
        if not _needs_values(error):
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"{name}: its forward pass does not take packed trees ({type(error).__name__}: {reason}); {OTHER_MODEL}"
            ) from None
    else:
        if len(widths) < num_layers:
            raise ModelError(
                f"{name}: {num_layers - len(widths)} of its {num_layers} layers have no attention that packed trees "
                f"reach; {OTHER_MODEL}"
            )
    if not widths and not type(model)._can_set_attn_implementation():
        raise ModelError(f"{name}: its attention cannot be replaced, which packed trees need; {OTHER_MODEL}")
    if any(width != (NUM_TOKENS, NUM_TOKENS) for width in widths):
        raise ModelError(f"{name}: it attends to something else than its tokens; {OTHER_MODEL}")
    _refuse_randomness(config)
    return model


def check_targets(model: PreTrainedModel, targets: str | list[str]) -> None:
    """Raise ConfigError if `lora.target_modules` names no linear layer of the model, or adapts anything else.

    model: on the meta device; it is changed.
    PEFT ignores a name without a layer among others silently. It adapts fused experts and routers, which are no linear
    layers, with ranks of their own (rank_pattern), and engines cannot serve that.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in targets if isinstance(targets, list) else ():
        if not any(is_target(name, [target]) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names} - {"lm_head"})
            raise ConfigError(f"lora.target_modules: no layer is called {target!r}; there are {', '.join(known)}")
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    layers = {
        name: module
        for name, module in adapted(model, rank=1, targets=targets).named_modules()
        if isinstance(module, LoraLayer)
    }
    others = {
        name
        for name, layer in layers.items()
        if isinstance(layer, ParamWrapper) or not isinstance(layer.get_base_layer(), nn.Linear)
    }
    if others:
        linear = sorted({name.rpartition(".")[2] for name in layers.keys() - others})
        instead = f"set it to [{', '.join(linear)}]" if linear else "take another model"
        parts = [[part for part in name.split(".") if part != "base_layer" and not part.isdigit()] for name in others]
        kinds = sorted({".".join(part[-2:]) for part in parts})
        raise ConfigError(
            f"lora.target_modules: {targets if isinstance(targets, str) else ', '.join(targets)} also adapts what are "
            f"no linear layers of {type(model).__name__} ({', '.join(kinds)}), with ranks of their own, and engines "
            f"cannot serve that; {instead}"
        )


def _refuse_randomness(config: PreTrainedConfig) -> None:
    """Raise ConfigError for dropout and router noise: a token that rollouts share has one mask, rows have many."""
    random = [
        key
        for key, value in config.to_dict().items()
        if any(part in key for part in ("dropout", "pdrop", "layerdrop", "jitter"))
        and isinstance(value, float)
        and value != 0.0
        and not key.startswith(("summary", "classifier"))  # of other heads than a language model's
    ]
    if random:
        raise ConfigError(f"model.config_overrides.{', '.join(random)}: a shared token has one mask; set it to 0")


def _needs_values(error: BaseException) -> bool:
    """Return whether the pass ended because it depends on values, such as a router's, which the meta device has not."""
    return isinstance(error, NotImplementedError) or "meta tensor" in str(error)


def check_model(config: Config) -> int:
    """Return the longest sequence that a run needs, in tokens.

    Raises ConfigError or ModelError if the model, by its config.json and its class, has not enough positions, cannot be
    trained in packed trees, or lacks the layers that `lora.target_modules` names.
    """
    base, max_model_len = model_config(config.model), config.longest_sequence
    check_positions(base, config.model.name, longest=max_model_len)
    check_targets(require_packable(base), config.lora.target_modules)
    return max_model_len
