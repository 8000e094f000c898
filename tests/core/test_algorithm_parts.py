"""Parts that few methods need: prefix tokens chosen by entropy (Prefix-RFT), and SFT in the place of RL (HPT)."""

import math
import random

import pytest
import torch
from builders import rollout

from trapo_lite.config import AlgorithmSection
from trapo_lite.core.algorithm import (
    Algorithm,
    TokenLogprobs,
    count_normalizers,
    is_informative,
    make_group,
    policy_loss,
)
from trapo_lite.core.batching import num_tokens, split
from trapo_lite.core.losses import highest
from trapo_lite.core.tree import PackedBatch, pack
from trapo_lite.core.types import Group

ONE_GUIDED = [{"num_rollouts": 2}, {"num_rollouts": 1, "prefix_ratio": 0.9, "help_below": None}]


def prefix_rft(share: float | None) -> Algorithm:
    prefix_loss = {"type": "nll", "times_advantage": True, "top_entropy": share}
    return AlgorithmSection(schedule=ONE_GUIDED, prefix_loss=prefix_loss, normalizer="tokens").build()  # type: ignore[arg-type]


LOGP = {10: -0.1, 11: -0.2, 20: -0.3, 21: -4.0, 22: -6.0, 23: -1.0, 13: -0.9}
ENTROPY = {10: 9.0, 11: 9.0, 20: 0.9, 21: 0.1, 22: 0.8, 23: 0.2, 13: 5.0}


def gradient_of(share: float | None) -> tuple[dict[int, float], float]:
    """d loss / d log p by token: two own rollouts that fail, and one that succeeds behind four expert tokens."""
    members = [rollout([1], [], [10]), rollout([1], [], [11]), rollout([1], [20, 21, 22, 23], [13], reward=1.0)]
    algorithm = prefix_rft(share)
    group = make_group(algorithm, members)
    batch = pack([group])
    tokens = batch.input_ids[batch.trained].tolist()
    logprobs = torch.tensor([LOGP[token] for token in tokens], requires_grad=True)
    forward = TokenLogprobs(logprobs, torch.tensor([ENTROPY[token] for token in tokens]))
    normalizers = count_normalizers(algorithm, [group])
    loss, metrics = policy_loss(algorithm, forward, batch, normalizers)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert metrics["loss/prefix"].count == normalizers.prefix
    return dict(zip(tokens, gradient.tolist(), strict=True)), normalizers.prefix


def test_prefix_tokens_of_high_entropy_are_trained_as_own_ones_are() -> None:
    """A = 2/3 and -1/3; of four prefix tokens the two of highest entropy get -A / 2 each, own tokens -A / 3."""
    gradient, count = gradient_of(0.5)
    assert count == 2
    assert gradient == pytest.approx(
        {10: 1 / 9, 11: 1 / 9, 13: -2 / 9, 20: -2 / 3 / 2, 22: -2 / 3 / 2, 21: 0.0, 23: 0.0}
    )


def test_without_a_choice_all_prefix_tokens_are_trained() -> None:
    gradient, count = gradient_of(None)
    assert count == 4
    assert [gradient[token] for token in (20, 21, 22, 23)] == pytest.approx([-2 / 3 / 4] * 4)


@pytest.mark.parametrize(("share", "num"), [(0.01, 1), (0.25, 1), (0.26, 2), (0.75, 3), (0.99, 4)])
def test_a_share_is_rounded_up_so_that_no_prefix_is_left_out(share: float, num: int) -> None:
    gradient, count = gradient_of(share)
    assert count == num == sum(gradient[token] != 0.0 for token in (20, 21, 22, 23))


def test_the_choice_is_made_in_each_tree_and_among_its_candidates() -> None:
    values = torch.tensor([5.0, 1.0, 2.0, 9.0, 3.0, 4.0, 4.0])
    tree = torch.tensor([1, 1, 1, 2, 2, 2, 2])
    candidates = torch.tensor([False, True, True, False, True, True, True])
    chosen = highest(values, tree, candidates, share=0.5)
    assert chosen.tolist() == [False, False, True, False, False, True, True]
    assert highest(values, tree, candidates, share=0.3).tolist()[4:] == [False, True, False]  # the earlier of two equal


def forward_of(batch: PackedBatch) -> TokenLogprobs:
    """Made-up results that depend on a token and its depth only, so that they are the same wherever it is packed."""
    rows = batch.trained
    value = (batch.input_ids[rows] * 7 + batch.position[rows] * 3) % 101
    return TokenLogprobs(-0.2 - 0.03 * value.float(), 0.1 + 0.05 * value.float())


def loss_of(algorithm: Algorithm, groups: list[Group], *, budget: int) -> float:
    normalizers = count_normalizers(algorithm, groups)
    batches = [pack(parts) for parts in split(groups, budget=budget)]
    return sum(policy_loss(algorithm, forward_of(batch), batch, normalizers)[0].item() for batch in batches)


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_does_not_depend_on_how_the_step_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    algorithm = prefix_rft(0.3)

    def tokens(most: int) -> list[int]:
        return [rng.randrange(100) for _ in range(rng.randint(1, most))]

    groups = []
    for problem in range(5):
        prompt, prefix = tokens(4), tokens(12)
        members = [rollout(prompt, [], tokens(6), reward=float(rng.random() < 0.5)) for _ in range(2)]
        groups.append(make_group(algorithm, [*members, rollout(prompt, prefix, tokens(6), reward=float(problem % 2))]))
    whole = loss_of(algorithm, groups, budget=10_000)
    for budget in (max(map(num_tokens, groups)), 20, 1):
        assert loss_of(algorithm, groups, budget=budget) == pytest.approx(whole, rel=1e-5)
    without_choice = loss_of(prefix_rft(None), groups, budget=10_000)
    assert not math.isclose(whole, without_choice, rel_tol=1e-3)


# ----- SFT in the place of RL

HPT = AlgorithmSection(
    schedule=[  # type: ignore[arg-type]
        {"num_rollouts": 2},
        {"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": 0.6, "otherwise": "skip", "replaces_rl": True},
    ],
    prefix_loss="nll",
    baseline={"type": "group", "count_expert": False},  # type: ignore[arg-type]
).build(max_response_tokens=8)


def test_where_the_expert_is_shown_own_tokens_are_not_trained() -> None:
    own = [rollout([1], [], [10], reward=1.0, slot=0), rollout([1], [], [11], slot=1)]
    with_expert = make_group(HPT, [*own, rollout([1], [20, 21], [], reward=1.0, slot=2)])
    assert with_expert.advantages == (0.0, 0.0, 0.0) and with_expert.prefix_weights == (1.0, 1.0, 1.0)
    assert is_informative(HPT, with_expert)
    assert make_group(HPT, own).advantages == (0.5, -0.5)
