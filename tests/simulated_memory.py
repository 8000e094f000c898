"""The memory of an update without its numbers: torch's fake tensors, counted as they are made and freed."""

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import fields

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from trapo_lite.config import LoraSection
from trapo_lite.core.tree import PackedBatch
from trapo_lite.model import logprobs as head
from trapo_lite.model import tree_attention
from trapo_lite.model.policy import Policy
from trapo_lite.model.shape import meta_model


class Bytes(TorchDispatchMode):
    """Counts the storages that operations make while it is on: how many bytes there are, and the most there were.

    not_counted: tensors that are there already.
    """

    def __init__(self, not_counted: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._not_counted = [tensor.untyped_storage() for tensor in not_counted]
        self._known = {id(storage): 0 for storage in self._not_counted}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if (key := id(storage)) not in self._known:
            self._known[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._known.pop(key)


class _Flex(torch.autograd.Function):
    """What FlexAttention takes, gives and keeps, without its arithmetic: its kernels are for GPUs."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, lse = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, lse)
        return output

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def update_peak(config: PreTrainedConfig, lora: LoraSection, *, num_tokens: int, chunk: int) -> int:
    """Return the peak of forward and backward of one batch, all of its tokens trained, in bytes beyond what stays.

    What stays: base, adapter, its gradient. Gradient checkpointing, bfloat16 under autocast.
    chunk: logits held at once
    """
    with torch.device("meta"):
        policy = Policy(
            meta_model(config, attention=tree_attention.ATTENTION), lora, attention="sdpa", gradient_checkpointing=True
        )
    with FakeTensorMode(), _patched(chunk):
        for module in policy.model.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                if isinstance(tensor, torch.nn.Parameter):
                    empty = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
                    empty.grad = torch.empty_like(empty) if tensor.requires_grad else None
                setattr(module, name, empty)
        policy.device = torch.device("cpu")
        index = torch.empty(num_tokens, dtype=torch.long)
        columns = [field.name for field in fields(PackedBatch) if field.name not in ("num_padding", "old_logprobs")]
        batch = PackedBatch(**dict.fromkeys(columns, index), num_padding=0)
        gradients = [parameter.grad for parameter in policy.model.parameters() if parameter.grad is not None]
        with Bytes([*policy.model.parameters(), *policy.model.buffers(), *gradients]) as counted:
            hidden = policy._hidden_rows(batch, index)
            logprobs, entropy = head.token_logprobs(hidden, policy._head(), index)
            del hidden
            (logprobs.sum() + entropy.sum()).backward()
        return counted.peak


@contextlib.contextmanager
def _patched(chunk: int) -> Iterator[None]:
    layout = tree_attention.TreeLayout(lambda q, k, v, _scores: _Flex.apply(q, k, v), is_grouped=True)
    before = tree_attention.chain_layout, head.CHUNK_ELEMENTS["cpu"]
    tree_attention.chain_layout, head.CHUNK_ELEMENTS["cpu"] = (lambda _batch: layout), chunk
    try:
        yield
    finally:
        tree_attention.chain_layout, head.CHUNK_ELEMENTS["cpu"] = before
