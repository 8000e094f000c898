"""Windows, caps and sinks over the tree: chain by chain and by FlexAttention, against the definition."""

import random
from dataclasses import replace

import pytest
import torch
from builders import random_rollouts
from dense_attention import dense_layout, dense_mask
from transformers import LlamaConfig

from trapo_lite.config import AlgorithmSection
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.tree import PackedBatch, pack
from trapo_lite.model import tree_attention
from trapo_lite.model.shape import ModelShape
from trapo_lite.model.tree_attention import Scores, TreeLayout, chain_layout, flex_layout

SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])
SCORES = {
    "full": Scores(0.5),
    "window of 1": Scores(0.5, window=1),
    "window of 2": Scores(0.5, window=2),
    "window of 7": Scores(0.5, window=7),
    "window that never acts": Scores(0.5, window=1000),
    "cap": Scores(0.5, softcap=1.5),
    "sinks": Scores(0.5, sinks=SINKS),
    "all of them": Scores(0.5, window=5, softcap=1.5, sinks=SINKS),
}


def some_batch(seed: int) -> PackedBatch:
    rng, algorithm = random.Random(seed), AlgorithmSection().build()
    groups = [make_group(algorithm, random_rollouts(rng, problem_id=str(number))) for number in range(2)]
    return pack(groups, pad_to=300 if seed else None)


def results(layout: TreeLayout, scores: Scores, num_tokens: int, *, has_backward: bool = True) -> list[torch.Tensor]:
    """Return the output, and the gradients of queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, weight = (torch.randn(1, n, num_tokens, 8, generator=generator).double() for n in (4, 2, 2, 4))
    if not layout.is_grouped:
        key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    for tensor in (query, key, value):
        tensor.requires_grad_(has_backward)
    output = layout.attend(query, key, value, scores)
    if not has_backward:
        return [output]
    (output * weight).sum().backward()
    gradients = [tensor.grad for tensor in (query, key, value)]
    assert all(gradient is not None for gradient in gradients)
    return [output.detach(), *gradients]  # type: ignore[list-item]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("seed", range(3))
def test_chain_by_chain_is_the_definition(name: str, seed: int) -> None:
    batch = some_batch(seed)
    found = results(chain_layout(batch), SCORES[name], batch.num_tokens)
    expected = results(dense_layout(batch), SCORES[name], batch.num_tokens)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    for ours, repeated in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(ours, repeated.unflatten(1, (2, 2)).sum(dim=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_the_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward alone and not compiled: FlexAttention has no backward pass on the CPU, and compiling takes long."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    monkeypatch.setattr(tree_attention, "_compiled_flex_attention", lambda: flex_attention)
    monkeypatch.setattr(tree_attention, "_compiled_create_block_mask", lambda: create_block_mask)
    batch = some_batch(1)
    [found] = results(flex_layout(batch), SCORES[name], batch.num_tokens, has_backward=False)
    [expected] = results(dense_layout(batch), SCORES[name], batch.num_tokens, has_backward=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_each_term_changes_the_result() -> None:
    """Else the tests above could not fail."""
    batch = some_batch(0)
    plain, *others = (results(chain_layout(batch), scores, batch.num_tokens)[0] for scores in SCORES.values())
    changes = dict(zip([*SCORES][1:], ((other - plain).abs().max() for other in others), strict=True))
    assert changes.pop("window that never acts") == 0.0
    assert min(changes.values()) > 0.1, changes


@pytest.mark.parametrize("seed", range(2))
def test_operations_are_counted_for_the_tokens_in_the_window(seed: int) -> None:
    batch = some_batch(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 64}
    full = ModelShape.of(LlamaConfig(**sizes, num_hidden_layers=4), rank=2, targets="all-linear")
    window = 5
    hidden = int(dense_mask(batch).sum() - dense_mask(batch, window).sum())
    assert hidden > 0
    slides = replace(full, num_sliding=3, window=window)
    assert slides.batch_flop(batch) == full.batch_flop(batch) - 12 * full.attention_width * 3 * hidden
