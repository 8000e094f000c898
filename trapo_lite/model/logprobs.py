"""Log-probabilities and entropy from hidden rows, without ever holding (rows, vocabulary) logits (DESIGN 5)."""

import math

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 16_000_000, "cuda": 64_000_000}
"""Logits held at once, by type of device: 64 and 256 MB in float32.

On a GPU every chunk reads the whole head, so a chunk needs some 400 rows of a vocabulary of 152,000 for its matrix
product, not that read, to take the time.
"""


def token_logprobs(
    hidden: Tensor, head: Tensor, token_ids: Tensor, *, temperature: float = 1.0, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return log pi(token | row) and the entropy of pi(. | row), for logits hidden @ head^T / temperature.

    Computed chunk by chunk; the backward pass recomputes each chunk's logits. The head is frozen: gradients flow into
    `hidden` only, from both outputs.

    Args:    hidden: (K, H).   head: (V, H).   token_ids: (K,).
    Returns: logprobs (K,), entropy (K,) in nats, float32 (float64 for float64 input).
    """
    rows = chunk_rows or max(1, CHUNK_ELEMENTS[head.device.type] // head.shape[0])
    return _TokenLogprobs.apply(hidden, head, token_ids, temperature, rows)


def _scaled_logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    logits = hidden @ head.T
    return (logits if logits.dtype == torch.float64 else logits.float()).div_(temperature)


class _TokenLogprobs(torch.autograd.Function):
    """Two float32 tables of (rows, V) at a time, forward and backward: everything else is done in place."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, token_ids: Tensor, temperature: float, rows: int):
        hidden = hidden.to(head.dtype)
        logprobs, entropies, normalisers = [], [], []
        for chunk, ids in zip(hidden.split(rows), token_ids.split(rows), strict=True):
            logits = _scaled_logits(chunk, head, temperature)
            top = logits.amax(dim=-1, keepdim=True)
            logits.sub_(top)
            weights = logits.exp()
            total = weights.sum(dim=-1)
            chosen = logits.gather(1, ids[:, None]).squeeze(1)
            logprobs.append(chosen - total.log())
            entropies.append(total.log() - weights.mul_(logits).sum(dim=-1) / total)
            normalisers.append(top.squeeze(1) + total.log())
            del logits, weights  # before the next chunk's are made
        ctx.save_for_backward(hidden, head, token_ids, torch.cat(entropies), torch.cat(normalisers))
        ctx.temperature, ctx.rows = temperature, rows
        return torch.cat(logprobs), torch.cat(entropies)

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor, grad_entropies: Tensor):
        """Return the gradient of `hidden`.

        d log p_t / d z_j = [j = t] - p_j   and   d H / d z_j = -p_j (log p_j + H), with z the scaled logits.
        """
        hidden, head, token_ids, entropies, normalisers = ctx.saved_tensors
        result = torch.empty_like(hidden)
        columns = (hidden, token_ids, entropies, normalisers, grad_logprobs, grad_entropies, result)
        for chunk, ids, entropy, normaliser, grad_logp, grad_entropy, out in zip(
            *(column.split(ctx.rows) for column in columns), strict=True
        ):
            logp = _scaled_logits(chunk, head, ctx.temperature).sub_(normaliser[:, None])
            grad = logp.exp()
            grad.mul_(logp.add_(entropy[:, None]).mul_(grad_entropy[:, None]).add_(grad_logp[:, None]).neg_())
            grad.scatter_add_(1, ids[:, None], grad_logp[:, None])
            out.copy_(grad.div_(ctx.temperature).to(head.dtype) @ head)
            del logp, grad
        return result, None, None, None, None


def probe_sequences(*, vocab_size: int, num_tokens: int, max_length: int, seed: int = 0) -> list[list[int]]:
    """Return fixed random token sequences whose scores are together `num_tokens` log-probs or a few more.

    max_length: what the engine can hold; vLLM scores a sequence by drawing one token more, so each stays one below.

    >>> [len(ids) for ids in probe_sequences(vocab_size=10, num_tokens=512, max_length=200)]
    [172, 172, 172]
    """
    num_sequences = math.ceil(num_tokens / (max_length - 2))
    length = math.ceil(num_tokens / num_sequences) + 1  # the first token of a sequence has no score
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (num_sequences, length), generator=generator).tolist()
