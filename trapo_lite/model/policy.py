"""Compute with the policy: one frozen base and one LoRA adapter, without which the same base is the reference."""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from trapo_lite.config import LoraSection, ModelSection
from trapo_lite.core.batching import bucket, num_tokens
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.tree import PackedBatch, pack
from trapo_lite.core.types import Group, Rollout
from trapo_lite.model import tree_attention
from trapo_lite.model.adapter import LoraAdapter
from trapo_lite.model.base import load_base
from trapo_lite.model.base_module import BaseModel
from trapo_lite.model.layout import Layout, choose_attention, choose_layout
from trapo_lite.model.logprobs import of_whole_logits, token_divergence, token_logprobs
from trapo_lite.model.packable import logit_scale_of, logit_scale_of_rows
from trapo_lite.model.positions import check_fixed_rope, check_positions, check_rope
from trapo_lite.model.saved_adapter import check_start
from trapo_lite.model.shape import ModelShape, num_heads
from trapo_lite.model.tree_attention import TreeLayout
from trapo_lite.model.tree_recurrence import TreeRecurrence, reach_recurrent_layers

Result = TypeVar("Result")
MAX_EAGER_SCORES = 2**27
"""Of one layer's attention: entries of the matrix that eager attention makes, of which it keeps several; half a GiB."""


