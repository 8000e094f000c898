"""An adapter in the base's own weights: one rounding, and every bit of the base afterwards."""

import pytest
import torch
from torch import Tensor

from trapo_lite.engines import merging
from trapo_lite.engines.merging import Kept, MergeError, Update, fingerprint, merge, restore

DTYPES = [torch.float32, torch.bfloat16]


def weight_and_update(dtype: torch.dtype, *, scale: float, rank: int = 8) -> tuple[Tensor, Update]:
    """W of std 0.02 and an update of about `scale` times that."""
    generator = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(300, 200, generator=generator)).to(dtype)
    a = torch.randn(rank, 200, generator=generator).to(dtype)
    b = (0.02 * scale / rank**0.5 * torch.randn(300, rank, generator=generator)).to(dtype)
    return weight, Update(a, b)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_weight_is_the_float32_sum_rounded_once(dtype: torch.dtype, scale: float) -> None:
    weight, update = weight_and_update(dtype, scale=scale)
    expected = (weight.float() + update.b.float() @ update.a.float()).to(dtype)
    merge(weight, update)
    torch.testing.assert_close(weight, expected, rtol=torch.finfo(dtype).eps, atol=1e-9)
    assert weight.eq(expected).float().mean() > 0.999  # the product may be summed in another order in chunks


@pytest.mark.parametrize("chunk", [2**22, 1000])
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_comes_back_after_many_merges(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, scale: float, chunk: int
) -> None:
    monkeypatch.setattr(merging, "CHUNK_ELEMENTS", chunk)
    weight, update = weight_and_update(dtype, scale=scale)
    weight[0, :4] = torch.tensor([0.0, -0.0, 1e-30, -1e30])  # -0.0 equals 0.0 and is not the same bits
    before = weight.clone()
    for _ in range(3):
        undo, _ = merge(weight, update)
        assert not torch.equal(weight, before)
        restore(weight, update, undo)
        assert torch.equal(weight.view(torch.uint8), before.view(torch.uint8))


def test_without_the_kept_elements_bits_would_be_lost() -> None:
    weight, update = weight_and_update(torch.bfloat16, scale=1e-2)
    before = weight.clone()
    undo, _ = merge(weight, update)
    naive = (weight.float() - update.rows(0, len(weight))).to(torch.bfloat16)
    wrong = naive.ne(before)
    assert 0 < wrong.sum() == len(undo.positions) < 0.05 * weight.numel()
    assert set(undo.positions.tolist()) == set(wrong.flatten().nonzero().flatten().tolist())


def test_a_base_that_does_not_come_back_is_an_error() -> None:
    weight, update = weight_and_update(torch.float32, scale=1e-2)
    undo, _ = merge(weight, update)
    with pytest.raises(MergeError, match="bit for bit"):
        restore(weight, Update(update.a, update.b * 1.001), undo)


@pytest.mark.parametrize(
    ("dtype", "scale", "low", "high"),
    [
        (torch.float32, 1e-4, 0.9999, 1.0001),
        (torch.bfloat16, 1.0, 0.999, 1.001),
        (torch.bfloat16, 1e-4, 0.0, 0.3),  # nearest rounding deletes most of so small an update
    ],
)
def test_the_share_that_rounding_leaves(dtype: torch.dtype, scale: float, low: float, high: float) -> None:
    weight, update = weight_and_update(dtype, scale=scale)
    before, change = weight.double(), (update.b.float() @ update.a.float()).double()
    _, kept = merge(weight, update)
    expected = ((weight.double() - before) * change).sum() / change.square().sum()
    assert low < kept.share < high
    assert kept.share == pytest.approx(expected.item(), abs=1e-5)


def test_nothing_to_keep_is_all_kept() -> None:
    weight, update = weight_and_update(torch.bfloat16, scale=0.0)
    before = weight.clone()
    undo, kept = merge(weight, update)
    assert torch.equal(weight, before) and len(undo.positions) == 0
    assert (kept + Kept(1.0, 2.0)).share == 0.5 and kept.share == 1.0


def test_the_fingerprint_sees_one_bit_and_errors_that_cancel_out() -> None:
    weight = torch.randn(50, 50)
    one_bit, opposite, swapped = (weight.clone() for _ in range(3))
    one_bit.view(torch.int32)[7, 7] ^= 1
    opposite.view(torch.int32)[3, 3] += 1
    opposite.view(torch.int32)[4, 9] -= 1
    swapped[[5, 6]] = swapped[[6, 5]]
    prints = [fingerprint(other) for other in (weight, one_bit, opposite, swapped)]
    assert len(set(prints)) == 4 and fingerprint(weight.clone()) == prints[0]
