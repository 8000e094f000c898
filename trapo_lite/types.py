"""The values that travel through the pipeline: data -> rollout -> reward -> advantage -> loss -> update.

Letters for shapes, everywhere: P problems, G rollouts of a problem, T packed tokens, K trained tokens, V vocabulary.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

FinishReason = Literal["stop", "length", "expert"]
VerdictKind = Literal["correct", "wrong", "no_answer", "timeout", "crash"]


@dataclass(frozen=True)
class Problem:
    """A prompt with a checkable answer and the expert's solutions to it.

    `expert_ids` holds one tuple of token ids per expert trace, EOS included; it may be empty.
    """

    id: str
    prompt_ids: tuple[int, ...]
    answer: str
    expert_ids: tuple[tuple[int, ...], ...] = ()
    source: str = ""


@dataclass(frozen=True)
class MicroGroup:
    """Rollouts of one problem that are drawn together, and when they start from an expert prefix (METHOD 3).

    help_below:  help if the mean return of all earlier rollouts of the problem is below this; None = always help.
    trace:       index of the expert trace the prefix is cut from; None = drawn at random. A problem with fewer traces
                 falls back to its first.
    num_trained: how many of the guided rollouts (the last ones) carry the prefix loss; None = all of them. The others
                 would only train the same prefix again.
    """

    num_rollouts: int
    prefix_ratio: float
    help_below: float | None
    trace: int | None = 0
    num_trained: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of one answer; `answer` is the span of text it judged."""

    kind: VerdictKind
    answer: str | None = None

    @property
    def is_correct(self) -> bool:
        return self.kind == "correct"


@dataclass(frozen=True)
class Rollout:
    """One member of a group: prompt + expert prefix (maybe empty, maybe everything) + the policy's own completion.

    `completion_logprobs` are the sampler's, one per completion token, under its temperature. `finish_reason` is
    "expert" when the prefix is the whole trace and nothing was generated. `slot` is the rollout's index in its group.
    """

    problem_id: str
    slot: int
    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    completion_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    trace: int | None
    train_prefix: bool
    adapter_version: int | None
    verdict: Verdict
    reward: float

    @property
    def is_guided(self) -> bool:
        return bool(self.prefix_ids)

    @property
    def response_ids(self) -> tuple[int, ...]:
        return self.prefix_ids + self.completion_ids


@dataclass(frozen=True)
class Mean:
    """A metric until it is written: a sum and a count, so that it can be added up over batches and ranks.

    >>> Mean(3.0, 2) + Mean(1.0, 2)
    Mean(total=4.0, count=4)
    """

    total: float
    count: float

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """NaN, never 0, where there was no data."""
        return self.total / self.count if self.count else float("nan")


@dataclass(frozen=True)
class PackedBatch:
    """Several problems' rollout trees end to end, every shared token once (DESIGN 5). All tensors have shape (T,).

    input_ids:        token
    position:         depth in its tree = RoPE position
    parent:           index of the token before it on its path, -1 at a root
    subtree_end:      one past the last token of its subtree; token k is visible to q  <=>  k <= q < subtree_end[k]
    prefix_weight:    sum over the rollouts that train this expert token of their weight (1, or their advantage)
    prefix_count:     how many rollouts train it: its share of the prefix normaliser
    multiplicity:     how many rollouts hold this response token; 0 on prompts and padding
    is_completion:    sampled by the policy
    advantage:        of the completion's rollout; 0 elsewhere
    sampler_logprobs: what the engine reported for a completion token; 0 elsewhere
    old_logprobs:     log-probs before the first update on this batch, or None: the current ones, detached
    num_padding:      how many of the last tokens only fill up
    """

    input_ids: Tensor
    position: Tensor
    parent: Tensor
    subtree_end: Tensor
    prefix_weight: Tensor
    prefix_count: Tensor
    multiplicity: Tensor
    is_completion: Tensor
    advantage: Tensor
    sampler_logprobs: Tensor
    old_logprobs: Tensor | None = None
    num_padding: int = 0

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[0]

    @property
    def trained(self) -> Tensor:
        """(K,) indices of the response tokens: those whose log-prob is computed."""
        return torch.nonzero(self.multiplicity > 0).squeeze(-1)

    @property
    def completion(self) -> Tensor:
        """(T,) which completion a completion token belongs to, numbered from 1 on; meaningless elsewhere."""
        before = torch.arange(-1, self.num_tokens - 1, device=self.parent.device)
        continues = torch.roll(self.is_completion, 1) & (self.parent == before) & (before >= 0)
        return torch.cumsum(self.is_completion & ~continues, dim=0)

    def to(self, device: torch.device | str) -> "PackedBatch":
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: column.to(device) for name, column in columns.items() if isinstance(column, Tensor)}
        return replace(self, **moved)
