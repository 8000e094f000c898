"""From rollouts to the loss: one sum of components over global normalisers, and which problems cost a forward pass."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from builders import random_rollouts, rollout, trained_policy
from scripted import STOP_ID, ScriptedEngine, ScriptedVerifier, decode, is_boundary
from torch import Tensor

from trapo_lite.config import AlgorithmSection
from trapo_lite.core.algorithm import (
    Algorithm,
    Normalizers,
    TokenLogprobs,
    count_normalizers,
    make_group,
    needs_forward,
    policy_loss,
)
from trapo_lite.core.batching import num_tokens, split
from trapo_lite.core.losses import chord_phi, dft, k3, luffy_shaped, nll, trust_region_nll
from trapo_lite.core.tree import PackedBatch, pack
from trapo_lite.core.types import Group, Mean, Problem, Rollout
from trapo_lite.engines.base import SampleRequest
from trapo_lite.model.policy import Policy
from trapo_lite.rollout.sampler import sample_groups
from trapo_lite.rollout.settings import SamplingSettings

GRPO_8 = {"schedule": [{"num_rollouts": 8}], "prefix_loss": "none"}
SFT = {"schedule": [{"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": None}], "prefix_loss": "nll"}


def algorithm(**section: object) -> Algorithm:
    return AlgorithmSection(**section).build(max_response_tokens=8192)


TRAPO = algorithm()


def forward(batch: PackedBatch, *, reference: bool = False) -> TokenLogprobs:
    """Made-up results that depend on a token and its depth only, so that they are the same wherever it is packed."""
    rows = batch.trained
    value = (batch.input_ids[rows] * 7 + batch.position[rows] * 3) % 11
    logprobs = (-0.2 - 0.3 * value).float().requires_grad_(True)
    return TokenLogprobs(logprobs, 0.1 + 0.05 * value.float(), logprobs.detach() - 0.4 if reference else None)


def loss_of(
    algo: Algorithm, groups: Sequence[Group], *, budget: int = 10_000, reference: bool = False
) -> tuple[float, dict[str, Mean]]:
    normalizers = count_normalizers(algo, groups)
    total, metrics = 0.0, {}
    for parts in split(groups, budget=budget):
        batch = pack(parts)
        loss, of_batch = policy_loss(algo, forward(batch, reference=reference), batch, normalizers)
        total += loss.item()
        metrics = {name: metrics[name] + mean if name in metrics else mean for name, mean in of_batch.items()}
    return total, metrics


# ----- one small group, summed by hand

OWN = rollout([1], [], [10, 11], reward=1.0, logprobs=[-0.5, -0.5])
DUPLICATE = rollout([1], [20], [12], train_prefix=False, logprobs=[-0.5])
GUIDED = rollout([1], [20, 21], [13], logprobs=[-0.5])
EXPERT = rollout([1], [20, 21, 22], [], reward=1.0)
FOUR = [OWN, DUPLICATE, GUIDED, EXPERT]  # rewards 1 0 0 1: advantages 1/2 -1/2 -1/2 1/2

LOGP = {10: -0.1, 11: -0.7, 12: -1.1, 13: -0.9, 20: -0.3, 21: -4.0, 22: -6.0}
ENTROPY = {10: 0.3, 11: 0.5, 12: 0.7, 13: 0.2, 20: 0.9, 21: 0.4, 22: 0.8}
REFERENCE = {10: -0.3, 11: -0.9, 12: -1.0, 13: -2.0, 20: -1.0, 21: -1.0, 22: -1.0}


def four(algo: Algorithm, *, with_reference: bool = False, old: dict[int, float] | None = None) -> tuple[Tensor, dict]:
    group = make_group(algo, FOUR)
    batch = pack([group])
    tokens = batch.input_ids[batch.trained].tolist()
    assert tokens == [10, 11, 20, 12, 21, 13, 22]
    if old is not None:
        columns = [old.get(token, 0.0) for token in batch.input_ids.tolist()]
        batch = replace(batch, old_logprobs=torch.tensor(columns))
    results = TokenLogprobs(
        torch.tensor([LOGP[token] for token in tokens], requires_grad=True),
        torch.tensor([ENTROPY[token] for token in tokens]),
        torch.tensor([REFERENCE[token] for token in tokens]) if with_reference else None,
    )
    loss, metrics = policy_loss(algo, results, batch, count_normalizers(algo, [group]))
    (grad,) = torch.autograd.grad(loss, results.logprobs)
    return loss.detach(), {**metrics, "grad": dict(zip(tokens, grad.tolist(), strict=True))}


def trust_region(token: int) -> float:
    p = math.exp(LOGP[token])
    return -LOGP[token] if p >= 0.1 else 1 - math.log(0.1) - p / 0.1


PREFIX_SUM = 2 * trust_region(20) + 2 * trust_region(21) + trust_region(22)  # the guided and the expert rollout
COMPLETION_SUM = -0.5 - 0.5 + 0.5 + 0.5  # ratio 1: minus the advantage of 10, 11, 12, 13


def test_trapo_by_hand() -> None:
    """Five prefix tokens are trained (2 + 3; the duplicate's is not), four are the policy's own."""
    loss, found = four(TRAPO)
    assert loss.item() == pytest.approx(PREFIX_SUM / 5 + COMPLETION_SUM / 4)
    pull = {token: min(1.0, math.exp(LOGP[token]) / 0.1) for token in (20, 21, 22)}
    expected = {10: -0.5 / 4, 11: -0.5 / 4, 12: 0.5 / 4, 13: 0.5 / 4}
    expected |= {20: -2 * pull[20] / 5, 21: -2 * pull[21] / 5, 22: -pull[22] / 5}
    assert found["grad"] == pytest.approx(expected)


def test_the_prefix_weight_scales_the_prefix_alone() -> None:
    loss, _ = four(algorithm(prefix_loss={"type": "trust_region", "weight": 0.25}))
    assert loss.item() == pytest.approx(0.25 * PREFIX_SUM / 5 + COMPLETION_SUM / 4)


def test_the_completion_weight_scales_own_tokens_alone() -> None:
    loss, found = four(algorithm(completion_loss={"type": "policy_gradient", "weight": 0.9}))
    assert loss.item() == pytest.approx(PREFIX_SUM / 5 + 0.9 * COMPLETION_SUM / 4)
    assert found["grad"][10] == pytest.approx(-0.9 * 0.5 / 4)


def test_importance_weights_act_on_own_tokens_only() -> None:
    loss, _ = four(algorithm(tis_cap=1.2))
    weight = {token: min(math.exp(LOGP[token] + 0.5), 1.2) for token in (10, 11, 12, 13)}
    own = -0.5 * weight[10] - 0.5 * weight[11] + 0.5 * weight[12] + 0.5 * weight[13]
    assert weight[10] == 1.2 and weight[11] < 1.2
    assert loss.item() == pytest.approx(PREFIX_SUM / 5 + own / 4)


def test_a_rollout_the_sampler_saw_otherwise_is_masked_whole_and_its_prefix_stays() -> None:
    """Mean log ratios: own (0.4 - 0.2) / 2 = 0.1, the duplicate's -0.6, the guided one's -0.4; e^0.5 keeps two."""
    loss, metrics = four(algorithm(sequence_bound=math.exp(0.5)))
    assert loss.item() == pytest.approx(PREFIX_SUM / 5 + (-0.5 - 0.5 + 0.5) / 4)
    assert metrics["grad"][12] == 0.0
    assert metrics["mismatch/masked"].value == 1 / 4
    assert four(algorithm(sequence_bound=math.exp(0.7)))[0].item() == pytest.approx(four(TRAPO)[0].item())


def test_the_entropy_bonus_counts_a_shared_token_once_for_each_rollout_that_holds_it() -> None:
    """Nine response tokens; 20 stands in three rollouts, the untrained duplicate included, and 21 in two."""
    entropy = sum(ENTROPY[token] for token in (10, 11, 12, 13, 22)) + 3 * ENTROPY[20] + 2 * ENTROPY[21]
    loss, _ = four(algorithm(entropy_weight=0.01))
    num_response_tokens = 2 + 2 + 3 + 3
    assert loss.item() == pytest.approx(PREFIX_SUM / 5 + COMPLETION_SUM / 4 - 0.01 * entropy / num_response_tokens)


def test_the_kl_term_is_k3_on_own_tokens() -> None:
    loss, found = four(algorithm(kl_weight=0.1), with_reference=True)
    own = [10, 11, 12, 13]
    kl = k3(torch.tensor([LOGP[t] for t in own]), torch.tensor([REFERENCE[t] for t in own])).sum().item()
    assert loss.item() == pytest.approx(PREFIX_SUM / 5 + COMPLETION_SUM / 4 + 0.1 * kl / 4)
    assert found["loss/kl"] == Mean(pytest.approx(kl), 4)


def test_with_old_logprobs_the_clip_acts_on_own_tokens() -> None:
    old = {10: -0.1 - math.log(1.5), 11: -0.7, 12: -1.1 + math.log(2.0), 13: -0.9 - math.log(1.5)}
    loss, found = four(algorithm(completion_loss={"type": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28}), old=old)
    # ratios 1.5, 1, 0.5, 1.5 under advantages 1/2 1/2 -1/2 -1/2: the first and the third are clipped
    assert loss.item() == pytest.approx(PREFIX_SUM / 5 + (-0.5 * 1.28 - 0.5 + 0.5 * 0.8 + 0.5 * 1.5) / 4)
    assert (found["grad"][10], found["grad"][12]) == (0.0, 0.0)
    assert found["grad"][13] == pytest.approx(0.5 * 1.5 / 4)


def test_cispo_caps_the_ratio_of_own_tokens_and_keeps_their_gradient() -> None:
    """Ratios 1.5, 1, 0.5, 1.5 under advantages 1/2 1/2 -1/2 -1/2: a clip would take the first and third out."""
    old = {10: -0.1 - math.log(1.5), 11: -0.7, 12: -1.1 + math.log(2.0), 13: -0.9 - math.log(1.5)}
    _, found = four(algorithm(completion_loss={"type": "cispo", "ratio_cap": 1.2}), old=old)
    own = {token: found["grad"][token] * 4 for token in (10, 11, 12, 13)}
    assert own == pytest.approx({10: -0.5 * 1.2, 11: -0.5, 12: 0.5 * 0.5, 13: 0.5 * 1.2})


def test_none_trains_no_prefix() -> None:
    loss, found = four(algorithm(prefix_loss="none"))
    assert loss.item() == pytest.approx(COMPLETION_SUM / 4)
    assert [found["grad"][token] for token in (20, 21, 22)] == [0.0, 0.0, 0.0]
    assert "loss/prefix" not in found


def test_a_constant_normaliser_is_the_official_reduction() -> None:
    """METHOD 4.4: token sums over 8192 a problem, whatever the lengths."""
    loss, _ = four(algorithm(normalizer={"type": "constant", "num_tokens": 100}, entropy_weight=0.01))
    entropy = sum(ENTROPY[token] for token in (10, 11, 12, 13, 22)) + 3 * ENTROPY[20] + 2 * ENTROPY[21]
    assert loss.item() == pytest.approx((PREFIX_SUM + COMPLETION_SUM - 0.01 * entropy) / 100)
    two_problems = [make_group(TRAPO, FOUR)] * 2
    assert count_normalizers(algorithm(normalizer="constant"), two_problems) == Normalizers(16384, 16384, 16384)


def test_metrics_by_hand() -> None:
    _, found = four(TRAPO)
    own = [10, 11, 12, 13]
    assert found["loss/prefix"] == Mean(pytest.approx(PREFIX_SUM), 5)
    assert found["loss/completion"] == Mean(pytest.approx(COMPLETION_SUM, abs=1e-6), 4)
    assert found["policy/entropy"] == Mean(pytest.approx(sum(ENTROPY[t] for t in own)), 4)
    assert found["mismatch/abs"] == Mean(pytest.approx(sum(abs(LOGP[t] + 0.5) for t in own)), 4)
    k3_sum = sum(math.exp(LOGP[t] + 0.5) - 1 - (LOGP[t] + 0.5) for t in own)  # KL(sampler || policy) on its own draws
    assert found["mismatch/k3"] == Mean(pytest.approx(k3_sum), 4)
    probability = 2 * math.exp(LOGP[20]) + 2 * math.exp(LOGP[21]) + math.exp(LOGP[22])
    assert found["prefix/probability"] == Mean(pytest.approx(probability), 5)


def test_a_metric_without_data_is_no_number() -> None:
    _, found = loss_of(TRAPO, [make_group(TRAPO, MIXED)])
    assert math.isnan(found["prefix/probability"].value) and math.isnan(found["loss/prefix"].value)
    assert found["loss/completion"].count == 2


# ----- normalisers and cutting


def test_token_normalisers_count_rollouts_not_packed_tokens() -> None:
    group = make_group(TRAPO, FOUR)
    assert count_normalizers(TRAPO, [group]) == Normalizers(prefix=5, completion=4, response=10)
    assert count_normalizers(TRAPO, [group, group]) == Normalizers(10, 8, 20)
    assert count_normalizers(TRAPO, [group]) + count_normalizers(TRAPO, [group]) == Normalizers(10, 8, 20)


def random_groups(algo: Algorithm, seed: int, number: int = 4) -> list[Group]:
    rng = random.Random(seed)
    return [make_group(algo, random_rollouts(rng, problem_id=str(index))) for index in range(number)]


EVERYTHING = {"entropy_weight": 0.01, "kl_weight": 0.1, "tis_cap": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("section", [{}, {"normalizer": "constant"}, {"prefix_loss": "luffy"}])
@pytest.mark.parametrize("seed", range(4))
def test_the_loss_does_not_depend_on_how_the_step_is_cut(section: dict, seed: int) -> None:
    algo = algorithm(**EVERYTHING, **section)
    groups = random_groups(algo, seed)
    expected, whole = loss_of(algo, groups, reference=True)
    for budget in (max(map(num_tokens, groups)), 60, 1):
        found, metrics = loss_of(algo, groups, budget=budget, reference=True)
        assert found == pytest.approx(expected, rel=1e-5)
        assert metrics.keys() == whole.keys()
        for name, mean in metrics.items():
            assert (mean.total, mean.count) == pytest.approx((whole[name].total, whole[name].count), rel=1e-4), name


def test_a_mean_of_means_would_depend_on_it() -> None:
    """The known bug (METHOD 4.4, 7): every batch over its own count. This comparison sees it."""
    groups = random_groups(TRAPO, 0)
    own = 0.0
    batches = split(groups, budget=60)
    for parts in batches:
        batch = pack(parts)
        own += policy_loss(TRAPO, forward(batch), batch, count_normalizers(TRAPO, parts))[0].item() / len(batches)
    assert own != pytest.approx(loss_of(TRAPO, groups)[0], rel=1e-2)


def test_ranks_add_up() -> None:
    """Two ranks with their own problems and the summed normalisers: the loss of one process with all of them."""
    algo = algorithm(**EVERYTHING)
    groups = random_groups(algo, 3)
    ranks = [groups[:1], groups[1:]]
    normalizers = count_normalizers(algo, ranks[0]) + count_normalizers(algo, ranks[1])
    assert normalizers == count_normalizers(algo, groups)
    total = 0.0
    for part in ranks:
        batch = pack(part)
        total += policy_loss(algo, forward(batch, reference=True), batch, normalizers)[0].item()
    assert total == pytest.approx(loss_of(algo, groups, reference=True)[0], rel=1e-5)


def test_padding_weighs_nothing() -> None:
    algo = algorithm(**EVERYTHING)
    groups = random_groups(algo, 1, number=1)
    batch = pack(groups, pad_to=256)
    loss, metrics = policy_loss(algo, forward(batch, reference=True), batch, count_normalizers(algo, groups))
    expected, plain = loss_of(algo, groups, reference=True)
    assert loss.item() == pytest.approx(expected)
    assert metrics == plain


# ----- advantages and weights of a group


def test_trapo_weighs_every_trained_prefix_one_whatever_its_reward() -> None:
    group = make_group(TRAPO, [replace(member, reward=0.0) for member in FOUR])
    assert group.prefix_weights == (1.0, 1.0, 1.0, 1.0)
    assert group.advantages == (0.0, 0.0, 0.0, 0.0)


def test_luffy_multiplies_by_the_experts_own_advantage_negative_if_it_fails() -> None:
    luffy = algorithm(prefix_loss="luffy")
    members = [rollout([1], [], [10], reward=1.0), rollout([1], [], [11]), rollout([1], [20, 21], [])]
    group = make_group(luffy, members)
    assert group.prefix_weights == group.advantages == pytest.approx((2 / 3, -1 / 3, -1 / 3))
    batch = pack([group])
    assert batch.prefix_weight_sum.tolist() == pytest.approx([0, 0, 0, -1 / 3, -1 / 3])
    assert batch.prefix_count.tolist() == [0, 0, 0, 1, 1]
    results = TokenLogprobs(torch.full((4,), -1.0, requires_grad=True), torch.zeros(4))
    loss, _ = policy_loss(luffy, results, batch, count_normalizers(luffy, [group]))
    p = math.exp(-1.0)
    own = -(2 / 3) + 1 / 3
    assert loss.item() == pytest.approx(2 * (-1 / 3) * (-p / (p + 0.1)) / 2 + own / 2)
    (grad,) = torch.autograd.grad(loss, results.logprobs)
    assert (grad[2:] > 0).all()  # a failed expert is pushed down


def test_the_experts_reward_counts_in_the_mean_unless_it_is_told_not_to() -> None:
    members = [rollout([1], [], [10])] * 3 + [rollout([1], [20, 0], [], reward=1.0)]
    assert make_group(TRAPO, members).advantages == pytest.approx((-1 / 4, -1 / 4, -1 / 4, 3 / 4))
    without = algorithm(baseline={"type": "group", "count_expert": False})
    assert make_group(without, members).advantages == pytest.approx((0, 0, 0, 1))
    guided = [*members[:3], rollout([1], [20], [9], reward=1.0)]  # a prefix is not the whole expert
    assert make_group(without, guided).advantages == pytest.approx((-1 / 4, -1 / 4, -1 / 4, 3 / 4))


def test_advantages_divided_by_the_deviation_on_request() -> None:
    members = [rollout([1], [], [10], reward=1.0), rollout([1], [], [11])]
    deviation = math.sqrt(0.5) + 1e-6
    group = make_group(algorithm(advantage="standardized"), members)
    assert group.advantages == pytest.approx((0.5 / deviation, -0.5 / deviation))


def test_a_rollout_is_compared_with_those_that_had_the_same_help() -> None:
    """PrefixRL. Unguided 1 0 0, guided 1 1 0, and an expert nobody can be compared with."""
    unguided = [rollout([1], [], [10], reward=reward) for reward in (1.0, 0.0, 0.0)]
    guided = [rollout([1], [20, 21], [11], reward=reward) for reward in (1.0, 1.0, 0.0)]
    members = [*unguided, *guided, rollout([1], [20, 21, 22], [], reward=1.0)]
    found = make_group(algorithm(baseline="micro_group"), members).advantages
    assert found == pytest.approx((2 / 3, -1 / 3, -1 / 3, 1 / 3, 1 / 3, -2 / 3, 0.0))
    over_all = make_group(TRAPO, members).advantages
    assert over_all == pytest.approx([reward - 4 / 7 for reward in (1, 0, 0, 1, 1, 0, 1)]) and over_all != found


# ----- who costs a forward pass (METHOD 4.4)

FROM_ZERO = {"steps": [0, 5], "values": [0.0, 1.0]}
SOLVED = [rollout([1], [], [10], reward=1.0), rollout([1], [], [11], reward=1.0)]
MIXED = [rollout([1], [], [10], reward=1.0), rollout([1], [], [11])]
FAILED_WITH_PREFIX = [rollout([1], [], [10]), rollout([1], [20], [11])]
UNTRAINED_PREFIX = [rollout([1], [], [10]), rollout([1], [20], [11], train_prefix=False)]
LUFFY = {"prefix_loss": "luffy"}


@pytest.mark.parametrize(
    ("section", "members", "needed"),
    [
        ({}, SOLVED, False),
        ({}, MIXED, True),
        ({}, FAILED_WITH_PREFIX, True),
        ({}, UNTRAINED_PREFIX, False),
        ({"prefix_loss": "none"}, FAILED_WITH_PREFIX, False),
        ({"entropy_weight": 0.01}, SOLVED, True),
        ({"kl_weight": 0.01}, SOLVED, True),
        (LUFFY, FAILED_WITH_PREFIX, False),  # the advantage that multiplies the prefix loss is 0
        (LUFFY, [MIXED[0], FAILED_WITH_PREFIX[1]], True),
        ({}, [rollout([1], [], [], reward=1.0), rollout([1], [], [])], False),  # an advantage, but no token to carry it
        ({"prefix_loss": "none"}, [rollout([1], [20], [], reward=1.0), rollout([1], [20], [])], False),
        ({"prefix_loss": {"type": "nll", "weight": FROM_ZERO}}, FAILED_WITH_PREFIX, False),  # at its first step
        ({"prefix_loss": "none", "completion_loss": {"type": "policy_gradient", "weight": FROM_ZERO}}, MIXED, False),
    ],
)
def test_needs_forward(section: dict, members: list[Rollout], needed: bool) -> None:
    algo = algorithm(**section)
    group = make_group(algo, members)
    assert needs_forward(algo, group) == needed
    if not needed:  # then its share of the gradient is nothing
        batch = pack([group])
        results = forward(batch)
        loss, _ = policy_loss(algo, results, batch, Normalizers(1.0, 1.0, 1.0))
        if results.logprobs.numel():
            (grad,) = torch.autograd.grad(loss, results.logprobs)
            assert not grad.any()


def test_a_group_without_a_forward_pass_still_counts_in_the_normalisers() -> None:
    groups = [make_group(TRAPO, SOLVED), make_group(TRAPO, MIXED)]
    assert count_normalizers(TRAPO, groups).completion == 4


# ----- from the configuration


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"prefix_loss": "nll"}, nll),
        ({"prefix_loss": "dft"}, dft),
        ({"prefix_loss": "chord_phi"}, chord_phi),
        ({"prefix_loss": {"type": "trust_region", "alpha": 0.3}}, partial(trust_region_nll, alpha=0.3)),
        ({"prefix_loss": {"type": "luffy", "gamma": 0.2}}, partial(luffy_shaped, gamma=0.2)),
    ],
)
def test_a_prefix_loss_is_built_with_its_parameters(section: dict, expected: Callable[[Tensor], Tensor]) -> None:
    logprobs = torch.tensor([-0.1, -1.0, -5.0])
    built = algorithm(**section).prefix_loss
    assert built is not None
    assert torch.equal(built(logprobs), expected(logprobs))


# ----- whole steps: scripted rollouts, a real gradient


def draw(request: SampleRequest) -> tuple[int, ...]:
    """The rollout's slot, then noise of its seed, so that a judge can tell slots apart."""
    rng = random.Random(request.seed)
    return (40 + int(request.request_id.rsplit("/")[-1]), *[rng.randrange(1, 40) for _ in range(3)], STOP_ID)


def sampled_gradient(policy: Policy, algo: Algorithm, verdicts: str) -> tuple[Tensor, list[list[Rollout]]]:
    """One step on two problems, all the way; `verdicts` says which slots are right, "11110000"."""
    problems = [Problem(name, (1, 2, 3 + index), "", ((5, 6, 7, 0), (8, 9, 0))) for index, name in enumerate("ab")]
    right = {str(40 + slot) for slot, verdict in enumerate(verdicts) if verdict == "1"}
    with ScriptedVerifier(lambda text, gold: text.split()[0] in right) as verifier:
        sampler = partial(
            sample_groups,
            ScriptedEngine(draw=draw),
            verifier,
            micro_groups=algo.micro_groups,
            settings=SamplingSettings(seed=0, max_response_tokens=16, stop_ids=(STOP_ID,)),
            decode=decode,
            is_boundary=is_boundary,
        )
        sampled, _ = sampler(problems, step=3)
    groups = [make_group(algo, members) for members in sampled]
    batch = policy.prepare(groups)
    logprobs, entropy = policy.token_logprobs(batch, temperature=1.0)
    policy_loss(algo, TokenLogprobs(logprobs, entropy), batch, count_normalizers(algo, groups))[0].backward()
    grad = torch.cat([parameter.grad.flatten() for parameter in policy.adapter.parameters])
    for parameter in policy.adapter.parameters:
        parameter.grad = None
    return grad, sampled


LENIENT = [
    {"num_rollouts": 4},
    {"num_rollouts": 2, "prefix_ratio": 0.25, "help_below": 0.5},
    {"num_rollouts": 1, "prefix_ratio": 0.5, "help_below": 0.5},
    {"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": 0.5, "trace": 1},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "verdicts"),
    [("reference_code", "11111110"), ("paper", "11111110"), (LENIENT, "11001010"), (LENIENT, "10101010")],
)
def test_trapo_whose_help_never_fires_is_grpo_bit_for_bit(schedule: object, verdicts: str) -> None:
    policy = trained_policy(rank=2)
    trapo, rollouts = sampled_gradient(policy, algorithm(schedule=schedule, tis_cap=2.0), verdicts)
    grpo, same = sampled_gradient(policy, algorithm(**GRPO_8, tis_cap=2.0), verdicts)
    assert rollouts == same
    assert not any(member.is_guided for group in rollouts for member in group)
    assert trapo.any()
    assert torch.equal(trapo, grpo)