class Policy:
    """A Policy owns the model; everything that needs a forward pass goes through it.

    `adapter` holds what is trained. It is whole on every rank, also where `shard` shards the base over the ranks
    (`Ranks.shard`); every rank must then run equally many passes, forward and backward (`is_sharded`).

    layout: tree, or rows: then a batch is one rollout, which runs through the model's own forward pass
    """

    def __init__(
        self,
        base: PreTrainedModel,
        lora: LoraSection,
        *,
        attention: str,
        gradient_checkpointing: bool,
        layout: Literal["tree", "rows"] = "tree",
        offload_activations: bool = False,
        shard: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.autocast_dtype = base.dtype if base.dtype != torch.float32 else None
        self.layout = layout
        self._uses_flex = attention == "flex" and layout == "tree"
        self._offloads = offload_activations
        self.shape = ModelShape.of(base.config, rank=lora.r, targets=lora.target_modules)
        self._is_recurrent = reach_recurrent_layers(base)
        self._logit_scale = logit_scale_of(base) if layout == "tree" else logit_scale_of_rows(base)
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        self._whole = BaseModel(base) if shard is None else shard(BaseModel(base))
        self.device = next(base.parameters()).device
        self.is_sharded = isinstance(self._whole, FSDPModule)
        if gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            base.enable_input_require_grads()
        self.adapter = LoraAdapter(base, lora)
        self.model = self.adapter.model
        self.model.train()

    @classmethod
    def load(
        cls,
        model: ModelSection,
        lora: LoraSection,
        *,
        device: torch.device | str,
        layout: Layout | None = None,
        shard: Callable[[nn.Module], nn.Module] | None = None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> "Policy":
        """Load the base from disk or hub, and make a fresh adapter or load the one named by `lora.init_from`.

        layout: from `check_model`; None: chosen here, without regard to the length of sequences
        notify: told why `model.layout: auto` takes rows, and where `model.attention: auto` cannot take FlexAttention on
                a GPU

        A base that is sharded is loaded into the host's memory first: it need not fit the device.
        """
        if model.offload_activations and torch.device(device).type != "cuda":
            raise ConfigError("model.offload_activations: there is no GPU to take memory off; set it to false")
        if shard is not None and model.quantize != "none":
            raise ConfigError("model.quantize: nf4 weights are not sharded; set it to none, or launch without FSDP")
        if lora.init_from is not None:
            check_start(lora)  # before anything is loaded
        layout = layout or choose_layout(model)
        if layout.line:
            notify(layout.line)
        attention = choose_attention(model, torch.device(device), notify) if layout.name == "tree" else "sdpa"
        own_or_tree = tree_attention.ATTENTION if layout.name == "tree" else None
        base = load_base(
            model,
            device="cpu" if shard else device,
            attention=own_or_tree,
            on_one_rank=shard is not None,
        )
        check_rope(base, model)
        return cls(
            base,
            lora,
            attention=attention,
            layout=layout.name,
            gradient_checkpointing=model.gradient_checkpointing,
            offload_activations=model.offload_activations,
            shard=shard,
        )

    def token_logprobs(self, batch: PackedBatch, *, temperature: float) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropy at the batch's trained tokens, each (K,), by one forward pass over T tokens."""
        return self._inside_base(self._token_logprobs, batch, temperature)

    @contextlib.contextmanager
    def own_attention(self, *, longest: int) -> Iterator[None]:
        """Give the base its own attention inside, as in transformers (`row_logprobs`).

        Uses eager attention if its scores for `longest` tokens fit the memory, otherwise transformers' default, which
        is SDPA for most models.
        """
        base, before = self._base, str(self._base.config._attn_implementation)
        is_small = longest <= self._longest_eager
        base.set_attn_implementation("eager" if is_small else base.get_correct_attn_implementation(None))
        try:
            yield
        finally:
            base.set_attn_implementation(before)

    def take_rows(self) -> None:
        """Leave the tree: from here on every batch is one rollout, which runs through the model's own forward pass."""
        base = self._base
        base.set_attn_implementation(base.get_correct_attn_implementation(None))
        self.layout, self._uses_flex = "rows", False

    def take_own_logits(self) -> None:
        """Take the logits of rows from the model's own forward pass, whole, because its head does something more."""
        self._logit_scale = None

    @property
    def has_own_logits(self) -> bool:
        return self._logit_scale is None

    def longest_row(self, wanted: int) -> int:
        """Return how many tokens, at most `wanted`, a row may have so that `own_attention` has the memory for it."""
        has_sdpa = self._base.get_correct_attn_implementation(None) != "eager"
        return wanted if has_sdpa else min(wanted, self._longest_eager)

    @property
    def _longest_eager(self) -> int:
        return math.isqrt(MAX_EAGER_SCORES // max(1, num_heads(self._base.config)))

    def row_logprobs(self, batch: PackedBatch, *, temperature: float) -> tuple[Tensor, Tensor]:
        """Compute `token_logprobs` of a batch that is a single row the way transformers does.

        A policy that runs trees calls it inside `own_attention`. Nothing is chunked. The packed path is compared with
        this (packing_check).
        """
        return self._inside_base(self._row_logprobs, batch, temperature)

    def token_divergence(self, batch: PackedBatch, *, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return `token_logprobs` and KL(policy || teacher) over the vocabulary at the trained tokens, each (K,).

        `batch.teacher` holds the same tokens behind the prompts that the base without the adapter reads.
        """
        assert batch.teacher is not None
        with torch.no_grad(), self.reference():
            teacher = self._inside_base(self._head_inputs, batch.teacher, temperature)
        return self._inside_base(self._token_divergence, batch, teacher, temperature)

    def _inside_base(self, compute: Callable[..., Result], *arguments: Any) -> Result:
        result = self._whole(compute, *arguments)
        if isinstance(self._whole, FSDPModule) and not torch.is_grad_enabled():
            self._whole.reshard()  # embeddings and head: what no backward pass will free
        return result

    def _token_logprobs(self, batch: PackedBatch, temperature: float) -> tuple[Tensor, Tensor]:
        if self._logit_scale is None:
            return self._row_logprobs(batch, temperature)
        return token_logprobs(
            self._head_inputs(batch, temperature),
            self._head(),
            batch.input_ids[batch.trained],
            temperature=temperature,
            scale=self._logit_scale,
        )

    def _token_divergence(
        self, batch: PackedBatch, teacher: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = self._head_inputs(batch, temperature)
        if self._logit_scale is None:
            logprobs, entropy = of_whole_logits(inputs, batch.input_ids[batch.trained])
            return logprobs, entropy, (inputs.exp() * (inputs - teacher)).sum(dim=-1)
        ids = batch.input_ids[batch.trained]
        return token_divergence(inputs, teacher, self._head(), ids, temperature=temperature, scale=self._logit_scale)

    def _head_inputs(self, batch: PackedBatch, temperature: float) -> Tensor:
        """Return the hidden rows (K, H) that the head predicts the trained tokens from.

        Where the head is more than a factor and a softcap, these are the log-probs (K, V) that it gives.
        """
        if self._logit_scale is None:
            return self._row_log_softmax(batch, temperature)
        return self._hidden_rows(batch, batch.parent[batch.trained])

    def _row_logprobs(self, batch: PackedBatch, temperature: float) -> tuple[Tensor, Tensor]:
        return of_whole_logits(self._row_log_softmax(batch, temperature), batch.input_ids[batch.trained])

    def _row_log_softmax(self, batch: PackedBatch, temperature: float) -> Tensor:
        base, parents = self._base, batch.parent[batch.trained]
        input_ids = batch.input_ids[None, : max(1, batch.num_tokens - batch.num_padding)]
        with self._autocast(), self._offloading():
            if "logits_to_keep" in inspect.signature(base.forward).parameters:
                logits = base(input_ids=input_ids, use_cache=False, logits_to_keep=parents).logits[0]
            else:
                logits = base(input_ids=input_ids, use_cache=False).logits[0, parents]
        return torch.log_softmax(logits.float() / temperature, dim=-1)

    @torch.no_grad()
    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Return the log-probs at temperature 1 of token_ids[1:], as `RolloutEngine.score` does for the engine."""
        rollout = Rollout("probe", 0, prompt_ids=tuple(token_ids[:1]), prefix_ids=tuple(token_ids[1:]))
        batch = self.prepare([Group((rollout,), (0.0,), (1.0,))])
        return self.token_logprobs(batch, temperature=1.0)[0].tolist()

    @torch.no_grad()
    def reference_logprobs(self, batch: PackedBatch, *, temperature: float) -> Tensor:
        """Return the log-probs under the base at the batch's trained tokens, (K,)."""
        with self.reference():
            return self.token_logprobs(batch, temperature=temperature)[0]

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Make the policy its own reference inside: the base."""
        with self.model.disable_adapter():
            yield

    def prepare(self, groups: Sequence[Group]) -> PackedBatch:
        """Pack groups into one batch on this policy's device; of no groups, one of a single padding token.

        Raises ConfigError if a sequence is too long for the model, or for packing it with others.
        """
        length = bucket(sum(map(num_tokens, groups))) if self._uses_flex else 1  # flex is compiled for every length
        batch = pack(groups, pad_to=length)
        config, longest = self._base.config, int(batch.position.max()) + 1
        check_positions(config, str(self._base.name_or_path), longest=longest)
        if self.layout == "tree":
            check_fixed_rope(config, str(self._base.name_or_path), longest=longest)
        return batch.to(self.device)

    def _hidden_rows(self, batch: PackedBatch, rows: Tensor) -> Tensor:
        arguments: dict[str, Any] = {}
        if self.layout == "tree":
            arguments = {"position_ids": batch.position[None], **self._tree_layout(batch).arguments}
        with self._autocast(), self._offloading():
            output = self._base.get_decoder()(input_ids=batch.input_ids[None], use_cache=False, **arguments)
        return output.last_hidden_state[0, rows]

    def _tree_layout(self, batch: PackedBatch) -> TreeLayout:
        layout = (tree_attention.flex_layout if self._uses_flex else tree_attention.chain_layout)(batch)
        return replace(layout, recurrence=TreeRecurrence(batch)) if self._is_recurrent else layout

    def _head(self) -> Tensor:
        return cast(nn.Linear, self._base.get_output_embeddings()).weight

    @property
    def _base(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.model.get_base_model())

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def _offloading(self) -> contextlib.AbstractContextManager[object]:
        if not self._offloads:
            return contextlib.nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=self.device.type == "cuda")
