"""Hold graded answers, and how often a policy solves problems without guidance."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from trapo_lite.core.types import Mean, Rollout, VerdictKind
from trapo_lite.evaluation import scores
from trapo_lite.reward.spelling import spelling


@dataclass(frozen=True)
class Answer:
    """An Answer is one draw, one line of the results, with all that is needed to grade it again.

    completion: its text, without special tokens;  answer: the part of it that was graded
    reward: by the reward functions; None: there is none, or the line is of an older version
    """

    problem_id: str
    sample: int
    completion: str
    verdict: VerdictKind
    answer: str | None
    finish_reason: str
    num_tokens: int
    gold: str
    reward: float | None = None

    @property
    def is_correct(self) -> bool:
        return self.verdict == "correct"

    @classmethod
    def of(cls, rollout: Rollout, gold: str, decode: Callable[[Sequence[int]], str]) -> "Answer":
        return cls(
            problem_id=rollout.problem_id,
            sample=rollout.slot,
            completion=decode(rollout.completion_ids),
            verdict=rollout.verdict.kind,
            answer=rollout.verdict.answer,
            finish_reason=rollout.finish_reason,
            num_tokens=len(rollout.completion_ids),
            gold=gold,
            reward=rollout.reward,
        )

    def to_row(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_row(cls, row: Any) -> "Answer":
        """Return the answer that `to_row` wrote. Raise ValueError for anything else."""
        if not isinstance(row, dict) or row.keys() | {"reward"} != {field.name for field in fields(cls)}:
            raise ValueError("it is no answer, or not of this version")
        answer = cls(**row)
        texts = (answer.problem_id, answer.completion, answer.finish_reason, answer.gold)
        are_texts = all(isinstance(text, str) for text in texts) and isinstance(answer.answer, str | None)
        are_counts = all(type(count) is int and count >= 0 for count in (answer.sample, answer.num_tokens))
        is_number = answer.reward is None or isinstance(answer.reward, (int, float))
        if not (are_texts and are_counts and is_number and answer.verdict in get_args(VerdictKind)):
            raise ValueError(f"its fields are not those of an answer: {row!r:.200}")
        return answer


@dataclass(frozen=True)
class EvalResult:
    """Hold all answers by problem, equally many for each. Shares are NaN without problems. seed: of the bootstrap."""

    groups: tuple[tuple[Answer, ...], ...]
    seed: int

    @property
    def answers(self) -> list[Answer]:
        return [answer for group in self.groups for answer in group]

    @property
    def num_samples(self) -> int:
        return len(self.groups[0]) if self.groups else 0

    @property
    def problem_accuracies(self) -> list[float]:
        """Return the share of correct samples of each problem."""
        return self.problem_pass_rates(1)

    def problem_pass_rates(self, k: int) -> list[float]:
        """Return pass@k of each problem."""
        return [scores.pass_at_k(len(group), sum(a.is_correct for a in group), k) for group in self.groups]

    @property
    def looks_for_answers(self) -> bool:
        """Return whether the function that decides what is correct looks for an answer in the responses."""
        return any(answer.answer is not None or answer.verdict == "no_answer" for answer in self.answers)

    @property
    def problem_majorities(self) -> list[float]:
        """Return maj@k of each problem, over all its samples. Answers with the same spelling are one answer."""
        return [
            scores.majority_at_k(
                [None if a.answer is None else spelling(a.answer) for a in group], [a.is_correct for a in group]
            )
            for group in self.groups
        ]

    @property
    def accuracy(self) -> float:
        """Return the mean over problems of the mean over samples (avg@k)."""
        return scores.mean(self.problem_accuracies)

    @property
    def interval_95(self) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy on such problems."""
        return scores.interval_95(self.problem_accuracies, seed=self.seed)

    @property
    def verdicts(self) -> dict[str, int]:
        """Return the number of answers by verdict."""
        return dict(sorted(Counter(answer.verdict for answer in self.answers).items()))

    @property
    def no_answer_share(self) -> float:
        return scores.mean([answer.verdict == "no_answer" for answer in self.answers])

    @property
    def truncated_share(self) -> float:
        """Return the share of answers cut at the length limit."""
        return scores.mean([answer.finish_reason == "length" for answer in self.answers])

    @property
    def mean_tokens(self) -> float:
        return scores.mean([answer.num_tokens for answer in self.answers])

    @property
    def mean_reward(self) -> float:
        """Return the mean reward of the answers that have one."""
        return scores.mean([answer.reward for answer in self.answers if answer.reward is not None])

    def metrics(self) -> dict[str, Mean]:
        """Return sums under names of `metrics.TABLE`, to be added up over ranks."""
        correct = sum(answer.is_correct for answer in self.answers)
        cut = sum(answer.finish_reason == "length" for answer in self.answers)
        late = sum(answer.verdict == "timeout" for answer in self.answers)
        counts = {"eval/accuracy": correct, "eval/truncated": cut, "eval/timeout": late}
        rewards = [answer.reward for answer in self.answers if answer.reward is not None]
        shares = {name: Mean(float(count), len(self.answers)) for name, count in counts.items()}
        return shares | {"eval/reward": Mean(sum(rewards), len(rewards))}

    def summary(self) -> dict[str, Any]:
        """Return the numbers for JSON, null if there is no data. `accuracy` is avg@num_samples.

        majority: null too if the verdicts are not about answers, so that there is nothing to vote on
        """
        numbers: dict[str, Any] = {
            "accuracy": self.accuracy,
            "reward": None if math.isnan(self.mean_reward) else self.mean_reward,
            "interval_95": list(self.interval_95),
            "no_answer": self.no_answer_share,
            "truncated": self.truncated_share,
            "mean_tokens": self.mean_tokens,
        }
        if not self.groups:
            numbers = dict.fromkeys(numbers)
        elif self.num_samples > 1:
            numbers |= {
                "pass_at_k": {str(k): self._with_interval(self.problem_pass_rates(k)) for k in self._powers_of_two()},
                "majority": self._with_interval(self.problem_majorities) if self.looks_for_answers else None,
            }
        counts = {"num_problems": len(self.groups), "num_samples": self.num_samples, "verdicts": self.verdicts}
        return counts | numbers

    def _with_interval(self, values: Sequence[float]) -> dict[str, Any]:
        return {"value": scores.mean(values), "interval_95": list(scores.interval_95(values, seed=self.seed))}

    def _powers_of_two(self) -> list[int]:
        """Return 1, 2, 4, ... and the number of samples."""
        powers = [2**n for n in range(self.num_samples.bit_length()) if 2**n < self.num_samples]
        return [*powers, self.num_samples]
