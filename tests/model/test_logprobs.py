"""Log-probs and entropy by chunks: the naive values, exact gradients, and never a full table of logits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from watched_head import watch_saved, watch_tables

from trapo_lite.model.logprobs import LogitScale, token_logprobs

ROWS, WIDTH, VOCAB = 7, 5, 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    head = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, head, torch.randint(VOCAB, (ROWS,), generator=generator)


def naive(
    hidden: Tensor, head: Tensor, token_ids: Tensor, temperature: float, factor: float = 1.0, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    logits = hidden @ head.T * factor
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    logp = torch.log_softmax(logits / temperature, dim=-1)
    return logp[torch.arange(len(token_ids)), token_ids], -(logp.exp() * logp).sum(dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
@pytest.mark.parametrize("chunk_rows", [None, 1, 3, 7, 100])
@pytest.mark.parametrize(("factor", "cap"), [(1.0, None), (0.125, None), (1.0, 1.5), (4.0, 1.5)])
def test_values_and_gradients_are_the_naive_ones(
    temperature: float, chunk_rows: int | None, factor: float, cap: float | None
) -> None:
    hidden, head, ids = inputs()
    up_logprobs, up_entropy = torch.randn(2, ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for compute in (
        lambda h: naive(h, head, ids, temperature, factor, cap),
        lambda h: token_logprobs(
            h, head, ids, temperature=temperature, scale=LogitScale(factor, cap), chunk_rows=chunk_rows
        ),
    ):
        leaf = hidden.clone().requires_grad_(True)
        logprobs, entropy = compute(leaf)
        (grad,) = torch.autograd.grad((logprobs * up_logprobs + entropy * up_entropy).sum(), leaf)
        results.append((logprobs, entropy, grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("which", [0, 1], ids=["logprobs", "entropy"])
def test_gradients_agree_with_finite_differences(which: int) -> None:
    hidden, head, ids = inputs()
    hidden.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda h: token_logprobs(h, head, ids, temperature=0.7, chunk_rows=2)[which], (hidden,)
    )


def test_a_bf16_head_gives_float32_results_and_gradients_in_the_hidden_rows_type() -> None:
    """Logits are computed in the head's type, as the engine computes them, and normalised in float32."""
    hidden, head, ids = inputs(torch.float32)
    head = head.bfloat16()
    leaf = hidden.clone().requires_grad_(True)
    logprobs, entropy = token_logprobs(leaf, head, ids, temperature=0.7)
    assert logprobs.dtype == entropy.dtype == torch.float32
    logits = (hidden.bfloat16() @ head.T).float() / 0.7
    logp = torch.log_softmax(logits, dim=-1)
    torch.testing.assert_close(logprobs, logp[torch.arange(ROWS), ids])
    (grad,) = torch.autograd.grad(logprobs.sum() + entropy.sum(), leaf)
    exact = hidden.double().requires_grad_(True)
    expected = naive(exact, head.double(), ids, 0.7)
    (exact_grad,) = torch.autograd.grad(expected[0].sum() + expected[1].sum(), exact)
    assert grad.dtype == torch.float32
    assert (grad.double() - exact_grad).norm() / exact_grad.norm() < 0.02  # bf16 keeps 8 bits


def test_the_full_table_of_logits_exists_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, ids = inputs(torch.float32)
    shapes = watch_tables(monkeypatch, chunk_elements=3 * VOCAB)
    hidden.requires_grad_(True)
    with watch_saved() as saved:
        logprobs, entropy = token_logprobs(hidden, head, ids)
    (logprobs.sum() + entropy.sum()).backward()
    assert shapes == [(3, VOCAB), (3, VOCAB), (1, VOCAB)] * 2  # forward, and again in backward
    assert sorted(saved) == sorted([(ROWS, WIDTH), (VOCAB, WIDTH), (ROWS,), (ROWS,), (ROWS,)])


def test_no_rows_is_no_error() -> None:
    hidden, head, ids = inputs(torch.float32)
    leaf = hidden[:0].clone().requires_grad_(True)
    logprobs, entropy = token_logprobs(leaf, head, ids[:0])
    assert logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    assert leaf.grad is not None and leaf.grad.shape == (0, WIDTH)


def test_nothing_received_is_changed() -> None:
    hidden, head, ids = inputs()
    before = hidden.clone(), head.clone(), ids.clone()
    leaf = hidden.requires_grad_(True)
    logprobs, entropy = token_logprobs(leaf, head, ids, temperature=0.5)
    (logprobs.sum() + entropy.sum()).backward()
    assert all(torch.equal(one, other) for one, other in zip((hidden.detach(), head, ids), before, strict=True))


@pytest.mark.long
def test_the_peak_is_two_tables_of_a_chunk() -> None:
    """2,000 tokens, a vocabulary of 152k: 64 MB a table, and no more of them than two at any moment."""
    script = Path(__file__).parents[2] / "benchmarks" / "train_step.py"
    done = subprocess.run(
        [sys.executable, str(script), "--head", "2048", "151936"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 100 < float(done.stdout) < 170
