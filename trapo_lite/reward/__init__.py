r"""Judge responses in worker processes that can be killed.

    with MathVerifier(num_workers=2, deadline_seconds=5.0) as verifier:
        verdicts = verifier.grade([(r"... so \boxed{42}", "42")])
    with Scorer(config.reward) as scorer:
        scores = scorer.score([response])

`scorer` adds up what several functions return. `pool` gives responses to the processes (`worker_process`), and `guard`
ends them with the trainer. `worker` runs in them: it calls functions of the user's (`own`, whose files `own_modules`
imports), those that need no code (`builtin`), and for type math `grading`, which uses `extraction` (which
part of the text is the answer), `unboxed` (texts without a box), `notation` (one spelling for equal spellings),
`quantity` and `units` (exact numbers and their units) and `symbolic` (math-verify). `spelling` is what a vote counts.
docs/rewards.md shows the functions, docs/verifier.md has the rules of math.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapo_lite.core.types import Verdict
    from trapo_lite.reward.scorer import Scorer
    from trapo_lite.reward.verifier import MathVerifier

__all__ = ["MathVerifier", "Scorer", "Verdict"]


def __getattr__(name: str) -> object:
    """Import the parent's side on first use, because a worker imports this package too and must not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trapo_lite.reward import scorer, verifier

    return getattr(scorer if name == "Scorer" else verifier, name)
