"""The packed tree, on trees written as token lists, and on random ones against a trie made of dictionaries."""

import random
from collections import defaultdict
from collections.abc import Sequence

import pytest
import torch
from builders import random_rollouts, rollout
from dense_attention import dense_mask

from trapo_lite.core.batching import balance, bucket, num_tokens, split
from trapo_lite.core.tree import PackedBatch, chains_of, pack
from trapo_lite.core.types import Group, Rollout


def group(
    *rollouts: Rollout, advantages: Sequence[float] | None = None, weights: Sequence[float] | None = None
) -> Group:
    return Group(
        rollouts,
        tuple(advantages if advantages is not None else [0.0] * len(rollouts)),
        tuple(weights if weights is not None else [1.0] * len(rollouts)),
    )


def drawn(batch: PackedBatch) -> list[str]:
    """The tree as a reader would draw it: a token a line, indented by its depth."""
    rows = zip(batch.position.tolist(), batch.input_ids.tolist(), strict=True)
    return [". " * depth + str(token) for depth, token in rows]


def paths(batch: PackedBatch) -> list[tuple[int, ...]]:
    """For each packed token, the tokens from its root down to itself."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(batch.input_ids.tolist(), batch.parent.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


# The group most tests below use. Two traces that begin alike (5 6 | 5 8), a prefix inside another, a completion that
# begins like the expert (5), two that begin alike (20), and one of no tokens.
FREE_1 = rollout([1, 2], [], [20, 21])
FREE_2 = rollout([1, 2], [], [20])
LIKE_THE_EXPERT = rollout([1, 2], [], [5, 6])
SHORT_DUPLICATE = rollout([1, 2], [5, 6], [30], train_prefix=False)
SHORT = rollout([1, 2], [5, 6], [31, 32])
LONG = rollout([1, 2], [5, 6, 7], [])
OTHER_TRACE = rollout([1, 2], [5, 8, 9], [], train_prefix=True)
GROUP = group(
    FREE_1,
    FREE_2,
    LIKE_THE_EXPERT,
    SHORT_DUPLICATE,
    SHORT,
    LONG,
    OTHER_TRACE,
    advantages=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
    weights=[1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0],
)


def test_a_tree_by_eye() -> None:
    batch = pack([GROUP])
    assert drawn(batch) == [
        "1",
        ". 2",
        ". . 20",  # 2: the free rollouts' completions, not shared although they begin alike
        ". . . 21",
        ". . 20",
        ". . 5",
        ". . . 6",
        ". . 5",  # 7: the traces' common beginning
        ". . . 6",
        ". . . . 30",
        ". . . . 31",
        ". . . . . 32",
        ". . . . 7",  # 12: the longer prefix goes on
        ". . . 8",
        ". . . . 9",
    ]
    assert batch.parent.tolist() == [-1, 0, 1, 2, 1, 1, 5, 1, 7, 8, 8, 10, 8, 7, 13]
    assert batch.subtree_end.tolist() == [15, 15, 4, 4, 5, 7, 7, 15, 13, 10, 12, 12, 13, 15, 15]


def test_what_each_token_of_it_weighs() -> None:
    batch = pack([GROUP])
    #                     prompt  free completions  5    6    own        7    8    9
    assert batch.prefix_weight_sum.tolist() == [0, 0, 0, 0, 0, 0, 0, 12.0, 7.0, 0, 0, 0, 4.0, 5.0, 5.0]
    assert batch.prefix_count.tolist() == [0, 0, 0, 0, 0, 0, 0, 3, 2, 0, 0, 0, 1, 1, 1]
    assert batch.multiplicity.tolist() == [0, 0, 1, 1, 1, 1, 1, 4, 3, 1, 1, 1, 1, 1, 1]
    own = {2: 0.1, 3: 0.1, 4: 0.2, 5: 0.3, 6: 0.3, 9: 0.4, 10: 0.5, 11: 0.5}
    assert torch.nonzero(batch.is_completion).flatten().tolist() == list(own)
    torch.testing.assert_close(batch.advantage, torch.tensor([own.get(index, 0.0) for index in range(15)]))
    assert batch.trained.tolist() == list(range(2, 15))


def test_sampler_logprobs_stand_at_their_tokens() -> None:
    batch = pack([group(rollout([1], [], [2, 3], logprobs=[-0.5, -0.25]), rollout([1], [4], [5], logprobs=[-2.0]))])
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5]
    assert batch.sampler_logprobs.tolist() == [0.0, -0.5, -0.25, 0.0, -2.0]


def test_a_whole_trace_next_to_its_own_beginning_is_stored_once() -> None:
    batch = pack([group(rollout([1], [5, 6, 7, 0], []), rollout([1], [5, 6], [9]), rollout([1], [5], [8]))])
    assert drawn(batch) == ["1", ". 5", ". . 8", ". . 6", ". . . 9", ". . . 7", ". . . . 0"]


def test_two_problems_stand_end_to_end_and_share_nothing() -> None:
    batch = pack([group(rollout([1, 2], [], [3])), group(rollout([1, 2], [], [3]))])
    assert drawn(batch) == ["1", ". 2", ". . 3", "1", ". 2", ". . 3"]
    assert batch.parent.tolist() == [-1, 0, 1, -1, 3, 4]
    assert not dense_mask(batch)[3:, :3].any()


def test_a_group_whose_completions_are_all_empty_is_its_prompt() -> None:
    empty = group(rollout([1, 2, 3], [], []), rollout([1, 2, 3], [], []))
    batch = pack([empty])
    assert drawn(batch) == ["1", ". 2", ". . 3"]
    assert batch.trained.tolist() == []
    assert num_tokens(empty) == 3


def test_different_prompts_in_a_group_are_refused() -> None:
    with pytest.raises(ValueError, match="problem p have different prompts"):
        pack([group(rollout([1], [], [2]), rollout([2], [], [2]))])


# ----- visibility


def check_visibility_is_ancestry(batch: PackedBatch) -> None:
    sees = dense_mask(batch)
    for index in range(batch.num_tokens):
        ancestors, at = set(), index
        while at >= 0:
            ancestors.add(at)
            at = int(batch.parent[at])
        assert set(torch.nonzero(sees[index]).flatten().tolist()) == ancestors
        assert int(batch.position[index]) == len(ancestors) - 1


def random_batch(seed: int) -> tuple[list[Group], PackedBatch]:
    rng = random.Random(seed)
    groups = []
    for number in range(rng.randint(1, 3)):
        rollouts = random_rollouts(rng, vocab_size=3, problem_id=str(number))  # few tokens: many accidental beginnings
        weights = [rng.uniform(-1, 1) for _ in rollouts]
        groups.append(group(*rollouts, advantages=[rng.uniform(-1, 1) for _ in rollouts], weights=weights))
    return groups, pack(groups)


@pytest.mark.parametrize("seed", range(20))
def test_a_token_sees_its_ancestors_and_itself(seed: int) -> None:
    check_visibility_is_ancestry(random_batch(seed)[1])


@pytest.mark.parametrize("shift", [-1, 1])
def test_the_visibility_test_can_fail(shift: int) -> None:
    """A subtree that ends one too early or too late: an own child unseen, a sibling seen."""
    batch = pack([GROUP])
    wrong = batch.subtree_end.clone()
    wrong[2] += shift
    with pytest.raises(AssertionError):
        check_visibility_is_ancestry(PackedBatch(**{**vars(batch), "subtree_end": wrong}))


@pytest.mark.parametrize("seed", range(20))
def test_chains_of_are_the_same_visibility(seed: int) -> None:
    batch = random_batch(seed)[1]
    sees, covered = torch.zeros(batch.num_tokens, batch.num_tokens, dtype=torch.bool), []
    chains = chains_of(batch)
    for start, end, above in chains:
        covered += range(start, end)
        sees[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        for begin, stop, _ in (chains[number] for number in above):
            sees[start:end, begin:stop] = True
    assert covered == list(range(batch.num_tokens))
    assert torch.equal(sees, dense_mask(batch))


def test_chains_of_of_the_tree_by_eye() -> None:
    assert chains_of(pack([GROUP])) == [
        (0, 2, []),
        (2, 4, [0]),
        (4, 5, [0]),
        (5, 7, [0]),
        (7, 8, [0]),
        (8, 9, [0, 4]),
        (9, 10, [0, 4, 5]),
        (10, 12, [0, 4, 5]),
        (12, 13, [0, 4, 5]),
        (13, 15, [0, 4]),
    ]


# ----- against a trie of dictionaries


def expected_weights(groups: Sequence[Group]) -> dict[tuple, list[float]]:
    """(problem, path of an expert token) -> [prefix weight, prefix count, multiplicity], straight from the rollouts."""
    table: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for part in groups:
        for member, weight in zip(part.rollouts, part.prefix_weights, strict=True):
            for end in range(1, len(member.prefix_ids) + 1):
                entry = table[(member.problem_id, member.prompt_ids + member.prefix_ids[:end])]
                entry[0] += weight * member.train_prefix
                entry[1] += member.train_prefix
                entry[2] += 1
    return dict(table)


def packed_weights(batches: Sequence[Sequence[Group]]) -> dict[tuple, list[float]]:
    table: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for groups in batches:
        for part in groups:  # one tree at a time, so that a path names its problem
            batch = pack([part])
            for index, path in enumerate(paths(batch)):
                if batch.multiplicity[index] > 0 and not batch.is_completion[index]:
                    entry = table[(part.rollouts[0].problem_id, path)]
                    entry[0] += batch.prefix_weight_sum[index].item()
                    entry[1] += batch.prefix_count[index].item()
                    entry[2] += batch.multiplicity[index].item()
    return dict(table)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_weights_add_up_over_any_split(seed: int) -> None:
    groups, _ = random_batch(seed)
    expected = expected_weights(groups)
    for budget in (1, 20, 40, 80, 10_000):
        found = packed_weights(split(groups, budget=budget))
        assert found.keys() == expected.keys()
        for key, weights in expected.items():
            assert found[key] == pytest.approx(weights, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_every_rollout_is_a_path_with_its_own_advantage_whatever_the_split(seed: int) -> None:
    groups, _ = random_batch(seed)
    expected = sorted(
        (member.problem_id, member.prompt_ids + member.response_ids, member.completion_logprobs, advantage)
        for part in groups
        for member, advantage in zip(part.rollouts, part.advantages, strict=True)
        if member.completion_ids
    )
    for budget in (1, 20, 40, 80, 10_000):
        found = []
        for part in [part for batch in split(groups, budget=budget) for part in batch]:
            batch = pack([part])
            for index, path in enumerate(paths(batch)):
                is_last = index + 1 == batch.num_tokens or batch.parent[index + 1] != index
                if batch.is_completion[index] and is_last:
                    rows = [index]
                    while batch.is_completion[batch.parent[rows[0]]]:
                        rows.insert(0, int(batch.parent[rows[0]]))
                    assert len(set(batch.advantage[rows].tolist())) == 1
                    logprobs = tuple(batch.sampler_logprobs[rows].tolist())
                    found.append((part.rollouts[0].problem_id, path, logprobs, batch.advantage[index].item()))
        assert len(found) == len(expected)
        for one, other in zip(sorted(found), expected, strict=True):
            assert one[:2] == other[:2]
            assert one[2] == pytest.approx(other[2])  # float32 in the batch
            assert one[3] == pytest.approx(other[3])


# ----- sizes and budgets


@pytest.mark.parametrize("seed", range(12))
def test_sizes_are_known_without_packing_and_batches_keep_to_the_budget(seed: int) -> None:
    groups, batch = random_batch(seed)
    assert sum(num_tokens(part) for part in groups) == batch.num_tokens
    for budget in (1, 20, 40, 80, 10_000):
        batches = split(groups, budget=budget)
        assert all(parts for parts in batches)
        for parts in batches:
            size = pack(parts).num_tokens
            assert size == sum(num_tokens(part) for part in parts)
            assert size <= budget or (len(parts) == 1 and len(parts[0].rollouts) == 1)
        kept = [member for parts in batches for part in parts for member in part.rollouts]
        assert sorted(map(id, kept)) == sorted(id(member) for part in groups for member in part.rollouts)


def test_groups_that_fit_together_stay_whole() -> None:
    a, b, c = (group(rollout([1], [], [token] * 9)) for token in (2, 3, 4))  # ten tokens each
    assert split([a, b, c], budget=30) == [[a, b, c]]
    assert split([a, b, c], budget=29) == [[a, b], [c]]
    assert split([a, b, c], budget=10) == [[a], [b], [c]]
    assert split([a, b, c], budget=9) == [[a], [b], [c]]  # alone, over the budget
    assert split([], budget=9) == []


def test_batches_are_filled_the_largest_first() -> None:
    sizes = {size: group(rollout([1], [], [2] * (size - 1))) for size in (7, 6, 5, 4, 3, 2)}
    in_any_order = [sizes[size] for size in (2, 7, 3, 5, 4, 6)]
    assert split(in_any_order, budget=9) == [[sizes[7], sizes[2]], [sizes[6], sizes[3]], [sizes[5], sizes[4]]]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_every_rank_gets_about_as_many_tokens(num_ranks: int) -> None:
    rng = random.Random(num_ranks)
    groups = [group(rollout([1], [], [2] * rng.randint(1, 200))) for _ in range(40)]
    ranks = balance(groups, num_ranks=num_ranks)
    assert len(ranks) == num_ranks
    assert sorted(id(part) for rank in ranks for part in rank) == sorted(map(id, groups))
    loads = [sum(map(num_tokens, rank)) for rank in ranks]
    assert max(loads) - min(loads) <= min(map(num_tokens, groups)) + 10
    assert balance([], num_ranks=num_ranks) == [[]] * num_ranks


def test_a_bucket_holds_its_tokens_and_wastes_at_most_a_fifth_of_itself() -> None:
    sizes = {n: bucket(n) for n in range(1, 40_000)}
    assert all(size >= n for n, size in sizes.items())
    assert all(size <= max(1024, n * 1.25) for n, size in sizes.items())
    assert len(set(sizes.values())) <= 24
    assert all(size % 128 == 0 for size in sizes.values())  # FlexAttention's blocks


def test_a_split_group_repeats_its_trunk_but_not_its_weights() -> None:
    parts = [part for batch in split([GROUP], budget=7) for part in batch]
    assert len(parts) > 1
    assert sum(num_tokens(part) for part in parts) > num_tokens(GROUP)
    for column in ("prefix_weight_sum", "prefix_count", "multiplicity"):
        total = sum(getattr(pack([part]), column).sum() for part in parts)
        torch.testing.assert_close(total, getattr(pack([GROUP]), column).sum())


def test_tokens_saved_in_the_designs_example() -> None:
    """DESIGN 5: prompt 128, trace 1,024, completions 384, micro-groups 4, 2, 1, 1 at ratios 0, 1/4, 1/2, 1."""
    prompt, trace = [0] * 128, list(range(1, 1025))
    lengths = [0, 0, 0, 0, 256, 256, 512, 1024]
    members = [rollout(prompt, trace[:n], [7] * 384 if n < 1024 else []) for n in lengths]
    widest = max(len(member.prompt_ids + member.response_ids) for member in members)
    assert widest * len(members) == 9216
    assert num_tokens(group(*members)) == 128 + 1024 + 7 * 384 == 3840
    assert pack([group(*members)]).num_tokens == 3840


# ----- padding


def test_padding_rows_are_trees_of_their_own_that_weigh_nothing() -> None:
    batch, padded = pack([GROUP]), pack([GROUP], pad_to=20)
    assert padded.num_tokens == 20
    for name in vars(batch):
        if torch.is_tensor(getattr(batch, name)):
            assert torch.equal(getattr(padded, name)[:15], getattr(batch, name)), name
    assert (padded.num_padding, batch.num_padding) == (5, 0)
    assert padded.parent[15:].tolist() == [-1] * 5
    assert padded.position[15:].tolist() == [0] * 5
    assert padded.subtree_end[15:].tolist() == [16, 17, 18, 19, 20]
    assert torch.equal(dense_mask(padded)[15:], torch.eye(20, dtype=torch.bool)[15:])
    for name in ("prefix_weight_sum", "prefix_count", "multiplicity", "advantage", "sampler_logprobs", "is_completion"):
        assert not getattr(padded, name)[15:].any(), name
    assert torch.equal(padded.trained, batch.trained)
    check_visibility_is_ancestry(padded)


def test_columns_have_the_types_the_losses_expect() -> None:
    batch = pack([GROUP])
    integers = (batch.input_ids, batch.position, batch.parent, batch.subtree_end)
    floats = (batch.prefix_weight_sum, batch.prefix_count, batch.multiplicity, batch.advantage, batch.sampler_logprobs)
    assert {column.dtype for column in integers} == {torch.int64}
    assert {column.dtype for column in floats} == {torch.float32}
    assert batch.is_completion.dtype == torch.bool
    assert batch.old_logprobs is None and batch.to("cpu").old_logprobs is None


def test_completions_side_by_side_are_numbered_apart() -> None:
    """Prompt 1; completions 10 11 and 12 below it, one after the other; 13 below the prefix 20."""
    batch = pack([group(rollout([1], [], [10, 11]), rollout([1], [], [12]), rollout([1], [20], [13]))])
    number = dict(zip(batch.input_ids.tolist(), batch.completion.tolist(), strict=True))
    assert number[10] == number[11]
    assert len({number[10], number[12], number[13]}) == 3
