"""The losses per token: values and gradients derived here, and the wrong variants that these tests must reject."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from trapo_lite.core.losses import (
    chord_phi,
    cispo,
    clipped_policy_gradient,
    dft,
    k3,
    luffy_shaped,
    nll,
    truncated_importance_weight,
    trust_region_nll,
)

ALPHA = 0.1
P = torch.tensor([1e-6, 0.001, 0.01, 0.05, 0.099, 0.1, 0.101, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)

trapo = partial(trust_region_nll, alpha=ALPHA)


def gradient(loss: Callable[[Tensor], Tensor], p: Tensor = P) -> Tensor:
    """d loss / d log p at each p."""
    logprobs = p.log().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss(logprobs).sum(), logprobs)
    return grad


def check_trust_region_gradient(loss: Callable[[Tensor], Tensor]) -> None:
    torch.testing.assert_close(gradient(loss), -(P / ALPHA).clamp(max=1.0))


def test_the_trust_region_pulls_with_min_one_p_over_alpha() -> None:
    check_trust_region_gradient(trapo)


def official(logprobs: Tensor) -> Tensor:
    """METHOD 4.1: the official code's expression, same gradient, another value."""
    p = logprobs.exp()
    return -p / p.detach().clamp(min=ALPHA)


def test_the_official_expression_has_the_same_gradient() -> None:
    check_trust_region_gradient(official)


@pytest.mark.parametrize(
    "wrong",
    [
        nll,
        dft,
        lambda lp: -trapo(lp),
        partial(trust_region_nll, alpha=1.0),
        partial(trust_region_nll, alpha=ALPHA / 2),
        lambda lp: torch.where(lp.exp() >= ALPHA, -lp, torch.zeros_like(lp)),
        lambda lp: torch.where(lp.exp() <= ALPHA, -lp, -lp.exp() / ALPHA),
        lambda lp: -lp.clamp(min=math.log(ALPHA)),
    ],
    ids=["plain-sft", "dft", "sign", "alpha-1", "half-alpha", "nothing-outside", "inside-out", "clamped"],
)
def test_the_gradient_test_can_fail(wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError):
        check_trust_region_gradient(wrong)


def test_the_value_is_the_log_likelihood_inside_and_its_tangent_in_p_outside() -> None:
    inside, outside = P[P >= ALPHA], P[P < ALPHA]
    torch.testing.assert_close(trapo(inside.log()), -inside.log())
    tangent = -math.log(ALPHA) - (outside - ALPHA) / ALPHA
    torch.testing.assert_close(trapo(outside.log()), tangent)


def test_value_and_slope_are_continuous_at_the_edge() -> None:
    step = 1e-9
    below, above = (torch.tensor([ALPHA + sign * step], dtype=torch.float64) for sign in (-1, 1))
    torch.testing.assert_close(trapo(below.log()), trapo(above.log()), atol=1e-7, rtol=0)  # slope 10 over 2e-9
    torch.testing.assert_close(gradient(trapo, below), gradient(trapo, above), atol=1e-7, rtol=0)


def test_alpha_to_zero_is_plain_sft() -> None:
    torch.testing.assert_close(trust_region_nll(P.log(), alpha=1e-7), nll(P.log()))


def test_alpha_one_has_the_gradient_of_dft() -> None:
    torch.testing.assert_close(gradient(partial(trust_region_nll, alpha=1.0)), gradient(dft))
    torch.testing.assert_close(gradient(dft), -P)


def check_chord_gradient(loss: Callable[[Tensor], Tensor]) -> None:
    torch.testing.assert_close(gradient(loss), -P * (1 - P))


def test_chord_pulls_most_where_the_policy_is_unsure() -> None:
    check_chord_gradient(chord_phi)
    assert P[(-gradient(chord_phi)).argmax()] == 0.5


@pytest.mark.parametrize(
    "wrong", [nll, dft, lambda lp: -lp.exp() * (1 - lp.exp()) * lp], ids=["plain-sft", "dft", "not-detached"]
)
def test_the_gradient_test_of_chord_can_fail(wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError):
        check_chord_gradient(wrong)


@pytest.mark.parametrize("loss", [nll, trapo, luffy_shaped], ids=["nll", "trust-region", "luffy"])
def test_gradients_agree_with_finite_differences(loss: Callable[[Tensor], Tensor]) -> None:
    """DFT has a detached factor, so finite differences say nothing about it."""
    smooth = P[P != ALPHA].log().requires_grad_(True)
    assert torch.autograd.gradcheck(loss, smooth)


