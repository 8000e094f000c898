"""Compute log-probabilities and entropy from hidden rows, without ever holding (rows, vocabulary) logits (DESIGN 5)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    logprobs, entropies, _ = _TokenLogprobs.apply(hidden, head, token_ids, temperature, scale, rows, None)
    return logprobs, entropies


def token_divergence(
    hidden: Tensor,
    teacher: Tensor,
    head: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    scale: LogitScale = LogitScale(),
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `token_logprobs` and KL(pi(. | row) || p_T(. | row)) over the whole vocabulary.

    p_T has the logits that the same head gives for the rows of `teacher`. They are computed chunk by chunk too, and
    carry no gradient. A chunk has half as many rows, because the teacher's tables take as much memory as the policy's.

    Args:    teacher: (K, H), detached; the others as for `token_logprobs`.
    Returns: logprobs (K,), entropy (K,), divergence (K,) in nats.
    """
    rows = chunk_rows or max(1, CHUNK_ELEMENTS[head.device.type] // (2 * head.shape[0]))
    return _TokenLogprobs.apply(hidden, head, token_ids, temperature, scale, rows, teacher)


def _scaled_logits(hidden: Tensor, head: Tensor, temperature: float, scale: LogitScale) -> Tensor:
    products = hidden @ head.T
    return scale.apply_(products if products.dtype == torch.float64 else products.float()).div_(temperature)


class _TokenLogprobs(torch.autograd.Function):
    """It holds two float32 tables of (rows, V) at a time, forward and backward, and two more for a teacher."""

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        head: Tensor,
        token_ids: Tensor,
        temperature: float,
        scale: LogitScale,
        rows: int,
        teacher: Tensor | None,
    ):
        hidden = hidden.to(head.dtype)
        teacher = None if teacher is None else teacher.to(head.dtype)
        teacher_chunks = _chunks(teacher, rows, like=hidden)
        logprobs, entropies, normalisers, divergences, teacher_normalisers = [], [], [], [], []
        for chunk, ids, of_teacher in zip(hidden.split(rows), token_ids.split(rows), teacher_chunks, strict=True):
            logits = _scaled_logits(chunk, head, temperature, scale)
            top = logits.amax(dim=-1, keepdim=True)
            logits.sub_(top)
            weights = logits.exp()
            total = weights.sum(dim=-1)
            chosen = logits.gather(1, ids[:, None]).squeeze(1)
            logprobs.append(chosen - total.log())
            if of_teacher is not None:
                teacher_logits = _scaled_logits(of_teacher, head, temperature, scale)
                teacher_normaliser = teacher_logits.logsumexp(dim=-1)
                cross = teacher_normaliser - teacher_logits.mul_(weights).sum(dim=-1) / total  # -E_pi[log p_T]
                teacher_normalisers.append(teacher_normaliser)
                del teacher_logits
            entropies.append(total.log() - weights.mul_(logits).sum(dim=-1) / total)
            if of_teacher is not None:
                divergences.append(cross - entropies[-1])
            normalisers.append(top.squeeze(1) + total.log())
            del logits, weights  # before the next chunk's are made
        entropy = torch.cat(entropies)
        saved = [hidden, head, token_ids, entropy, torch.cat(normalisers)]
        divergence = None if teacher is None else torch.cat(divergences)
        if divergence is not None:
            saved += [teacher, torch.cat(teacher_normalisers), divergence]
        ctx.save_for_backward(*saved)
        ctx.temperature, ctx.scale, ctx.rows = temperature, scale, rows
        return torch.cat(logprobs), entropy, divergence

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor, grad_entropies: Tensor, grad_divergences: Tensor | None):
        """Return the gradient of `hidden`.

        d log p_t / d z_j = [j = t] - p_j,   d H / d z_j = -p_j (log p_j + H)   and
        d KL / d z_j = p_j (log p_j - log p_T,j - KL), with z the logits / temperature.
        """
        hidden, head, token_ids, entropies, normalisers, *of_teacher = ctx.saved_tensors
        result = torch.empty_like(hidden)
        columns = [hidden, token_ids, entropies, normalisers, grad_logprobs, grad_entropies, result]
        if of_teacher:
            columns += [*of_teacher, grad_divergences]
        for chunk, ids, entropy, normaliser, grad_logp, grad_entropy, out, *teacher in zip(
            *(column.split(ctx.rows) for column in columns), strict=True
        ):
            logits = _scaled_logits(chunk, head, ctx.temperature, ctx.scale)
            slope = None  # of the cap: 1 - tanh^2
            if ctx.scale.softcap is not None:
                slope = 1.0 - (logits * (ctx.temperature / ctx.scale.softcap)).square_()
            logp = logits.sub_(normaliser[:, None])
            grad = logp.exp()
            factor = None
            if teacher:
                teacher_hidden, teacher_normaliser, divergence, grad_divergence = teacher
                factor = _scaled_logits(teacher_hidden, head, ctx.temperature, ctx.scale)
                factor.sub_(teacher_normaliser[:, None]).neg_().add_(logp).sub_(divergence[:, None])
                factor.mul_(grad_divergence[:, None])
            logp.add_(entropy[:, None]).mul_(grad_entropy[:, None]).add_(grad_logp[:, None]).neg_()
            grad.mul_(logp if factor is None else logp.add_(factor))
            grad.scatter_add_(1, ids[:, None], grad_logp[:, None])
            if slope is not None:
                grad.mul_(slope)
            if ctx.scale.factor != 1.0:
                grad.mul_(ctx.scale.factor)
            out.copy_(grad.div_(ctx.temperature).to(head.dtype) @ head)
            del logits, logp, grad, slope, factor
        return result, None, None, None, None, None, None


def of_whole_logits(logp: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probs (K,) of the tokens and the entropies (K,), by whole log-probs (K, V)."""
    chosen = -nn.functional.nll_loss(logp, token_ids, reduction="none")
    return chosen, -(logp.exp() * logp).sum(dim=-1)


def _chunks(teacher: Tensor | None, rows: int, *, like: Tensor) -> Sequence[Tensor | None]:
    """Return the teacher's rows in chunks; without a teacher, as many times None as `like` has chunks."""
    if teacher is None:
        return [None] * len(like.split(rows))
    return teacher.split(rows)


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
