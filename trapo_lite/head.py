"""Log-probabilities and entropy from hidden rows, without ever holding (rows, vocabulary) logits (DESIGN 5)."""

import torch
from torch import Tensor

CHUNK_ELEMENTS = 16_000_000  # logits held at once: 64 MB in float32


def token_logprobs(
    hidden: Tensor, head: Tensor, token_ids: Tensor, *, temperature: float = 1.0, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """log pi(token | row) and the entropy of pi(. | row), for logits hidden @ head^T / temperature.

    Computed chunk by chunk; the backward pass recomputes each chunk's logits. The head is frozen: gradients flow into
    `hidden` only, from both outputs.

    Args:    hidden: (K, H).   head: (V, H).   token_ids: (K,).
    Returns: logprobs (K,), entropy (K,) in nats, float32 (float64 for float64 input).
    """
    rows = chunk_rows or max(1, CHUNK_ELEMENTS // head.shape[0])
    return _TokenLogprobs.apply(hidden, head, token_ids, temperature, rows)


def _scaled_logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    logits = hidden @ head.T
    return (logits if logits.dtype == torch.float64 else logits.float()).div_(temperature)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, token_ids: Tensor, temperature: float, rows: int):
        hidden = hidden.to(head.dtype)
        logprobs, entropies = [], []
        for chunk, ids in zip(hidden.split(rows), token_ids.split(rows), strict=True):
            logp = torch.log_softmax(_scaled_logits(chunk, head, temperature), dim=-1)
            logprobs.append(logp.gather(1, ids[:, None]).squeeze(1))
            entropies.append(-(logp.exp() * logp).sum(dim=-1))
        ctx.save_for_backward(hidden, head, token_ids, torch.cat(entropies))
        ctx.temperature, ctx.rows = temperature, rows
        return torch.cat(logprobs), torch.cat(entropies)

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor, grad_entropies: Tensor):
        """d log p_t / d z_j = [j = t] - p_j   and   d H / d z_j = -p_j (log p_j + H), with z the scaled logits."""
        hidden, head, token_ids, entropies = ctx.saved_tensors
        grads = []
        columns = (hidden, token_ids, entropies, grad_logprobs, grad_entropies)
        for chunk, ids, entropy, grad_logp, grad_entropy in zip(*(c.split(ctx.rows) for c in columns), strict=True):
            logp = torch.log_softmax(_scaled_logits(chunk, head, ctx.temperature), dim=-1)
            grad = logp.exp().mul_(-(grad_logp[:, None] + grad_entropy[:, None] * (logp + entropy[:, None])))
            grad.scatter_add_(1, ids[:, None], grad_logp[:, None])
            grads.append((grad.div_(ctx.temperature).to(head.dtype) @ head).to(chunk.dtype))
        return torch.cat(grads), None, None, None, None