@pytest.mark.parametrize(
    ("p", "sft", "trust_region", "dft_weight", "luffy"),
    [
        (0.001, 1, 0.01, 0.001, 0.010),
        (0.01, 1, 0.10, 0.01, 0.083),
        (0.1, 1, 1, 0.1, 0.250),
        (0.5, 1, 1, 0.5, 0.139),
        (0.9, 1, 1, 0.9, 0.090),
    ],
)
def test_the_weights_of_the_methods_table(
    p: float, sft: float, trust_region: float, dft_weight: float, luffy: float
) -> None:
    """METHOD 4.1, weight on grad(-log p); the table gives three decimals."""
    at = torch.tensor([p], dtype=torch.float64)
    weights = [-gradient(loss, at).item() for loss in (nll, trapo, dft, luffy_shaped)]
    assert weights == pytest.approx([sft, trust_region, dft_weight, luffy], abs=5e-4)


def test_luffy_pulls_hardest_at_p_equal_to_gamma() -> None:
    gamma = 0.2
    weight = -gradient(partial(luffy_shaped, gamma=gamma))
    torch.testing.assert_close(weight, gamma * P / (P + gamma) ** 2)
    assert P[weight.argmax()] == gamma


# ----- Proposition 1: the tail of the expert's distribution is cut, the rest renormalised


def minimise(loss: Callable[[Tensor], Tensor], expert: Tensor) -> Tensor:
    """The categorical distribution with the least expected loss under the expert's."""
    logits = torch.zeros_like(expert, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        (expert * loss(torch.log_softmax(logits, dim=0))).sum().backward()
        optimizer.step()
    return logits.detach().softmax(dim=0)


EXPERT = torch.tensor([0.5, 0.3, 0.1, 0.05, 0.03, 0.02], dtype=torch.float64)


def kept_and_renormalised(expert: Tensor, alpha: float) -> Tensor:
    """p*(c) = pE(c) / lambda where pE(c) > alpha lambda, with lambda the kept mass: the fixed point, by trying."""
    for num_kept in range(len(expert), 0, -1):
        mass = expert[:num_kept].sum()
        kept = expert > alpha * mass
        if kept.sum() == num_kept:
            return torch.where(kept, expert / mass, torch.zeros_like(expert))
    raise AssertionError("this expert distribution has no exact fixed point; take another")


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.04, 0.1, 0.25])
def test_the_optimum_cuts_the_tail(alpha: float) -> None:
    expected = kept_and_renormalised(EXPERT, alpha)
    assert 0 < (expected > 0).sum() < len(EXPERT)
    found = minimise(partial(trust_region_nll, alpha=alpha), EXPERT)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # the tail only tends to 0


