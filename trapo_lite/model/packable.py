"""Check on the meta device whether packed trees run through a model, and whether its adapter can be served."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from trapo_lite.core.errors import ConfigError, ModelError
from trapo_lite.core.tree import pack
from trapo_lite.core.types import Group, Rollout
from trapo_lite.model.logprobs import LogitScale
from trapo_lite.model.shape import (
    FAILURES,
    NOT_MIXING,
    RECURRENT,
    adapted,
    is_target,
    meta_model,
    num_sliding_layers,
    require_sizes,
    runs_on_meta,
)
from trapo_lite.model.tree_attention import ATTENTION, Scores, TreeLayout
from trapo_lite.model.tree_recurrence import Scan, TreeRecurrence, reach_recurrent_layers

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

NUM_TOKENS = 8
MIXING = ("full_attention", "sliding_attention", "conv", *RECURRENT)
"""transformers' types of layers whose tokens see others."""
ROWS = "set model.layout: auto or rows"


def require_packable(config: PreTrainedConfig) -> PreTrainedModel:
    """Send the tokens of a tree through the model on the meta device: no weights, no results. Returns that model.

    Raises ModelError if the tree's layout does not reach the attention of every layer, if attention needs more than the
    layout, or if the decoder takes no positions. `packing_check` tests in the first step of a run whether the results
    are right.
    """
    require_sizes(config)
    layer_types = getattr(config, "layer_types", None) or ()
    others = {*layer_types} - {*MIXING, *NOT_MIXING}
    if others:
        raise ModelError(f"model.name: layers of type {', '.join(sorted(others))} are unknown here; {ROWS}")
    model = meta_model(config, attention=ATTENTION).eval()
    reach_recurrent_layers(model)
    name = f"model.name: {type(model).__name__}"
    # Some look for it among the tokens, whose values the meta device has not. Their configurations may refuse None.
    object.__setattr__(model.config, "pad_token_id", None)
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ModelError(f"{name}: its output layer has a bias or is none, which is not computed here; {ROWS}")
    decoder = model.get_decoder()
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        raise ModelError(f"{name}: its decoder takes no position_ids, which packed trees need; {ROWS}")
    logit_scale_of(model)
    reached = _Reached()
    ids = torch.zeros(1, NUM_TOKENS, dtype=torch.long, device="meta")
    layout = TreeLayout(reached.attend, recurrence=reached)
    ran_through = runs_on_meta(
        lambda: decoder(input_ids=ids, position_ids=ids, use_cache=False, **layout.arguments).last_hidden_state,
        name=name,
        complaint="its forward pass does not take packed trees",
        remedy=ROWS,
    )
    if ran_through:
        _require_every_layer(reached, config, name=name)
    if not reached.widths and not type(model)._can_set_attn_implementation():
        raise ModelError(f"{name}: its attention cannot be replaced, which packed trees need; {ROWS}")
    if any(width != (NUM_TOKENS, NUM_TOKENS) for width in reached.widths):
        raise ModelError(f"{name}: it attends to something else than its tokens; {ROWS}")
    return model


class _Reached(TreeRecurrence):
    """A _Reached is the layout of one chain, and notes what a model's layers do with it."""

    def __init__(self) -> None:
        prompt = Rollout("", 0, prompt_ids=(0,) * NUM_TOKENS, prefix_ids=())
        super().__init__(pack([Group((prompt,), (0.0,), (0.0,))]))
        self.num_scans = self.num_convolutions = 0
        self.widths: list[tuple[int, int]] = []  # queries and keys of each attention
        self.windows: list[int] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        self.widths.append((query.shape[2], key.shape[2]))
        self.windows += [] if scores.window is None else [scores.window]
        return query.new_empty(*query.shape[:3], value.shape[-1])

    def convolve(self, convolution: Callable[[Tensor], Tensor], inputs: Tensor, *, num_before: int) -> Tensor:
        self.num_convolutions += 1
        return super().convolve(convolution, inputs, num_before=num_before)

    def scan(self, scan: Scan, inputs: Sequence[Tensor]) -> Tensor:
        self.num_scans += 1
        return super().scan(scan, inputs)


def _require_every_layer(reached: _Reached, config: PreTrainedConfig, *, name: str) -> None:
    """Raise ModelError unless a pass reached each layer that mixes tokens, and each window."""
    layer_types = getattr(config, "layer_types", None) or ()
    num_mixing = config.num_hidden_layers - sum(kind in NOT_MIXING for kind in layer_types)
    num_recurrent = sum(kind in RECURRENT for kind in layer_types)
    num_convolving = min(reached.num_convolutions, [*layer_types].count("conv"))
    num_reached = len(reached.widths) + reached.num_scans + num_convolving
    num_lost = max(num_mixing - num_reached, num_recurrent - reached.num_scans)
    if num_lost > 0:
        raise ModelError(
            f"{name}: {num_lost} of its {num_mixing} layers have no attention and no recurrence that packed trees "
            f"reach; {ROWS}"
        )
    num_sliding = num_sliding_layers(config)
    if len(reached.windows) != num_sliding:
        raise ModelError(
            f"{name}: {num_sliding} of its layers have a sliding window, but {len(reached.windows)} tell attention of "
            f"it; {ROWS}"
        )


