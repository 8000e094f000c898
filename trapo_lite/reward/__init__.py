r"""Grade answers to mathematical problems in worker processes that can be killed.

    with MathVerifier(num_workers=2, deadline_seconds=5.0) as verifier:
        verdicts = verifier.grade([(r"... so \boxed{42}", "42")])

`pool` owns the processes, `worker` runs in them, and `grading` decides. It uses `extraction` (which part of the text
is the answer), `unboxed` (texts without a box), `notation` (one spelling for equal spellings), `quantity` and `units`
(exact numbers and their units) and `symbolic` (math-verify). `spelling` is what a vote counts. docs/verifier.md has
the rules.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapo_lite.core.types import Verdict
    from trapo_lite.reward.pool import MathVerifier

__all__ = ["MathVerifier", "Verdict"]


def __getattr__(name: str) -> object:
    """Import the parent's side on first use, because a worker imports this package too and must not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trapo_lite.reward import pool

    return getattr(pool, name)
