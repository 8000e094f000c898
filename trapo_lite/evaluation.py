"""How often a policy solves problems by itself: independent unguided draws, graded, with an interval."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trapo_lite.engines.base import SamplingEngine
from trapo_lite.sampler import Sampler, SamplingSettings, Verifier
from trapo_lite.types import Mean, MicroGroup, Problem, Rollout

EVAL_STEP = -1  # no training step has this number, so no evaluation draws with a training rollout's seeds
NUM_RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True)
class EvalResult:
    """problems[i] was answered by the rollouts groups[i], one a sample, equally many each. NaN without problems."""

    problems: tuple[Problem, ...]
    groups: tuple[tuple[Rollout, ...], ...]
    seed: int

    @property
    def rollouts(self) -> list[Rollout]:
        return [rollout for group in self.groups for rollout in group]

    @property
    def problem_accuracies(self) -> list[float]:
        """Share of a problem's samples that are correct."""
        return [sum(rollout.verdict.is_correct for rollout in group) / len(group) for group in self.groups]

    @property
    def accuracy(self) -> float:
        """Mean over problems of the mean over samples (avg@k)."""
        return _mean(self.problem_accuracies)

    @property
    def interval_95(self) -> tuple[float, float]:
        """Of the accuracy on problems like these: bootstrap over problems, or Wilson's where all or none of them were
        solved: every resample is the same then, and says nothing."""
        if self.groups and self.accuracy in (0.0, 1.0):
            return wilson_interval(int(self.accuracy) * len(self.groups), len(self.groups))
        return bootstrap_interval(self.problem_accuracies, seed=self.seed)

    @property
    def verdicts(self) -> dict[str, int]:
        """Verdict -> how many answers."""
        return dict(sorted(Counter(rollout.verdict.kind for rollout in self.rollouts).items()))

    @property
    def no_answer_share(self) -> float:
        return _mean([rollout.verdict.kind == "no_answer" for rollout in self.rollouts])

    @property
    def truncated_share(self) -> float:
        """Share of answers cut at the length limit."""
        return _mean([rollout.finish_reason == "length" for rollout in self.rollouts])

    @property
    def mean_tokens(self) -> float:
        return _mean([len(rollout.completion_ids) for rollout in self.rollouts])

    def metrics(self) -> dict[str, Mean]:
        """Names from `metrics.TABLE`, to be added up over ranks."""
        correct = sum(rollout.verdict.is_correct for rollout in self.rollouts)
        cut = sum(rollout.finish_reason == "length" for rollout in self.rollouts)
        late = sum(rollout.verdict.kind == "timeout" for rollout in self.rollouts)
        counts = {"eval/accuracy": correct, "eval/truncated": cut, "eval/timeout": late}
        return {name: Mean(float(count), len(self.rollouts)) for name, count in counts.items()}

    def summary(self) -> dict[str, Any]:
        """For JSON: null where there is no data."""
        numbers = {
            "accuracy": self.accuracy,
            "interval_95": list(self.interval_95),
            "no_answer": self.no_answer_share,
            "truncated": self.truncated_share,
            "mean_tokens": self.mean_tokens,
        }
        if not self.problems:
            numbers = dict.fromkeys(numbers)
        num_samples = len(self.groups[0]) if self.groups else 0
        counts = {"num_problems": len(self.problems), "num_samples": num_samples, "verdicts": self.verdicts}
        return counts | numbers

    def answers(self, decode: Callable[[Sequence[int]], str]) -> Iterator[dict[str, Any]]:
        """Every answer with its verdict, for JSON lines: enough to grade it again."""
        for problem, group in zip(self.problems, self.groups, strict=True):
            for rollout in group:
                yield {
                    "problem_id": problem.id,
                    "sample": rollout.slot,
                    "completion": decode(rollout.completion_ids),
                    "verdict": rollout.verdict.kind,
                    "answer": rollout.verdict.answer,
                    "finish_reason": rollout.finish_reason,
                    "num_tokens": len(rollout.completion_ids),
                    "gold": problem.answer,
                }


def evaluate_problems(
    engine: SamplingEngine,
    verifier: Verifier,
    problems: Sequence[Problem],
    *,
    num_samples: int,
    settings: SamplingSettings,
    decode: Callable[[Sequence[int]], str],
    on_progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Sample `num_samples` answers a problem from whatever the engine serves, and grade them.

    Each answer has its own seed, a function of (settings.seed, problem id, sample): so the draws are independent, none
    is drawn in training, and two checkpoints are compared with the same random numbers.
    """
    if num_samples < 1:
        raise ValueError(f"eval.num_samples: found {num_samples}; draw at least one answer a problem")
    sampler = Sampler(
        engine,
        verifier,
        micro_groups=[MicroGroup(num_samples, prefix_ratio=0.0, help_below=0.0)],
        settings=settings,
        decode=decode,
        is_boundary=lambda token_id: False,
    )
    groups, _ = sampler.sample(problems, step=EVAL_STEP, on_progress=on_progress)
    return EvalResult(tuple(problems), tuple(tuple(group) for group in groups), settings.seed)


def bootstrap_interval(values: Sequence[float], *, seed: int) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of the mean of `values` resampled with replacement.

    >>> bootstrap_interval([0.0, 1.0], seed=0)
    (0.0, 1.0)
    """
    if not values:
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    pool = torch.tensor(values, dtype=torch.float64)
    means = []
    for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE):
        draws = torch.randint(len(values), (RESAMPLES_AT_ONCE, len(values)), generator=generator)
        means.append(pool[draws].mean(dim=1))
    low, high = torch.quantile(torch.cat(means), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share.

    >>> low, high = wilson_interval(10, 10)
    >>> round(low, 3), round(high, 3)
    (0.722, 1.0)
    """
    z = 1.959964
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
