"""The check that every run begins with: it passes where the packed path is right and stops the run where it is not."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from builders import longrope, random_rollouts, rollout, tiny_qwen2
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
)

from trapo_lite.config import AlgorithmSection, LoraSection
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.batching import num_tokens
from trapo_lite.core.errors import PackingError
from trapo_lite.core.types import Group
from trapo_lite.model import policy as policy_module
from trapo_lite.model import tree_attention
from trapo_lite.model.policy import Policy
from trapo_lite.model.tree_attention import Scores
from trapo_lite.model.tree_recurrence import Scan, TreeRecurrence
from trapo_lite.training import packing_check
from trapo_lite.training.packing_check import COMPLETION, PREFIX, PROMPT, check_packing, lengthened, shortened

TRAPO = AlgorithmSection(entropy_weight=0.01, kl_weight=0.01, tis_cap=2.0).build()
LONGEST = 300
TWO_LAYERS = {torch.float32: 2.5e-4, torch.bfloat16: 0.05}  # what rounding may make of two layers; measured up to 0.042
GRPO = AlgorithmSection(schedule=[{"num_rollouts": 2}], prefix_loss="none").build()


def make_policy(dtype: torch.dtype = torch.float32, *, gradient_checkpointing: bool = False) -> Policy:
    base, lora = tiny_qwen2(dtype=dtype), LoraSection(r=4, alpha=8)
    policy = Policy(base, lora, attention="sdpa", gradient_checkpointing=gradient_checkpointing)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def some_groups(seed: int = 0) -> list[Group]:
    return [make_group(TRAPO, random_rollouts(random.Random(seed + i), problem_id=str(i))) for i in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_right_packing_passes_with_room_to_spare_and_leaves_no_gradient(
    dtype: torch.dtype, seed: int, gradient_checkpointing: bool
) -> None:
    policy = make_policy(dtype, gradient_checkpointing=gradient_checkpointing)
    report = check_packing(policy, TRAPO, some_groups(seed), temperature=0.7, longest=LONGEST)
    assert report is not None and report.num_rows == 8
    assert 0 < report.gradient_error < TWO_LAYERS[dtype]
    assert all(parameter.grad is None for parameter in policy.adapter.parameters)


@pytest.mark.slow
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
    algorithm = AlgorithmSection(schedule=[{"num_rollouts": 4}], prefix_loss="none").build()
    report = check_packing(
        make_policy(dtype), algorithm, [make_group(algorithm, members)], temperature=1.0, longest=LONGEST
    )
    assert report is not None and report.gradient_error < TWO_LAYERS[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_a_mask_that_shows_siblings_is_found(dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def plainly_causal(batch):
        return tree_attention.TreeLayout(
            lambda q, k, v, scores: scaled_dot_product_attention(q, k, v, is_causal=True, scale=scores.scaling)
        )

    monkeypatch.setattr(tree_attention, "chain_layout", plainly_causal)
    with pytest.raises(PackingError, match=r"gradients differ by .* model.attention: sdpa"):
        check_packing(make_policy(dtype), TRAPO, some_groups(seed), temperature=0.7, longest=LONGEST)


def test_rollouts_that_cannot_move_the_weights_are_not_compared() -> None:
    alike = make_group(GRPO, [rollout([1], [], [2, 3], reward=1.0, slot=slot) for slot in range(2)])
    assert check_packing(make_policy(), GRPO, [alike], temperature=1.0, longest=LONGEST) is None


def test_a_long_tree_is_cut_to_a_small_one_with_the_same_branches() -> None:
    trace = list(range(1000))
    members = [rollout(range(300), trace[:cut], [7] * 500, slot=slot) for slot, cut in enumerate((0, 250, 500, 1000))]
    small = shortened(make_group(TRAPO, members))
    assert [len(r.prefix_ids) for r in small.rollouts] == [0, 32, 64, 128]
    assert num_tokens(small) == PROMPT + PREFIX + 4 * COMPLETION
    short = make_group(TRAPO, random_rollouts(random.Random(0)))
    assert shortened(short) == short


# ----- models whose attention is not what the packed path computes: the check sees it where nothing refuses them


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
FULL = ["full_attention"] * 2
SINKS = {"num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": FULL}


def policy_of(config: PreTrainedConfig) -> Policy:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation="packed_tree", dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "sinks" in name:
                parameter.fill_(1.0)
    policy = Policy(base, LoraSection(r=4, alpha=8, target_modules=["q_proj", "o_proj"]), **OPTIONS)
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return policy


OPTIONS = {"attention": "sdpa", "gradient_checkpointing": False}
LLAMA_LIKE = [
    (Qwen2Config(**SIZES), 300, True),
    (MistralConfig(**SIZES, sliding_window=300), 300, True),  # no row is longer than the window
    (MistralConfig(**SIZES, sliding_window=300), 340, False),
    (GptOssConfig(**SIZES, head_dim=8, **SINKS), 40, False),
    (Gemma2Config(**SIZES, head_dim=8, layer_types=FULL, attn_logit_softcapping=0.5), 40, False),
]
NAMES = ["full", "longer-window", "window", "sinks", "cap"]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "longest", "is_right"), LLAMA_LIKE, ids=NAMES)
def test_attention_that_is_not_computed_is_found(
    config: PreTrainedConfig, longest: int, is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_terms(batch):
        layout = chain_layout(batch)
        return replace(layout, attend=lambda q, k, v, scores: layout.attend(q, k, v, Scores(scores.scaling)))

    policy, chain_layout = policy_of(config), tree_attention.chain_layout
    report = check_packing(policy, TRAPO, some_groups(), temperature=1.0, longest=longest)
    assert report is not None and report.longest == longest and report.gradient_error < 1e-4
    monkeypatch.setattr(tree_attention, "chain_layout", without_terms)
    if is_right:
        check_packing(policy, TRAPO, some_groups(), temperature=1.0, longest=longest)
    else:
        with pytest.raises(PackingError, match="gradients differ"):
            check_packing(policy, TRAPO, some_groups(), temperature=1.0, longest=longest)
    assert policy.model.get_base_model().config._attn_implementation == "packed_tree"


DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
}


def leaking_scan(recurrence: TreeRecurrence, scan: Scan, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Scan the batch as one row: a chain starts from the state of whatever stands before it."""
    return scan(list(inputs), None)[0]


