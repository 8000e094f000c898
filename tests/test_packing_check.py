"""The check that every run begins with: it passes where the packed path is right and stops the run where it is not."""

import random

import pytest
import torch
from builders import random_rollouts, rollout, tiny_qwen2
from torch.nn.functional import scaled_dot_product_attention

from trapo_lite import tree_attention
from trapo_lite.algorithm import Algorithm, make_group
from trapo_lite.config import AlgorithmSection, LoraSection
from trapo_lite.packing_check import BOUNDS, COMPLETION, PREFIX, PROMPT, PackingError, check_packing, shortened
from trapo_lite.policy import Policy
from trapo_lite.tree import Group, num_tokens

TRAPO = Algorithm.from_config(AlgorithmSection(entropy_weight=0.01, kl_weight=0.01), tis_cap=2.0)
GRPO = Algorithm.from_config(AlgorithmSection(schedule=[{"num_rollouts": 2}], prefix_loss="none"), tis_cap=None)


def make_policy(dtype: torch.dtype = torch.float32, *, gradient_checkpointing: bool = False) -> Policy:
    base, lora = tiny_qwen2(dtype=dtype), LoraSection(r=4, alpha=8)
    policy = Policy(base, lora, attention="sdpa", gradient_checkpointing=gradient_checkpointing)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def some_groups(seed: int = 0) -> list[Group]:
    return [make_group(TRAPO, random_rollouts(random.Random(seed + i), problem_id=str(i))) for i in range(3)]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_right_packing_passes_with_room_to_spare_and_leaves_no_gradient(
    dtype: torch.dtype, seed: int, gradient_checkpointing: bool
) -> None:
    policy = make_policy(dtype, gradient_checkpointing=gradient_checkpointing)
    report = check_packing(policy, TRAPO, some_groups(seed), temperature=0.7)
    assert report is not None and report.num_rows == 8
    assert 0 < report.gradient_error < BOUNDS[dtype] / 4
    assert all(parameter.grad is None for parameter in policy.parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_shared", [COMPLETION - 1, COMPLETION])
def test_rollouts_that_begin_alike_cancel_but_are_not_taken_for_an_error(dtype: torch.dtype, num_shared: int) -> None:
    """Cut to their first tokens they are all but the same, and their advantages sum to 0."""
    rng = random.Random(0)
    start = [rng.randrange(50) for _ in range(num_shared)]
    members = [
        rollout([1, 2, 3], [], [*start, *(rng.randrange(50) for _ in range(20))], reward=float(slot % 2), slot=slot)
        for slot in range(4)
    ]
    algorithm = Algorithm.from_config(
        AlgorithmSection(schedule=[{"num_rollouts": 4}], prefix_loss="none"), tis_cap=None
    )
    report = check_packing(make_policy(dtype), algorithm, [make_group(algorithm, members)], temperature=1.0)
    assert report is not None and report.gradient_error < BOUNDS[dtype] / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_a_mask_that_shows_siblings_is_found(dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def plainly_causal(batch):
        return tree_attention.TreeLayout(
            lambda q, k, v, scaling: scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        )

    monkeypatch.setattr(tree_attention, "segment_layout", plainly_causal)
    with pytest.raises(PackingError, match=r"gradients differ by .* model.attention: sdpa"):
        check_packing(make_policy(dtype), TRAPO, some_groups(seed), temperature=0.7)


def test_rollouts_that_cannot_move_the_weights_are_not_compared() -> None:
    alike = make_group(GRPO, [rollout([1], [], [2, 3], reward=1.0, slot=slot) for slot in range(2)])
    assert check_packing(make_policy(), GRPO, [alike], temperature=1.0) is None


def test_a_long_tree_is_cut_to_a_small_one_with_the_same_branches() -> None:
    trace = list(range(1000))
    members = [rollout(range(300), trace[:cut], [7] * 500, slot=slot) for slot, cut in enumerate((0, 250, 500, 1000))]
    small = shortened(make_group(TRAPO, members))
    assert [len(r.prefix_ids) for r in small.rollouts] == [0, 32, 64, 128]
    assert num_tokens(small) == PROMPT + PREFIX + 4 * COMPLETION
    short = make_group(TRAPO, random_rollouts(random.Random(0)))
    assert shortened(short) == short
