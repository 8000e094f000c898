"""KL to a teacher over the vocabulary, by chunks: the direct values in float64, exact gradients, no full table."""

import pytest
import torch
from torch import Tensor
from watched_head import watch_saved, watch_tables

from trapo_lite.model.logprobs import LogitScale, token_divergence, token_logprobs

ROWS, WIDTH, VOCAB = 7, 5, 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(n, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for n in (ROWS, ROWS, VOCAB)]
    return (*made, torch.randint(VOCAB, (ROWS,), generator=generator))


def direct(
    hidden: Tensor, teacher: Tensor, head: Tensor, ids: Tensor, temperature: float, factor: float, cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    def log_softmax(rows: Tensor) -> Tensor:
        logits = rows @ head.T * factor
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        return torch.log_softmax(logits / temperature, dim=-1)

    logp, log_teacher = log_softmax(hidden), log_softmax(teacher)
    entropy = -(logp.exp() * logp).sum(dim=-1)
    return logp[torch.arange(len(ids)), ids], entropy, (logp.exp() * (logp - log_teacher)).sum(dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_rows", [None, 1, 3, 100])
@pytest.mark.parametrize(("factor", "cap"), [(1.0, None), (0.125, None), (1.0, 1.5), (4.0, 1.5)])
def test_values_and_gradients_are_the_direct_ones(
    temperature: float, chunk_rows: int | None, factor: float, cap: float | None
) -> None:
    hidden, teacher, head, ids = inputs()
    up = torch.randn(3, ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for compute in (
        lambda h: direct(h, teacher, head, ids, temperature, factor, cap),
        lambda h: token_divergence(
            h, teacher, head, ids, temperature=temperature, scale=LogitScale(factor, cap), chunk_rows=chunk_rows
        ),
    ):
        leaf = hidden.clone().requires_grad_(True)
        values = compute(leaf)
        sums = [(weights * value).sum() for weights, value in zip(up, values, strict=True)]
        grads = [torch.autograd.grad(each, leaf, retain_graph=True)[0] for each in sums]
        results.append((*values, *grads))
    torch.testing.assert_close(results[1], results[0])
    assert (results[0][2] > 0).all()


def test_the_gradient_of_the_divergence_agrees_with_finite_differences() -> None:
    hidden, teacher, head, ids = inputs()
    hidden.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda h: token_divergence(h, teacher, head, ids, temperature=0.7, scale=LogitScale(2.0, 3.0), chunk_rows=2)[2],
        (hidden,),
    )


def test_a_teacher_that_is_the_policy_has_no_divergence_and_no_pull() -> None:
    hidden, _, head, ids = inputs(torch.float32)
    leaf = hidden.clone().requires_grad_(True)
    divergence = token_divergence(leaf, hidden, head, ids)[2]
    divergence.sum().backward()
    torch.testing.assert_close(divergence, torch.zeros(ROWS), rtol=0, atol=1e-6)
    torch.testing.assert_close(leaf.grad, torch.zeros(ROWS, WIDTH), rtol=0, atol=1e-6)


def test_log_probs_and_entropy_are_those_without_a_teacher() -> None:
    hidden, teacher, head, ids = inputs(torch.float32)
    torch.testing.assert_close(token_divergence(hidden, teacher, head, ids)[:2], token_logprobs(hidden, head, ids))


def test_rows_in_float32_fit_a_head_in_bfloat16() -> None:
    hidden, teacher, head, ids = inputs(torch.float32)
    divergence = token_divergence(hidden, teacher, head.bfloat16(), ids)[2]
    expected = direct(hidden.double(), teacher.double(), head.double(), ids, 1.0, 1.0, None)[2]
    assert divergence.dtype == torch.float32
    assert (divergence.double() - expected).norm() / expected.norm() < 0.05  # bfloat16 keeps 8 bits


def test_a_chunk_has_half_as_many_rows_and_no_table_of_all_rows_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, teacher, head, ids = inputs(torch.float32)
    shapes = watch_tables(monkeypatch, chunk_elements=6 * VOCAB)
    hidden.requires_grad_(True)
    with watch_saved() as saved:
        divergence = token_divergence(hidden, teacher, head, ids)[2]
    divergence.sum().backward()
    assert shapes == [(3, VOCAB)] * 4 + [(1, VOCAB)] * 2 + [(3, VOCAB)] * 4 + [(1, VOCAB)] * 2
    assert sorted(saved) == sorted([(ROWS, WIDTH), (ROWS, WIDTH), (VOCAB, WIDTH), *[(ROWS,)] * 5])
