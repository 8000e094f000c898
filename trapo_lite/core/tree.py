"""The packed tree holds a problem's rollouts as one depth-first token tree; a batch holds several (DESIGN 5).

Rollouts of a problem share its prompt, and guided ones share nested prefixes of an expert trace (an expert solution as
tokens). Each shared token is stored once; sampled tokens are never shared. The attention mask follows from two integers
per token:

    token k is visible to token q  <=>  k <= q < subtree_end[k]
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from trapo_lite.core.types import Group


@dataclass(frozen=True)
class PackedBatch:
    """A PackedBatch holds several problems' rollout trees end to end; all tensors have shape (T,) (DESIGN 5).

    input_ids:         token
    position:          depth in its tree = RoPE position
    parent:            index of the token before it on its path, -1 at a root
    subtree_end:       one past the last token of its subtree; token k is visible to q  <=>  k <= q < subtree_end[k]
    prefix_weight_sum: sum of the weights (1, or the advantage) of the rollouts that train this expert token
    prefix_count:      how many rollouts train this expert token: its share of the prefix normaliser
    multiplicity:      how many rollouts hold this response token; 0 for prompts and padding
    is_completion:     whether the policy sampled this token
    advantage:         advantage of a completion token's rollout; 0 elsewhere
    sampler_logprobs:  log-prob that the engine reported for a completion token; 0 elsewhere
    is_masked:         whether this completion token's rollout is left untrained
    old_logprobs:      log-probs before the first update on this batch; None: the current ones, detached
    num_padding:       how many tokens at the end are padding
    teacher_logprobs:  log-probs of the teacher; None: there is no teacher, or `teacher` is asked
    teacher:           the same rollouts behind the teacher's prompts, a batch with the same trained tokens in the same
                       order; None: there is no teacher, or its log-probs are known
    """

    input_ids: Tensor
    position: Tensor
    parent: Tensor
    subtree_end: Tensor
    prefix_weight_sum: Tensor
    prefix_count: Tensor
    multiplicity: Tensor
    is_completion: Tensor
    advantage: Tensor
    sampler_logprobs: Tensor
    is_masked: Tensor
    old_logprobs: Tensor | None = None
    num_padding: int = 0
    teacher_logprobs: Tensor | None = None
    teacher: "PackedBatch | None" = None

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[0]

    @property
    def trained(self) -> Tensor:
        """Return the indices (K,) of the response tokens, whose log-probs are computed."""
        return torch.nonzero(self.multiplicity > 0).squeeze(-1)

    @property
    def tree(self) -> Tensor:
        """Return the number (T,) of the tree that each token is in, counted from 1."""
        return torch.cumsum(self.parent < 0, dim=0)

    @property
    def completion(self) -> Tensor:
        """Return the number (T,) of each completion token's completion, counted from 1; meaningless elsewhere."""
        before = torch.arange(-1, self.num_tokens - 1, device=self.parent.device)
        continues = torch.roll(self.is_completion, 1) & (self.parent == before) & (before >= 0)
        return torch.cumsum(self.is_completion & ~continues, dim=0)

    def to(self, device: torch.device | str) -> "PackedBatch":
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: column.to(device) for name, column in columns.items() if isinstance(column, Tensor)}
        return replace(self, **moved)


@dataclass
class _Columns:
    """A _Columns holds the columns of a PackedBatch while they grow, as plain lists with one entry per token."""

    input_ids: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    subtree_end: list[int] = field(default_factory=list)
    prefix_weight_sum: list[float] = field(default_factory=list)
    prefix_count: list[float] = field(default_factory=list)
    multiplicity: list[float] = field(default_factory=list)
    is_completion: list[bool] = field(default_factory=list)
    advantage: list[float] = field(default_factory=list)
    sampler_logprobs: list[float] = field(default_factory=list)
    is_masked: list[bool] = field(default_factory=list)

    def append_chain(
        self,
        token_ids: Sequence[int],
        *,
        parent: int,
        prefix_weight_sum: float = 0.0,
        prefix_count: float = 0.0,
        multiplicity: float = 0.0,
        advantage: float = 0.0,
        sampler_logprobs: Sequence[float] | None = None,
        is_masked: bool = False,
    ) -> int:
        """Add a chain of tokens below `parent`; return the index of its last token, or `parent` if there is none."""
        num, start = len(token_ids), len(self.input_ids)
        depth = self.position[parent] + 1 if parent >= 0 else 0
        self.input_ids.extend(token_ids)
        self.position.extend(range(depth, depth + num))
        self.parent.extend([parent, *range(start, start + num - 1)][:num])
        self.subtree_end.extend([0] * num)
        self.prefix_weight_sum.extend([prefix_weight_sum] * num)
        self.prefix_count.extend([prefix_count] * num)
        self.multiplicity.extend([multiplicity] * num)
        self.is_completion.extend([sampler_logprobs is not None] * num)
        self.advantage.extend([advantage] * num)
        self.sampler_logprobs.extend([0.0] * num if sampler_logprobs is None else sampler_logprobs)
        self.is_masked.extend([is_masked] * num)
        return start + num - 1 if num else parent

    def close(self, start: int) -> None:
        """Set the end of every open subtree whose first token is at `start` or later."""
        end = len(self.input_ids)
        for index in range(start, end):
            if self.subtree_end[index] == 0:
                self.subtree_end[index] = end