def test_trapo_whose_help_fires_is_not_grpo() -> None:
    """The comparison above can fail: a stricter threshold, and the last rollout is the expert's."""
    policy, strict = trained_policy(rank=2), [*LENIENT[:3], {**LENIENT[3], "help_below": 1.0}]
    trapo, rollouts = sampled_gradient(policy, algorithm(schedule=strict), "11111100")
    grpo, _ = sampled_gradient(policy, algorithm(**GRPO_8), "11111100")
    assert [[member.is_guided for member in group] for group in rollouts] == [[False] * 7 + [True]] * 2
    assert not torch.equal(trapo, grpo)


def test_sft_is_the_mean_likelihood_of_whole_traces_without_an_engine() -> None:
    """Against transformers' own forward pass and cross-entropy over all expert tokens of the batch."""
    policy, sft = trained_policy(rank=2), algorithm(**SFT)
    problems = [Problem("a", (1, 2), "", ((5, 6, 7, 0),)), Problem("b", (3,), "", ((8, 0), (9, 0)))]
    with ScriptedVerifier(lambda text, gold: False) as verifier:  # not even a failing expert changes SFT
        sampler = partial(
            sample_groups,
            None,
            verifier,
            micro_groups=sft.micro_groups,
            settings=SamplingSettings(seed=0, max_response_tokens=16, stop_ids=(STOP_ID,)),
            decode=decode,
            is_boundary=is_boundary,
        )
        sampled, _ = sampler(problems, step=0)
    groups = [make_group(sft, members) for members in sampled]
    assert all(needs_forward(sft, group) for group in groups)
    batch = policy.prepare(groups)
    logprobs, entropy = policy.token_logprobs(batch, temperature=1.0)
    loss, _ = policy_loss(sft, TokenLogprobs(logprobs, entropy), batch, count_normalizers(sft, groups))
    policy.model.config._attn_implementation = "sdpa"
    total = torch.zeros(())
    for prompt, trace in (([1, 2], [5, 6, 7, 0]), ([3], [8, 0])):
        logits = policy.model(input_ids=torch.tensor([prompt + trace])).logits[0, len(prompt) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(trace), reduction="sum")
    policy.model.config._attn_implementation = "packed_tree"
    torch.testing.assert_close(loss, total / 6)
    grads = [torch.autograd.grad(value, policy.adapter.parameters) for value in (loss, total / 6)]
    torch.testing.assert_close(grads[0], grads[1])
