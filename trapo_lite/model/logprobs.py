"""Compute log-probabilities and entropy from hidden rows, without ever holding (rows, vocabulary) logits (DESIGN 5)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 16_000_000, "cuda": 64_000_000}
"""Logits held at once, by type of device: 64 and 256 MB in float32.

On a GPU every chunk reads the whole head, so a chunk needs some 400 rows of a vocabulary of 152,000 for its matrix
product, not that read, to take the time.
"""


@dataclass(frozen=True)
class LogitScale:
    """A LogitScale says what a model does to hidden @ head^T: times `factor`, then bounded smoothly by `softcap`.

    softcap: a logit z becomes softcap * tanh(z / softcap); None: it stays z
    """

    factor: float = 1.0
    softcap: float | None = None

    def apply_(self, products: Tensor) -> Tensor:
        """Turn hidden @ head^T into the model's logits, in place."""
        if self.factor != 1.0:
            products.mul_(self.factor)
        return products if self.softcap is None else products.div_(self.softcap).tanh_().mul_(self.softcap)


def token_logprobs(
    hidden: Tensor,
    head: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    scale: LogitScale = LogitScale(),
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log pi(token | row) and the entropy of pi(. | row), for logits that `scale` makes of hidden @ head^T.

    The logits are divided by the temperature. They are computed chunk by chunk, and again in the backward pass. The
    head is frozen: gradients flow into `hidden` only, from both outputs.

    Args:    hidden: (K, H).   head: (V, H).   token_ids: (K,).
    Returns: logprobs (K,), entropy (K,) in nats, float32 (float64 for float64 input).
    """
    rows = chunk_rows or max(1, CHUNK_ELEMENTS[head.device.type] // head.shape[0])
    return _TokenLogprobs.apply(hidden, head, token_ids, temperature, scale, rows)


def _scaled_logits(hidden: Tensor, head: Tensor, temperature: float, scale: LogitScale) -> Tensor:
    products = hidden @ head.T
    return scale.apply_(products if products.dtype == torch.float64 else products.float()).div_(temperature)


class _TokenLogprobs(torch.autograd.Function):
    """It holds two float32 tables of (rows, V) at a time, forward and backward; the rest is done in place."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, token_ids: Tensor, temperature: float, scale: LogitScale, rows: int):
        hidden = hidden.to(head.dtype)
        logprobs, entropies, normalisers = [], [], []
        for chunk, ids in zip(hidden.split(rows), token_ids.split(rows), strict=True):
            logits = _scaled_logits(chunk, head, temperature, scale)
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
        ctx.temperature, ctx.scale, ctx.rows = temperature, scale, rows
        return torch.cat(logprobs), torch.cat(entropies)

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor, grad_entropies: Tensor):
        """Return the gradient of `hidden`.

        d log p_t / d z_j = [j = t] - p_j   and   d H / d z_j = -p_j (log p_j + H), with z the logits / temperature.
        """
        hidden, head, token_ids, entropies, normalisers = ctx.saved_tensors
        result = torch.empty_like(hidden)
        columns = (hidden, token_ids, entropies, normalisers, grad_logprobs, grad_entropies, result)
        for chunk, ids, entropy, normaliser, grad_logp, grad_entropy, out in zip(
            *(column.split(ctx.rows) for column in columns), strict=True
        ):
            logits = _scaled_logits(chunk, head, ctx.temperature, ctx.scale)
            slope = None  # of the cap: 1 - tanh^2
            if ctx.scale.softcap is not None:
                slope = 1.0 - (logits * (ctx.temperature / ctx.scale.softcap)).square_()
            logp = logits.sub_(normaliser[:, None])
            grad = logp.exp()
            grad.mul_(logp.add_(entropy[:, None]).mul_(grad_entropy[:, None]).add_(grad_logp[:, None]).neg_())
            grad.scatter_add_(1, ids[:, None], grad_logp[:, None])
            if slope is not None:
                grad.mul_(slope)
            if ctx.scale.factor != 1.0:
                grad.mul_(ctx.scale.factor)
            out.copy_(grad.div_(ctx.temperature).to(head.dtype) @ head)
            del logits, logp, grad, slope
        return result, None, None, None, None, None


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
