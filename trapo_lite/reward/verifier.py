"""Compare answers with golds by the rules of `grading`, in worker processes."""

from collections.abc import Sequence
from concurrent.futures import Future

from trapo_lite.config import RewardSection
from trapo_lite.config.rewards import Math
from trapo_lite.core.types import Problem, Response, Verdict
from trapo_lite.reward.pool import WorkerPool
from trapo_lite.reward.scorer import combined, verdict_of


class MathVerifier:
    """Compare answers with golds by the rules of `grading` alone.

        with MathVerifier(num_workers=2, deadline_seconds=5.0) as verifier:
            verdicts = verifier.grade([(answer_text, gold), ...])      # in order
            ticket = verifier.submit(answer_text, gold)                # a Future of the same verdict

    require_box: an answer without a complete box is no_answer.   The other arguments are WorkerPool's.
    """

    def __init__(
        self,
        num_workers: int = 2,
        deadline_seconds: float = 5.0,
        *,
        require_box: bool = False,
        memory_limit_bytes: int = 2 << 30,
    ) -> None:
        self.pool = WorkerPool(
            [Math()], num_workers, deadline_seconds, require_box=require_box, memory_limit_bytes=memory_limit_bytes
        )

    @classmethod
    def from_config(cls, section: RewardSection) -> "MathVerifier":
        return cls(
            section.num_workers,
            section.deadline_seconds,
            require_box=section.require_box,
            memory_limit_bytes=section.memory_mb << 20,
        )

    def submit(self, answer_text: str, gold: str) -> "Future[Verdict]":
        """Queue one answer. The future fails with VerifierError if the verifier closes first or cannot start."""
        return combined(
            [self.pool.submit(0, Response(Problem("", (), gold), answer_text))], lambda all_: verdict_of(all_[0])
        )

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return the verdicts on (answer text, gold) pairs, in order, after the last one has arrived."""
        return [future.result() for future in [self.submit(text, gold) for text, gold in pairs]]

    def worker_pids(self) -> list[int]:
        return self.pool.worker_pids()

    def close(self) -> None:
        self.pool.close()

    def __enter__(self) -> "MathVerifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
