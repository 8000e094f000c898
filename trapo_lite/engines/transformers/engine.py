"""Sample rollouts with plain transformers and PEFT, for small models and as the reference for the other engines."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from trapo_lite.config import ModelSection
from trapo_lite.core.errors import EngineError
from trapo_lite.engines.adapter_folder import read_servable
from trapo_lite.engines.base import Completion, SampleRequest, check_request, require_idle, require_newer
from trapo_lite.engines.parity import PEFT_PREFIX, checksum_of_pairs
from trapo_lite.engines.transformers.cache import RowCache, read_at_once
from trapo_lite.engines.transformers.merging import MergedAdapter
from trapo_lite.engines.transformers.sampling import draw, processed_logprobs
from trapo_lite.engines.transformers.served import attention_of, check_class, require_served
from trapo_lite.model.adapter_config import AdapterError
from trapo_lite.model.base import load_base
from trapo_lite.model.saved_adapter import load_by_name, read_tensors

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer


@dataclass
class Row:
    """A Row is one running sequence. `uniforms` holds the random number of every token that it may draw."""

    request: SampleRequest
    uniforms: Tensor
    adapter_version: int | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def finish_reason(self) -> Literal["stop", "length"] | None:
        if self.token_ids and self.token_ids[-1] in self.request.stop_ids:
            return "stop"
        return "length" if len(self.token_ids) == self.request.max_tokens else None

    @property
    def num_cached(self) -> int:
        """Return the number of tokens whose keys and values are in the cache: all but the last drawn."""
        return len(self.request.token_ids) + len(self.token_ids) - 1


class TransformersEngine:
    """Run rollouts with continuous batching: new requests join the running rows between two tokens.

    The engine loads its own copy of the base. The running rows share one right-aligned cache; missing columns on the
    left are masked.
    """

    def __init__(
        self,
        model_path: str,
        *,
        max_model_len: int,
        dtype: Literal["float32", "bfloat16"] = "float32",
        quantize: Literal["none", "nf4"] = "none",
        max_num_seqs: int = 256,
        config_overrides: dict[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.device = torch.device(device)
        self.dtype = getattr(torch, dtype)
        self.version: int | None = None
        self.scratch: Path | None = None
        self.publish_bytes = 0
        section = ModelSection(name=model_path, dtype=dtype, quantize=quantize, config_overrides=config_overrides or {})
        check_class(section)
        self._base: Any = load_base(section, device=self.device, attention=attention_of(section)).eval()
        self._peft: PeftModel | None = None
        self._merged: MergedAdapter | None = None
        self._quantize = quantize
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        self._cache: Any = None
        self._has_states = RowCache(self._base.config).has_states
        require_served(self)

    @property
    def model(self) -> Any:
        return self._base if self._peft is None else self._peft

    def publish(self, adapter_dir: Path, version: int) -> None:
        require_idle("publish", len(self._in_flight))
        require_newer(version, current=self.version)
        self.unmerge()
        with torch.random.fork_rng():  # PEFT draws initial weights before it loads; keeps the trainer's state
            self._load_adapter(Path(adapter_dir), version)
        self.version = version
        self.publish_bytes = sum(file.stat().st_size for file in Path(adapter_dir).iterdir() if file.is_file())

    def merge(self) -> float:
        require_idle("merge", len(self._in_flight))
        if self._peft is None:
            raise EngineError("merge: there is no adapter yet; publish one first")
        if self._quantize != "none":
            raise EngineError(f"merge: {self._quantize} weights take no adapter; set rollout.merge: never")
        if self._merged is None:
            self._merged = MergedAdapter(list(lora_layers(self._peft).values()))
        return self._merged.kept.share

    def unmerge(self) -> None:
        require_idle("unmerge", len(self._in_flight))
        if self._merged is not None:
            self._merged.restore()
        self._merged = None

    def submit(self, request: SampleRequest) -> None:
        check_request(request, max_model_len=self.max_model_len, in_flight=self._in_flight)
        generator = torch.Generator().manual_seed(request.seed)
        uniforms = torch.rand(request.max_tokens, generator=generator, dtype=torch.float64)
        self._waiting.append(Row(request, uniforms, self.version))

    def abort(self, request_id: str) -> None:
        self._waiting = deque(row for row in self._waiting if row.request.request_id != request_id)
        self._keep([row.request.request_id != request_id for row in self._rows])

    @torch.inference_mode()
    def poll(self) -> list[Completion]:
        """Draw one token for every running row. Waiting requests join first, as far as there is room."""
        newcomers = [self._waiting.popleft() for _ in range(min(self._num_free, len(self._waiting)))]
        if self._rows:
            self._decode()
        # The state of a recurrent layer would see padding: a bias makes it something else than zero.
        for batch in read_at_once(newcomers, lambda row: row.request.token_ids, equal_lengths=self._has_states):
            self._join(batch)
        done = [row.finish_reason is not None for row in self._rows]
        finished = [completion_of(row) for row, is_done in zip(self._rows, done, strict=True) if is_done]
        self._keep([not is_done for is_done in done])
        return finished

    @torch.inference_mode()
    def score(self, token_ids: Sequence[int]) -> list[float]:
        if len(token_ids) < 2:
            raise EngineError(f"score: found {len(token_ids)} tokens; give at least 2")
        ids = torch.tensor([list(token_ids)], device=self.device)
        logprobs = self.model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(dim=-1)
        return logprobs.gather(1, ids[0, 1:].unsqueeze(1)).squeeze(1).tolist()

    def adapter_checksum(self) -> str | None:
        return None if self._peft is None else checksum_of_pairs(active_pairs(self._peft))

    def reset_prefix_cache(self) -> None:
        """Do nothing, because no cache outlives its request."""

    def release(self) -> None:
        """Do nothing, because there is no cache without running requests."""

    def resume(self) -> None:
        """Do nothing, because `release` does nothing."""

    def close(self) -> None:
        self._rows, self._cache, self._peft, self._base = [], None, None, None
        self._waiting.clear()

    @property
    def _in_flight(self) -> list[str]:
        return [row.request.request_id for row in (*self._rows, *self._waiting)]

    @property
    def _num_free(self) -> int:
        return self.max_num_seqs - len(self._rows)

    def _load_adapter(self, adapter_dir: Path, version: int) -> None:
        from peft import PeftModel

        name, previous = f"version-{version}", f"version-{self.version}"
        saved = read_servable(adapter_dir)
        config = saved.to_peft()
        config.inference_mode = True
        try:
            tensors = read_tensors(saved)
            # PEFT copies bf16 adapters to float32 by default; engines compute in their base's type.
            if self._peft is None:
                self._peft = PeftModel(self._base, config, adapter_name=name, autocast_adapter_dtype=False)
            else:
                self._peft.add_adapter(name, config, autocast_adapter_dtype=False)
            load_by_name(self._peft, tensors, where=saved.where, adapter=name)
        except (AdapterError, ValueError) as error:  # ValueError: PEFT finds none of the layers in the base
            if self._peft is not None and name in self._peft.peft_config:
                self._peft.delete_adapter(name)
            raise EngineError(f"{error}; publish an adapter of this base") from None
        self._peft.set_adapter(name)
        if previous in self._peft.peft_config:
            self._peft.delete_adapter(previous)
        self._peft.eval()

    def _decode(self) -> None:
        """Feed every running row its last token and draw the next."""
        width = max(row.num_cached for row in self._rows)
        cached = torch.tensor([row.num_cached for row in self._rows], device=self.device)
        columns = torch.arange(width + 1, device=self.device)
        ids = torch.tensor([row.token_ids[-1:] for row in self._rows], device=self.device)
        mask = columns >= width - cached.unsqueeze(1)
        logits = self._last_logits(ids, self._cache, mask=mask, positions=cached.unsqueeze(1))
        self._draw(self._rows, logits)

    def _join(self, newcomers: list[Row]) -> None:
        """Read each prompt once, draw each row's first token, and add their caches to the running ones."""
        prompts = list(dict.fromkeys(row.request.token_ids for row in newcomers))
        row_of_prompt = {prompt: index for index, prompt in enumerate(prompts)}
        shared = torch.tensor([row_of_prompt[row.request.token_ids] for row in newcomers], device=self.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        width = int(lengths.max())
        ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        columns = torch.arange(width, device=self.device)
        offset = width - lengths.unsqueeze(1)
        cache = RowCache(self._base.config)
        positions = (columns - offset).clamp(min=0)
        logits = self._last_logits(
            torch.tensor(ids, device=self.device), cache, mask=columns >= offset, positions=positions
        )
        self._draw(newcomers, logits[shared])
        cache.select(shared, width=width)
        if self._rows:
            self._cache.append(cache)
        else:
            self._cache = cache
        self._rows += newcomers

    def _last_logits(self, ids: Tensor, cache: RowCache, *, mask: Tensor, positions: Tensor) -> Tensor:
        """Feed tokens (B, T) after those in the cache, which takes them up. Return the logits (B, V) of the last ones.

        mask: which columns a row has, (B, columns in the cache + T)
        """
        if cache.has_columns:
            inputs = {"past_key_values": cache, "attention_mask": mask.long(), "position_ids": positions}
        else:  # Mamba: it would multiply one token by the masks of all
            inputs = {"cache_params": cache}
        return self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **inputs).logits[:, -1]

    def _draw(self, rows: list[Row], logits: Tensor) -> None:
        requests = [row.request for row in rows]
        logprobs = processed_logprobs(
            logits,
            temperature=torch.tensor([request.temperature for request in requests], device=self.device),
            top_k=torch.tensor([request.top_k for request in requests], device=self.device),
            top_p=torch.tensor([request.top_p for request in requests], device=self.device),
        )
        uniform = torch.stack([row.uniforms[len(row.token_ids)] for row in rows]).to(self.device)
        tokens = draw(logprobs, uniform)
        chosen = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)
        for row, token, logprob in zip(rows, tokens.tolist(), chosen.tolist(), strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)

    def _keep(self, wanted: list[bool]) -> None:
        """Drop the other rows, and the cache columns that only they used."""
        if all(wanted):
            return
        self._rows = [row for row, is_wanted in zip(self._rows, wanted, strict=True) if is_wanted]
        if not self._rows:
            self._cache = None
            return
        index = torch.tensor([i for i, is_wanted in enumerate(wanted) if is_wanted], device=self.device)
        self._cache.select(index, width=max(row.num_cached for row in self._rows))


def completion_of(row: Row) -> Completion:
    assert row.finish_reason is not None
    return Completion(
        row.request.request_id, tuple(row.token_ids), tuple(row.logprobs), row.finish_reason, row.adapter_version
    )


def active_pairs(model: "PeftModel") -> dict[str, tuple[Tensor, Tensor]]:
    """Return (A, scaled B) by module name, from the layers that take part in the forward pass."""
    pairs = {}
    for name, layer in lora_layers(model).items():
        for adapter in layer.active_adapters:
            a, b = layer.lora_A[adapter].get_parameter("weight"), layer.lora_B[adapter].get_parameter("weight")
            pairs[name.removeprefix(PEFT_PREFIX)] = (a.detach(), b.detach() * layer.scaling[adapter])
    return pairs


def lora_layers(model: "PeftModel") -> dict[str, "LoraLayer"]:
    """Return the LoRA layers that take part in the forward pass, by module name."""
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {name: layer for name, layer in layers.items() if not layer.disable_adapters}
