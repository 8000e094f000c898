"""Draw tokens from logits: temperature, top-k, top-p, and one uniform number per token."""

import torch
from torch import Tensor


def processed_logprobs(logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Return the log-probs (B, V) of the sampled distribution, in float32; -inf outside its support.

    logits (B, V); temperature, top_k (0: all) and top_p (B,). The order is vLLM's: temperature, then the top_k
    likeliest tokens, then, of the rest, the fewest likeliest that hold top_p of the mass.
    """
    logits = logits.float() / temperature.unsqueeze(1)
    if bool((top_k > 0).any()) or bool((top_p < 1).any()):
        logits = _restrict(logits, top_k=top_k, top_p=top_p)
    return logits.log_softmax(dim=-1)


def _restrict(logits: Tensor, *, top_k: Tensor, top_p: Tensor) -> Tensor:
    ordered, order = logits.sort(dim=-1, descending=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    keep = (rank < top_k.unsqueeze(1)) | (top_k == 0).unsqueeze(1)
    probs = ordered.masked_fill(~keep, -torch.inf).softmax(dim=-1)
    mass_before = probs.cumsum(dim=-1) - probs
    keep &= (mass_before < top_p.unsqueeze(1)) | (top_p >= 1).unsqueeze(1)
    keep[:, 0] = True
    return logits.masked_fill(~keep.scatter(1, order, keep), -torch.inf)


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """Draw tokens (B,) by inverting the cumulative distribution at `uniform` (B,) in [0, 1), in float64.

    A row's token depends only on its own logits and number, not on other rows.
    """
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    target = uniform.double() * cumulative[:, -1]
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)
