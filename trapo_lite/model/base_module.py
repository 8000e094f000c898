"""Wrap the base in one module whose forward is whatever the policy computes with it."""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel


class BaseModel(nn.Module):
    """A BaseModel is the base as FSDP2 sees it: code that reads embeddings or head must run inside its forward.

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
