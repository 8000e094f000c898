"""Adaptive prefix selection: how much of an expert solution a rollout gets to see (METHOD 3)."""

from collections.abc import Callable, Sequence

from trapo_lite.types import MicroGroup


def prefix_ratio(micro_group: MicroGroup, returns_so_far: Sequence[float]) -> float:
    """The share of the expert trace to give now: the micro-group's ratio if the policy needs help, else 0.

    >>> guided = MicroGroup(num_rollouts=2, prefix_ratio=0.25, help_below=0.5)
    >>> prefix_ratio(guided, [1.0, 0.0, 0.0, 0.0]), prefix_ratio(guided, [1.0, 1.0, 0.0, 0.0])
    (0.25, 0.0)

    returns_so_far: returns of ALL earlier rollouts of the problem, guided ones included. Without any, there is no
    evidence that help is needed, unless help_below is None (always).   Source: METHOD 3; the official code has "<".
    """
    if micro_group.help_below is None:
        return micro_group.prefix_ratio
    if not returns_so_far:
        return 0.0
    mean_return = sum(returns_so_far) / len(returns_so_far)
    return micro_group.prefix_ratio if mean_return < micro_group.help_below else 0.0


def cut_prefix(
    token_ids: Sequence[int], ratio: float, is_boundary: Callable[[int], bool], *, slack: float = 0.3
) -> int:
    """How many tokens of an expert trace (EOS counted) to keep for a ratio, ending at a blank line where one is near.

    >>> cut_prefix([7] * 26 + [0] + [7] * 73, 0.25, lambda token: token == 0)
    27

    The first boundary token strictly after int(len * ratio) ends the prefix if its index is strictly below
    len * (ratio + slack); otherwise the prefix is cut at int(len * ratio). Ratio 0 keeps nothing, ratio 1 everything.
    Source: the official code, METHOD 3.
    """
    length = len(token_ids)
    if ratio <= 0.0:
        return 0
    if ratio >= 1.0:
        return length
    threshold = int(length * ratio)
    for index in range(threshold + 1, length):
        if index >= length * (ratio + slack):
            break
        if is_boundary(token_ids[index]):
            return index + 1
    return threshold
