"""Define the values that pass through the pipeline: data -> rollout -> reward -> advantage -> loss -> update.

Letters for shapes in all docstrings: P problems, G rollouts of a problem, T packed tokens, K trained tokens, V
vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "expert"]
VerdictKind = Literal["correct", "wrong", "no_answer", "timeout", "crash", "unjudged", "failed"]
"""timeout, crash: its process was killed at the deadline, or died.   unjudged: a function of the user's returned None.
failed: such a function raised an error, or returned what is no number."""


@dataclass(frozen=True)
class Problem:
    """A Problem is a prompt with a checkable answer and its expert solutions.

    `expert_ids` holds one tuple of token ids per expert solution (a trace), EOS included; it may be empty. `text` and
    `row`, the problem without template and the row's columns, are for reward functions. `source_index` is the place of
    its file among those that were loaded together, `system` the row's system message. `teacher_prompt_ids` is the
    prompt that a teacher reads in the place of `prompt_ids`; it is empty without a teacher.
    """

    id: str
    prompt_ids: tuple[int, ...]
    answer: str
    expert_ids: tuple[tuple[int, ...], ...] = ()
    source: str = ""
    text: str = field(default="", compare=False)
    row: Mapping[str, Any] = field(default_factory=dict, compare=False)
    source_index: int = field(default=0, compare=False)
    system: str | None = field(default=None, compare=False)
    teacher_prompt_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Response:
    """A Response is all that reward functions see of a rollout, in plain values.

    text:         expert prefix and completion, without special tokens
    is_truncated: whether it was cut at the length limit
    num_tokens:   of prefix and completion
    step:         updates done before it was drawn; -1 in an evaluation
    """

    problem: Problem
    text: str
    is_truncated: bool = False
    num_tokens: int = 0
    step: int = -1


@dataclass(frozen=True)
class Verdict:
    """A Verdict is the verifier's decision on one answer; `answer` is the span of text that it judged."""

    kind: VerdictKind
    answer: str | None = None

    @property
    def is_correct(self) -> bool:
        return self.kind == "correct"


@dataclass(frozen=True)
class Score:
    """A Score is what the reward functions make of one response.

    verdict: the first function's decision, by which accuracy is counted
    reward:  weighted sum of the parts; None: there is none, and the rollout gets no advantage
    parts:   (name, value) of each function; the value is None if it returned no number
    """

    verdict: Verdict
    reward: float | None
    parts: tuple[tuple[str, float | None], ...] = ()


@dataclass(frozen=True)
class Rollout:
    """A Rollout is one member of a group: prompt, expert prefix and the policy's own completion.

    The prefix may be empty, or the whole trace. Then nothing was sampled and `finish_reason` is "expert".
    `prefix_ratio` is the share of the trace that the prefix was cut for, `prefix_weight` a factor of its prefix loss.
    `num_shown` is how many expert tokens the prompt shows, where they are no part of the answer.
    `completion_logprobs` are the sampler's, one per completion token, under its temperature. `slot` is the rollout's
    index in its group. `reward` is None without a score: the rollout then gets no advantage. `is_masked` says that it
    gets none although its reward counts for the others. `teacher_prompt_ids` is the problem's.
    """

    problem_id: str
    slot: int
    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    completion_ids: tuple[int, ...] = ()
    completion_logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason = "length"
    trace: int | None = None
    prefix_ratio: float = 0.0
    train_prefix: bool = False
    prefix_weight: float = 1.0
    num_shown: int = 0
    adapter_version: int | None = None
    verdict: Verdict = Verdict("no_answer")
    reward: float | None = 0.0
    parts: tuple[tuple[str, float | None], ...] = ()
    is_masked: bool = False
    teacher_prompt_ids: tuple[int, ...] = ()

    @property
    def is_guided(self) -> bool:
        return bool(self.prefix_ids) or self.num_shown > 0

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
