"""Cut the groups of a step into batches that fit the memory, and distribute them over the processes.

Where a teacher reads longer prompts, a group is as large as its larger tree (`pass_tokens`).
"""

from collections.abc import Sequence

from trapo_lite.core.tree import common_length
from trapo_lite.core.types import Group


def cut(groups: Sequence[Group], *, budget: int) -> list[Group]:
    """Return groups whose trees hold at most `budget` tokens; larger ones are cut along their branches.

    Each part repeats the tokens that its branches share. A single rollout larger than the budget is not cut.
    """
    return [part for group in groups for part in _parts(group, budget)]


def by_prompt(groups: Sequence[Group]) -> list[Group]:
    """Return groups whose rollouts have one prompt each; a problem of several prompts becomes several of them."""
    parts = []
    for group in groups:
        members: dict[tuple[int, ...], list[int]] = {}
        for member, rollout in enumerate(group.rollouts):
            members.setdefault(rollout.prompt_ids, []).append(member)
        parts += [group] if len(members) == 1 else [group.subset(of_prompt) for of_prompt in members.values()]
    return parts


def balance(groups: Sequence[Group], *, num_ranks: int) -> list[list[Group]]:
    """Distribute groups so that all ranks have about equally many tokens.

    The largest group comes first, and each goes to the rank with the fewest tokens. The fullest rank then has at most
    4/3 - 1/(3 num_ranks) times what it has in the best distribution (Graham 1969).
    """
    ranks: list[list[Group]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for group in sorted(groups, key=pass_tokens, reverse=True):
        least = loads.index(min(loads))
        ranks[least].append(group)
        loads[least] += pass_tokens(group)
    return ranks


def split(groups: Sequence[Group], *, budget: int) -> list[list[Group]]:
    """Cut groups (`cut`) and put the parts into few batches whose packed trees hold at most `budget` tokens each.

    This is first fit, the largest first: every part goes to the first batch that has room for it.
    """
    batches: list[list[Group]] = []
    room: list[int] = []
    for part in sorted(cut(groups, budget=budget), key=pass_tokens, reverse=True):
        size = pass_tokens(part)
        target = next((index for index, free in enumerate(room) if size <= free), len(batches))
        if target == len(batches):
            batches.append([])
            room.append(budget)
        batches[target].append(part)
        room[target] -= size
    return batches


def bucket(num_tokens: int) -> int:
    """Return a length to pad to: at most a quarter more, and one of four lengths between a number and its double.

    >>> [bucket(n) for n in (1, 1024, 1025, 5000, 8193)]
    [1024, 1024, 1280, 5120, 10240]
    """
    smallest = 1024
    step = max(smallest, 1 << (num_tokens - 1).bit_length()) // 8
    return max(smallest, -(-num_tokens // step) * step)


def _parts(group: Group, budget: int) -> list[Group]:
    if pass_tokens(group) <= budget:
        return [group]
    order = sorted(range(len(group.rollouts)), key=lambda member: group.rollouts[member].prefix_ids)
    parts: list[list[int]] = [[]]
    for member in order:
        if parts[-1] and pass_tokens(group.subset([*parts[-1], member])) > budget:
            parts.append([])
        parts[-1].append(member)
    return [group.subset(members) for members in parts]


def num_tokens(group: Group) -> int:
    """Return the number of tokens of the group's tree (prompt, trie of prefixes, completions) without building it."""
    shared = 0
    previous: tuple[int, ...] = ()
    for rollout in sorted(group.rollouts, key=lambda rollout: rollout.prefix_ids):
        shared += len(rollout.prefix_ids) - common_length([previous, rollout.prefix_ids], 0)
        previous = rollout.prefix_ids
    return len(group.rollouts[0].prompt_ids) + shared + sum(len(r.completion_ids) for r in group.rollouts)


def pass_tokens(group: Group) -> int:
    """Return the tokens of the group's larger tree: its own, or the same below the teacher's prompt."""
    first = group.rollouts[0]
    return num_tokens(group) + max(0, len(first.teacher_prompt_ids) - len(first.prompt_ids))