def pack(groups: Sequence[Group], *, pad_to: int | None = None) -> PackedBatch:
    """Lay the groups' trees end to end.

    Each rollout counts exactly once in the weights, so splitting a group over several calls (`split`) changes no sum.

    pad_to: add one-token trees without weight up to this many tokens. Every padding token attends to itself. Without
    groups the whole batch is padding.
    """
    columns = _Columns()
    for group in groups:
        _append_tree(columns, group)
    num_padding = max(0, (pad_to or 0) - len(columns.input_ids))
    for _ in range(num_padding):
        start = len(columns.input_ids)
        columns.append_chain([0], parent=-1)
        columns.close(start)
    float_columns = ("prefix_weight_sum", "prefix_count", "multiplicity", "advantage", "sampler_logprobs")
    tensors = {
        name: torch.tensor(values, dtype=torch.float32 if name in float_columns else None)
        for name, values in vars(columns).items()
    }
    return PackedBatch(**tensors, num_padding=num_padding, teacher=None)


def chains_of(batch: PackedBatch) -> list[tuple[int, int, list[int]]]:
    """Return the maximal unbranched chains as (start, end, indices of the chains above it, from the root down).

    Attention is causal within a chain, and every token of the chains above is visible. A chain ends where its last
    token has several children or none.
    """
    parent = batch.parent.cpu()
    index = torch.arange(batch.num_tokens)
    starts = torch.nonzero(parent != index - 1).squeeze(-1).tolist()
    branching = sorted({int(parent[start]) + 1 for start in starts if parent[start] >= 0})
    bounds = sorted({0, *starts, *branching, batch.num_tokens})
    chain_ending_at = {end - 1: chain for chain, end in enumerate(bounds[1:])}
    chains: list[tuple[int, int, list[int]]] = []
    for start, end in itertools.pairwise(bounds):
        above: list[int] = []
        if parent[start] >= 0:
            parent_chain = chain_ending_at[int(parent[start])]
            above = [*chains[parent_chain][2], parent_chain]
        chains.append((start, end, above))
    return chains


def _append_tree(columns: _Columns, group: Group) -> None:
    prompt = group.rollouts[0].prompt_ids
    if any(rollout.prompt_ids != prompt for rollout in group.rollouts):
        raise ValueError(f"pack: rollouts of problem {group.rollouts[0].problem_id} have different prompts")
    start = len(columns.input_ids)
    root = columns.append_chain(prompt, parent=-1)
    _append_branches(columns, group, list(range(len(group.rollouts))), depth=0, parent=root)
    columns.close(start)


def _append_branches(columns: _Columns, group: Group, members: list[int], *, depth: int, parent: int) -> None:
    """Add what is below `parent`, first completions, then branches; the members' prefixes agree up to `depth`."""
    branches: dict[int, list[int]] = {}
    for member in members:
        rollout = group.rollouts[member]
        if len(rollout.prefix_ids) > depth:
            branches.setdefault(rollout.prefix_ids[depth], []).append(member)
            continue
        start = len(columns.input_ids)
        columns.append_chain(
            rollout.completion_ids,
            parent=parent,
            multiplicity=1.0,
            advantage=group.advantages[member],
            sampler_logprobs=rollout.completion_logprobs,
            is_masked=rollout.is_masked,
        )
        columns.close(start)
    for sharing in branches.values():
        prefixes = [group.rollouts[member].prefix_ids for member in sharing]
        end = common_length(prefixes, depth)
        trained = [member for member in sharing if group.rollouts[member].train_prefix]
        start = len(columns.input_ids)
        last = columns.append_chain(
            prefixes[0][depth:end],
            parent=parent,
            prefix_weight_sum=sum(group.prefix_weights[member] for member in trained),
            prefix_count=float(len(trained)),
            multiplicity=float(len(sharing)),
        )
        _append_branches(columns, group, sharing, depth=end, parent=last)
        columns.close(start)


def common_length(sequences: Sequence[Sequence[int]], start: int) -> int:
    """Return the length of the common beginning of sequences that are known to agree up to `start`."""
    shortest = min(len(sequence) for sequence in sequences)
    first = sequences[0]
    for index in range(start, shortest):
        if any(sequence[index] != first[index] for sequence in sequences[1:]):
            return index
    return shortest