def leaking_convolution(recurrence: TreeRecurrence, convolution, inputs: torch.Tensor, *, num_before: int):
    return convolution(inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "leaking"), [("scan", leaking_scan), ("convolve", leaking_convolution)])
def test_a_recurrent_state_that_leaks_from_a_sibling_is_found(
    name: str, leaking: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(Qwen3_5TextConfig(**SIZES, **DELTA_NET))
    report = check_packing(policy, TRAPO, some_groups(), temperature=1.0, longest=60)
    assert report is not None and report.gradient_error < 1e-4
    monkeypatch.setattr(TreeRecurrence, name, leaking)
    with pytest.raises(PackingError, match="gradients differ"):
        check_packing(policy, TRAPO, some_groups(), temperature=1.0, longest=60)


@pytest.mark.slow
@pytest.mark.parametrize(("longest", "is_right"), [(280, True), (281, False)])
def test_longrope_is_found_as_soon_as_one_row_goes_past_its_original_length(
    longest: int, is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {**SIZES, "original_max_position_embeddings": 280, "rope_parameters": longrope(280), "sliding_window": None}
    monkeypatch.setattr(tree_attention, "refuse_unknown", lambda module, options: None)
    monkeypatch.setattr(policy_module, "check_fixed_rope", lambda *_, **__: None)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(Phi3Config(**sizes), attn_implementation="packed_tree", dtype=torch.float32)
    policy = Policy(base, LoraSection(r=4, alpha=8), **OPTIONS)
    if is_right:
        report = check_packing(policy, TRAPO, some_groups(), temperature=1.0, longest=longest)
        assert report is not None and report.gradient_error < 1e-4
    else:
        with pytest.raises(PackingError, match=f"the longest with {longest} tokens"):
            check_packing(policy, TRAPO, some_groups(), temperature=1.0, longest=longest)


# ----- the long rollout


def test_the_rollout_that_moves_the_policy_most_grows_and_comes_first() -> None:
    small = make_group(GRPO, [rollout([1, 2], [], [3, 4], slot=slot, reward=float(slot == 1)) for slot in range(4)])
    long = lengthened(small, 50)
    assert [r.slot for r in long.rollouts] == [1, 0, 2, 3]
    assert long.advantages == (0.75, -0.25, -0.25, -0.25)
    first = long.rollouts[0]
    assert first.prompt_ids == (1, 2) and first.completion_ids[:2] == (3, 4) and len(first.completion_ids) == 48
    assert set(first.completion_ids) <= {1, 2, 3, 4} and len(first.completion_logprobs) == 48
    assert long.rollouts[1:] == (small.rollouts[0], *small.rollouts[2:])
    assert lengthened(small, 4) == small


@pytest.mark.slow
def test_where_only_the_expert_is_trained_its_solution_grows() -> None:
    small = make_group(TRAPO, [rollout([1, 2], [3, 4, 5], [])])
    [long] = lengthened(small, 20).rollouts
    assert long.prefix_ids[:3] == (3, 4, 5) and len(long.prefix_ids) == 18 and not long.completion_ids
    report = check_packing(make_policy(), TRAPO, [small], temperature=1.0, longest=400)
    assert report is not None and report.longest == 400 and report.gradient_error < 1e-4


@pytest.mark.slow
def test_only_the_ends_of_the_long_rollout_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows hold the logits of all trained tokens at once."""
    sizes = []
    row_logprobs = Policy.row_logprobs

    def counted(policy: Policy, batch, **options):
        sizes.append(len(batch.trained))
        return row_logprobs(policy, batch, **options)

    monkeypatch.setattr(Policy, "row_logprobs", counted)
    algorithm = AlgorithmSection(prefix_loss="none").build()
    check_packing(make_policy(), algorithm, some_groups(), temperature=1.0, longest=500)
    assert max(sizes) <= PROMPT + PREFIX + COMPLETION + COMPLETION


@pytest.mark.slow
def test_memory_that_runs_out_leaves_the_small_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = packing_check._compare

    def short_of_memory(policy, algorithm, group, **options):
        if num_tokens(group) >= LONGEST:
            raise MemoryError
        return compare(policy, algorithm, group, **options)

    monkeypatch.setattr(packing_check, "_compare", short_of_memory)
    report = check_packing(make_policy(), TRAPO, some_groups(), temperature=1.0, longest=LONGEST)
    assert report is not None and report.longest < 100


@pytest.mark.slow
def test_a_model_without_sdpa_is_checked_as_far_as_its_scores_have_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "MAX_EAGER_SCORES", 4 * 100**2)
    policy = make_policy()
    assert policy.longest_row(500) == 500
    with policy.own_attention(longest=100):
        assert policy.model.get_base_model().config._attn_implementation == "eager"
    with policy.own_attention(longest=101):
        assert policy.model.get_base_model().config._attn_implementation == "sdpa"
    monkeypatch.setattr(type(policy.model.get_base_model()), "_supports_sdpa", False)
    assert policy.longest_row(500) == 100