@pytest.mark.slow
def test_plain_sft_keeps_the_tail() -> None:
    torch.testing.assert_close(minimise(nll, EXPERT), EXPERT, atol=2e-3, rtol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(minimise(nll, EXPERT), kept_and_renormalised(EXPERT, ALPHA), atol=2e-3, rtol=0)


# ----- the policy's own tokens


@pytest.mark.parametrize(
    ("ratio", "advantage", "clip_low", "clip_high", "loss", "pulls"),
    [
        (1.1, 1.0, 0.2, 0.2, -1.1, True),
        (1.5, 1.0, 0.2, 0.2, -1.2, False),  # good and already likelier: stop at the upper bound
        (0.5, 1.0, 0.2, 0.2, -0.5, True),  # good but less likely: come back
        (0.5, -1.0, 0.2, 0.2, 0.8, False),  # bad and already less likely: stop at the lower bound
        (1.5, -1.0, 0.2, 0.2, 1.5, True),  # bad but likelier: come back
        (1.25, 2.0, 0.2, 0.28, -2.5, True),  # DAPO: further up
        (1.30, 2.0, 0.2, 0.28, -2.56, False),
        (0.5, -1.0, None, 0.2, 0.5, True),
        (1.5, 1.0, None, 0.2, -1.2, False),
        (1.5, 1.0, 0.2, None, -1.5, True),
        (0.5, -1.0, 0.2, None, 0.8, False),
        (3.0, 1.0, None, None, -3.0, True),
        (0.1, -1.0, None, None, 0.1, True),
        (1.5, 0.0, 0.2, 0.2, 0.0, True),
    ],
)
def test_the_clip(
    ratio: float, advantage: float, clip_low: float | None, clip_high: float | None, loss: float, pulls: bool
) -> None:
    old = torch.tensor([-1.0], dtype=torch.float64)
    logprobs = (old + math.log(ratio)).requires_grad_(True)
    found = clipped_policy_gradient(logprobs, old, torch.tensor([advantage]), clip_low=clip_low, clip_high=clip_high)
    (grad,) = torch.autograd.grad(found.sum(), logprobs)
    assert found.item() == pytest.approx(loss)
    assert grad.item() == pytest.approx(-advantage * ratio if pulls else 0.0)


def test_on_policy_the_value_is_minus_the_advantage_and_so_is_the_gradient() -> None:
    """One update a batch: old = the current log-probs; clipped or not."""
    advantages = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
    for clip in (None, 0.2):
        logprobs = torch.tensor([-0.1, -2.0, -7.0], dtype=torch.float64, requires_grad=True)
        loss = clipped_policy_gradient(logprobs, logprobs, advantages, clip_low=clip, clip_high=clip)
        (grad,) = torch.autograd.grad(loss.sum(), logprobs)
        torch.testing.assert_close(loss, -advantages)
        torch.testing.assert_close(grad, -advantages)


CISPO_RATIOS = [0.1, 1.0, 1.2, 3.0]
CISPO_ADVANTAGES = [1.0, -1.0, 0.5, -2.0]


def cispo_gradient(loss: Callable[..., Tensor]) -> list[float]:
    old = torch.full((4,), -2.0, dtype=torch.float64)
    logprobs = (old + torch.tensor(CISPO_RATIOS, dtype=torch.float64).log()).requires_grad_(True)
    advantages = torch.tensor(CISPO_ADVANTAGES, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(logprobs, old, advantages).sum(), logprobs)
    return gradient.tolist()


# d/d log pi of -sg[min(ratio, 1.28)] A log pi, by hand: no token is without a gradient, whatever its advantage.
CISPO_GRADIENT = [-0.1 * 1.0, 1.0 * 1.0, -1.2 * 0.5, 1.28 * 2.0]


def test_cispo_caps_the_weight_of_a_token_and_drops_none() -> None:
    assert cispo_gradient(partial(cispo, ratio_cap=1.28)) == pytest.approx(CISPO_GRADIENT)


@pytest.mark.parametrize(
    "wrong",
    [
        partial(cispo, ratio_cap=100.0),
        partial(clipped_policy_gradient, clip_low=None, clip_high=0.28),
        lambda logprobs, old, advantages: -(logprobs - old).exp().clamp(max=1.28) * advantages * logprobs,
        lambda logprobs, old, advantages: -cispo(logprobs, old, advantages, ratio_cap=1.28),
    ],
    ids=["uncapped", "ppo-clip", "ratio-not-detached", "sign"],
)
def test_the_gradient_of_cispo_can_be_wrong(wrong: Callable[..., Tensor]) -> None:
    assert cispo_gradient(wrong) != pytest.approx(CISPO_GRADIENT)


def test_the_importance_weight_is_capped_and_detached() -> None:
    logprobs = torch.tensor([-1.0, -1.0, -3.0], requires_grad=True)
    sampler = torch.tensor([-1.5, -3.0, -1.0])
    weight = truncated_importance_weight(logprobs, sampler, cap=2.0)
    torch.testing.assert_close(weight, torch.tensor([math.exp(0.5), 2.0, math.exp(-2.0)]))
    assert not weight.requires_grad


def test_k3_is_never_negative_and_its_mean_is_the_divergence() -> None:
    pi, reference = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    estimate = k3(pi.log(), reference.log())
    assert (estimate > 0).all()
    torch.testing.assert_close((pi * estimate).sum(), (pi * (pi / reference).log()).sum())
    assert k3(pi.log(), pi.log()).abs().max() == 0


@pytest.mark.parametrize("loss", [nll, trapo, dft, chord_phi, luffy_shaped])
def test_losses_take_any_shape_and_change_nothing_they_receive(loss: Callable[[Tensor], Tensor]) -> None:
    logprobs = P[:10].log().reshape(2, 5)
    before = logprobs.clone()
    assert loss(logprobs).shape == (2, 5)
    torch.testing.assert_close(loss(logprobs).flatten(), loss(logprobs.flatten()))
    assert torch.equal(logprobs, before)
