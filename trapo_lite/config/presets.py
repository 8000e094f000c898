"""The two published schedules of adaptive prefix selection (the paper, section 3)."""

from trapo_lite.types import MicroGroup

PRESETS: dict[str, tuple[MicroGroup, ...]] = {
    # arXiv:2512.17636, section 3: every guided rollout carries the prefix loss, the trace is drawn at random.
    "paper": (
        MicroGroup(4, 0.0, 0.0),
        MicroGroup(2, 0.2, 0.5, trace=None),
        MicroGroup(1, 0.5, 0.7, trace=None),
        MicroGroup(1, 1.0, 0.9, trace=None),
    ),
    # The official code decides on sums of 0/1 returns: S4 < 2, S6 < 4, S7 < 7. A mean of 4/6 and 2 / 3 are the same
    # float, so "<" is exact here; 2/3 rounded up to any number of decimals would help at S6 = 4.
    "reference_code": (
        MicroGroup(4, 0.0, 0.0),
        MicroGroup(2, 0.25, 0.5, trace=0, num_trained=1),
        MicroGroup(1, 0.5, 2 / 3, trace=0),
        MicroGroup(1, 1.0, 1.0, trace=1),
    ),
}