def logit_scale_of(model: PreTrainedModel) -> LogitScale:
    """Return what the model's class does to the products of its output layer, found by giving it products to work on.

    Configurations name this differently: Granite divides by `logits_scaling`, HyperCLOVA multiplies by it. Raises
    ModelError if it is more than a factor and a softcap.
    """
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    answer = MoeModelOutputWithPast(last_hidden_state=cast("torch.FloatTensor", torch.zeros(1, 1, 1, device="cpu")))
    products = torch.tensor([-1e6, -40.0, -2.0, 1e-3, 0.5, 3.0, 1e6], device="cpu")
    assert head is not None
    with _answering(decoder, answer), _answering(head, products[None, None]), torch.no_grad():
        try:
            logits = (
                model(input_ids=torch.zeros(1, 1, dtype=torch.long, device="cpu"), use_cache=False).logits[0, 0].float()
            )
        except FAILURES as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"model.name: what {type(model).__name__} does to its logits cannot be found ({reason}); {ROWS}"
            ) from None
    factor, largest = float(logits[3] / products[3]), float(logits[-1])
    scale = LogitScale(factor, softcap=largest if largest < 0.99 * factor * 1e6 else None)
    if logits.shape != products.shape or not torch.allclose(scale.apply_(products.clone()), logits, rtol=1e-4):
        raise ModelError(
            f"model.name: {type(model).__name__} does more to its logits than a factor and a softcap, which is not "
            f"computed here; {ROWS}"
        )
    return scale


@contextlib.contextmanager
def _answering(module: nn.Module, answer: Any) -> Iterator[None]:
    """Let the module's forward pass return this answer inside."""
    before = vars(module).get("forward")  # a hook's, as Accelerate sets them
    vars(module)["forward"] = lambda *_, **__: answer
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before


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
        if isinstance(layer, ParamWrapper) or not _is_linear(layer.get_base_layer())
    }
    if others:
        parts = [[part for part in name.split(".") if part != "base_layer" and not part.isdigit()] for name in others]
        kinds = sorted({".".join(part[-2:]) for part in parts})
        raise ConfigError(
            f"lora.target_modules: {targets if isinstance(targets, str) else ', '.join(targets)} also adapts what are "
            f"no linear layers of {type(model).__name__} ({', '.join(kinds)}), with ranks of their own, and engines "
            f"cannot serve that; {_without(others, layers)}"
        )
    if idle := layers.keys() - _called(layers, model):
        kinds = sorted({name.rpartition(".")[2] for name in idle})
        raise ConfigError(
            f"lora.target_modules: {type(model).__name__} reads the weights of {', '.join(kinds)} without calling the "
            f"layer, so an adapter on it would not act; {_without(idle, layers)}"
        )


def _without(others: Set[str], layers: Mapping[str, "LoraLayer"]) -> str:
    """Return what to set lora.target_modules to so that it names the layers but these others."""
    kinds = sorted({name.rpartition(".")[2] for name in layers.keys() - others})
    return f"set it to [{', '.join(kinds)}]" if kinds else "take another model"


def _called(layers: Mapping[str, "LoraLayer"], model: PreTrainedModel) -> Set[str]:
    """Return the layers that a forward pass over a few tokens calls; all of them if it needs values to tell."""
    called: set[str] = set()
    for name, layer in layers.items():
        cast(nn.Module, layer).register_forward_hook(lambda *_, name=name: called.add(name))
    if model.config._attn_implementation == ATTENTION:  # which wants a tree
        model.set_attn_implementation(model.get_correct_attn_implementation(None))
    ids = torch.zeros(1, NUM_TOKENS, dtype=torch.long, device="meta")
    runs = runs_on_meta(
        lambda: model(input_ids=ids, use_cache=False).logits,
        name=f"model.name: {type(model).__name__}",
        complaint="its forward pass takes no tokens alone",
        remedy="take another model",
    )
    return called if runs else layers.keys()


def _is_linear(layer: nn.Module) -> bool:
    """Return whether a layer on the meta device is linear and returns a tensor; some routers are of such a class."""
    if not isinstance(layer, nn.Linear):
        return False
    if type(layer).forward is nn.Linear.forward:
        return True
    try:
        return isinstance(layer(layer.weight.new_zeros(1, 1, layer.in_features)), Tensor)
    except FAILURES:
        return False


def logit_scale_of_rows(base: PreTrainedModel) -> LogitScale | None:
    """Return what the head does to its products; None: more than can be computed in chunks here."""
    head = base.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        return None
    try:
        return logit_scale_of(base)
    except ModelError:
        return None
