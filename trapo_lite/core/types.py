"""Define the values that pass through the pipeline: data -> rollout -> reward -> advantage -> loss -> update.

Letters for shapes in all docstrings: P problems, G rollouts of a problem, T packed tokens, K trained tokens, V
vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "expert"]
VerdictKind = Literal["correct", "wrong", "no_answer", "timeout", "crash"]


@dataclass(frozen=True)
class Problem:
    """A Problem is a prompt with a checkable answer and its expert solutions.

    `expert_ids` holds one tuple of token ids per expert solution (a trace), EOS included; it may be empty.
    """

    id: str
    prompt_ids: tuple[int, ...]
    answer: str
    expert_ids: tuple[tuple[int, ...], ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Verdict:
    """A Verdict is the verifier's decision on one answer; `answer` is the span of text that it judged."""

    kind: VerdictKind
    answer: str | None = None

    @property
    def is_correct(self) -> bool:
        return self.kind == "correct"


@dataclass(frozen=True)
class Rollout:
    """A Rollout is one member of a group: prompt, expert prefix and the policy's own completion.

    The prefix may be empty, or the whole trace. Then nothing was sampled and `finish_reason` is "expert".
    `completion_logprobs` are the sampler's, one per completion token, under its temperature. `slot` is the rollout's
    index in its group.
    """

    problem_id: str
    slot: int
    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    completion_ids: tuple[int, ...] = ()
    completion_logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason = "length"
    trace: int | None = None
    train_prefix: bool = False
    adapter_version: int | None = None
    verdict: Verdict = Verdict("no_answer")
    reward: float = 0.0

    @property
    def is_guided(self) -> bool:
        return bool(self.prefix_ids)

    @property
    def response_ids(self) -> tuple[int, ...]:
        return self.prefix_ids + self.completion_ids


@dataclass(frozen=True)
class Mean:
    """A Mean is a metric before it is written: a sum and a count, which can be added up over batches and ranks.

    >>> Mean(3.0, 2) + Mean(1.0, 2)
    Mean(total=4.0, count=4)
    """

    total: float
    count: float

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """Return the mean; NaN, never 0, if there was no data."""
        return self.total / self.count if self.count else float("nan")


@dataclass(frozen=True)
class Group:
    """A Group holds a problem's rollouts, each with its advantage and the weight of its prefix loss."""

    rollouts: tuple[Rollout, ...]
    advantages: tuple[float, ...]
    prefix_weights: tuple[float, ...]

    def subset(self, members: Sequence[int]) -> "Group":
        """Return the group of these members, in this order."""
        return Group(
            rollouts=tuple(self.rollouts[member] for member in members),
            advantages=tuple(self.advantages[member] for member in members),
            prefix_weights=tuple(self.prefix_weights[member] for member in members),
        )
