"""The policy: one frozen base, one LoRA adapter; the reference is the same weights with the adapter disabled."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from trapo_lite.config import LoraSection, ModelSection
from trapo_lite.core.batching import bucket, num_tokens
from trapo_lite.core.errors import ConfigError, ModelError
from trapo_lite.core.tree import PackedBatch, pack
from trapo_lite.core.types import Group, Rollout, Verdict
from trapo_lite.model import tree_attention
from trapo_lite.model.adapter import LoraAdapter
from trapo_lite.model.base import check_positions, check_rope, load_base, model_config
from trapo_lite.model.logprobs import token_logprobs
from trapo_lite.model.packable import require_packable
from trapo_lite.model.saved_adapter import check_start
from trapo_lite.model.shape import ModelShape, head_size
from trapo_lite.run.device import fits_flex_attention

MAX_EAGER_SCORES = 2**27
"""Of one layer's attention: entries of the matrix that eager attention makes, of which it keeps several; half a GiB."""


class BaseModel(nn.Module):
    """A BaseModel is the base as FSDP2 sees it: what reads weights outside the decoder's layers runs in its forward.

    FSDP2 gathers a module's weights around its forward. The decoder's layers have theirs; embeddings and head, which
    the chunked log-probs read without the model's own forward, are gathered around this one (docs/design.md 6).
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        self.base = base
        self._no_split_modules = base._no_split_modules  # Accelerate shards each of these by itself

    def forward(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        return compute(*arguments)

    def tie_weights(self) -> None:
        self.base.tie_weights()


class Policy:
    """A Policy owns the model; everything that needs a forward pass goes through it.

    `adapter` holds what is trained. It is whole on every rank, also where `shard` shards the base over the ranks
    (`Ranks.shard`); every rank must then run equally many passes, forward and backward (`is_sharded`).
    """

    def __init__(
        self,
        base: PreTrainedModel,
        lora: LoraSection,
        *,
        attention: str,
        gradient_checkpointing: bool,
        offload_activations: bool = False,
        shard: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.autocast_dtype = base.dtype if base.dtype != torch.float32 else None
        self._uses_flex = attention == "flex"
        self._offloads = offload_activations
        self.shape = ModelShape.of(base.config, rank=lora.r, targets=lora.target_modules)
        if getattr(base.get_output_embeddings(), "bias", None) is not None:
            raise ModelError("model.name: its output layer has a bias, which is not computed here; take another model")
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
        shard: Callable[[nn.Module], nn.Module] | None = None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> "Policy":
        """Load the base from disk or hub, and make a fresh adapter or load the one named by `lora.init_from`.

        notify: told where `model.attention: auto` cannot take FlexAttention on a GPU.

        A base that is sharded is loaded into the host's memory first: it need not fit the device.
        """
        attention = _choose_attention(model, torch.device(device), notify)
        if model.offload_activations and torch.device(device).type != "cuda":
            raise ConfigError("model.offload_activations: there is no GPU to take memory off; set it to false")
        if shard is not None and model.quantize != "none":
            raise ConfigError("model.quantize: nf4 weights are not sharded; set it to none, or launch without FSDP")
        if lora.init_from is not None:
            check_start(lora)  # before anything is loaded
        require_packable(model_config(model))
        base = load_base(
            model, device="cpu" if shard else device, attention=tree_attention.ATTENTION, on_one_rank=shard is not None
        )
        check_rope(base, model)
        return cls(
            base,
            lora,
            attention=attention,
            gradient_checkpointing=model.gradient_checkpointing,
            offload_activations=model.offload_activations,
            shard=shard,
        )

    def token_logprobs(self, batch: PackedBatch, *, temperature: float) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropy at the batch's trained tokens, each (K,), by one forward pass over T tokens."""
        return self._inside_base(self._token_logprobs, batch, temperature)

    @contextlib.contextmanager
    def own_attention(self, *, longest: int) -> Iterator[None]:
        """Give the base its own attention inside, in the place of the packed one (`row_logprobs`).

        Eager attention, which is the definition, if there is memory for the scores of `longest` tokens; else
        transformers' default, SDPA for most models.
        """
        base = self._base
        is_small = longest <= self._longest_eager
        base.set_attn_implementation("eager" if is_small else base.get_correct_attn_implementation(None))
        try:
            yield
        finally:
            base.set_attn_implementation(tree_attention.ATTENTION)

    def longest_row(self, wanted: int) -> int:
        """Return how many tokens, at most `wanted`, a row may have so that `own_attention` has the memory for it."""
        has_sdpa = self._base.get_correct_attn_implementation(None) != "eager"
        return wanted if has_sdpa else min(wanted, self._longest_eager)

    @property
    def _longest_eager(self) -> int:
        return math.isqrt(MAX_EAGER_SCORES // self._base.config.num_attention_heads)

    def row_logprobs(self, batch: PackedBatch, *, temperature: float) -> tuple[Tensor, Tensor]:
        """Compute `token_logprobs` of a batch that is a single row the way transformers does.

        Called inside `own_attention`. Nothing is chunked. The packed path is compared with this (packing_check).
        """
        return self._inside_base(self._row_logprobs, batch, temperature)

    def _inside_base(self, compute: Callable[..., tuple[Tensor, Tensor]], *arguments: Any) -> tuple[Tensor, Tensor]:
        result = self._whole(compute, *arguments)
        if isinstance(self._whole, FSDPModule) and not torch.is_grad_enabled():
            self._whole.reshard()  # embeddings and head: what no backward pass will free
        return result

    def _token_logprobs(self, batch: PackedBatch, temperature: float) -> tuple[Tensor, Tensor]:
        rows = batch.trained
        hidden = self._hidden_rows(batch, batch.parent[rows])
        return token_logprobs(hidden, self._head(), batch.input_ids[rows], temperature=temperature)

    def _row_logprobs(self, batch: PackedBatch, temperature: float) -> tuple[Tensor, Tensor]:
        base, rows = self._base, batch.trained
        input_ids = batch.input_ids[None, : batch.num_tokens - batch.num_padding]
        with self._autocast(), self._offloading():
            logits = base(input_ids=input_ids, use_cache=False, logits_to_keep=batch.parent[rows]).logits[0]
        logp = torch.log_softmax(logits.float() / temperature, dim=-1)
        chosen = -nn.functional.nll_loss(logp, batch.input_ids[rows], reduction="none")
        return chosen, -(logp.exp() * logp).sum(dim=-1)

    @torch.no_grad()
    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Return the log-probs at temperature 1 of token_ids[1:], as `RolloutEngine.score` does for the engine."""
        rollout = Rollout(
            problem_id="probe",
            slot=0,
            prompt_ids=tuple(token_ids[:1]),
            prefix_ids=tuple(token_ids[1:]),
            completion_ids=(),
            completion_logprobs=(),
            finish_reason="expert",
            trace=None,
            train_prefix=True,
            adapter_version=None,
            verdict=Verdict("wrong"),
            reward=0.0,
        )
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
        with self.adapter.disabled():
            yield

    def prepare(self, groups: Sequence[Group]) -> PackedBatch:
        """Pack groups into one batch on this policy's device; of no groups, one of a single padding token.

        ConfigError for a sequence that is too long for the model, or for packing it with others (`check_positions`).
        """
        length = bucket(sum(map(num_tokens, groups))) if self._uses_flex else 1  # flex is compiled for every length
        batch = pack(groups, pad_to=length)
        check_positions(self._base.config, str(self._base.name_or_path), longest=int(batch.position.max()) + 1)
        return batch.to(self.device)

    def _hidden_rows(self, batch: PackedBatch, rows: Tensor) -> Tensor:
        make_layout = tree_attention.flex_layout if self._uses_flex else tree_attention.segment_layout
        with self._autocast(), self._offloading():
            output = self._base.get_decoder()(
                input_ids=batch.input_ids[None],
                position_ids=batch.position[None],
                use_cache=False,
                tree_layout=make_layout(batch),
            )
        return output.last_hidden_state[0, rows]

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


def _choose_attention(model: ModelSection, device: torch.device, notify: Callable[[str], None]) -> str:
    """Return flex or sdpa; ConfigError where FlexAttention is asked for and cannot run."""
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
