"""Adaptive prefix selection decides how much of an expert solution a rollout starts from (METHOD 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MicroGroup:
    """A MicroGroup describes rollouts of one problem that are drawn together, and when they get a prefix (METHOD 3).

    prefix_ratio: share of the expert trace (an expert solution as tokens) that the prefix holds.
    help_below:   give the prefix if the mean reward of all earlier rollouts of the problem is lower; None = always.
    trace:        index of the expert trace that the prefix is cut from; None = drawn at random. A problem with fewer
                  traces uses its first.
    num_trained:  how many of its guided rollouts, the last ones, carry the prefix loss; None = all of them. They share
                  one prefix, so several of them train the same tokens several times.
    drawn_from:   ratios of which one is drawn for each problem and step; prefix_ratio is then the largest of them.
                  Empty: the ratio is prefix_ratio.
    otherwise:    what becomes of its rollouts where no prefix is given: they are drawn without one, or not at all.
    help_probability: with this probability a prefix is given where it would be (core/utility.py).
    prefix_weight:    factor of the prefix loss of its rollouts (core/utility.py).
    prefix_in:    where a prefix stands: the answer begins with it, or the prompt shows it (POPE).
    replaces_rl:  where a prefix is given, the problem's own tokens are not trained (HPT).
    """

    num_rollouts: int
    prefix_ratio: float
    help_below: float | None
    trace: int | None = 0
    num_trained: int | None = None
    drawn_from: tuple[float, ...] = ()
    otherwise: Literal["unguided", "skip"] = "unguided"
    prefix_in: Literal["answer", "prompt"] = "answer"
    replaces_rl: bool = False
    help_probability: float = 1.0
    prefix_weight: float = 1.0


PRESETS: dict[str, tuple[MicroGroup, ...]] = {
    # arXiv:2512.17636, section 3: every guided rollout carries the prefix loss, the trace is drawn at random.
    "paper": (
        MicroGroup(4, 0.0, 0.0),
        MicroGroup(2, 0.2, 0.5, trace=None),
        MicroGroup(1, 0.5, 0.7, trace=None),
        MicroGroup(1, 1.0, 0.9, trace=None),
    ),
    # The official code compares sums of 0/1 returns: S4 < 2, S6 < 4, S7 < 7. The mean 4 / 6 and 2 / 3 are the same
    # float, so "<" is exact here. A threshold rounded up from 2 / 3 would help at S6 = 4.
    "reference_code": (
        MicroGroup(4, 0.0, 0.0),
        MicroGroup(2, 0.25, 0.5, trace=0, num_trained=1),
        MicroGroup(1, 0.5, 2 / 3, trace=0),
        MicroGroup(1, 1.0, 1.0, trace=1),
    ),
}


def micro_group_of_slots(micro_groups: Sequence[MicroGroup]) -> list[int]:
    """Return the index of the micro-group that each slot of a group is in.

    >>> micro_group_of_slots(PRESETS["paper"])
    [0, 0, 0, 0, 1, 1, 2, 3]
    """
    return [index for index, group in enumerate(micro_groups) for _ in range(group.num_rollouts)]


def prefix_ratio(micro_group: MicroGroup, returns_so_far: Sequence[float]) -> float:
    """Return the share of the expert trace to give now: the micro-group's ratio if the policy needs help, else 0.

    >>> guided = MicroGroup(num_rollouts=2, prefix_ratio=0.25, help_below=0.5)
    >>> prefix_ratio(guided, [1.0, 0.0, 0.0, 0.0]), prefix_ratio(guided, [1.0, 1.0, 0.0, 0.0])
    (0.25, 0.0)

    returns_so_far: rewards of ALL earlier rollouts of the problem, guided ones included. If there are none, the ratio
    is 0 unless help_below is None.   Source: METHOD 3; the official code has "<".
    """
    if micro_group.help_below is None:
        return micro_group.prefix_ratio
    if not returns_so_far:
        return 0.0
    mean_reward = sum(returns_so_far) / len(returns_so_far)
    return micro_group.prefix_ratio if mean_reward < micro_group.help_below else 0.0


def cut_prefix(
    token_ids: Sequence[int], ratio: float, is_boundary: Callable[[int], bool], *, slack: float = 0.3
) -> int:
    """Return how many tokens of an expert trace, EOS counted, the prefix keeps; it ends at a near blank line, if any.

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
