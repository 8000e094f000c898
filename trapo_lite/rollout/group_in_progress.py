"""Keep track of which rollouts a problem's group may still need while it is drawn (METHOD 3).

Every slot has a branch without help. If its micro-group can give help, it also has a branch with an expert prefix. The
rewards of the earlier slots decide between the two. While some of these rewards are missing, their lowest and highest
possible values can already exclude a branch. Example: help below a mean of 0.5 is excluded once 2 of 4 rollouts have
succeeded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trapo_lite.core.micro_groups import MicroGroup, cut_prefix, prefix_ratio
from trapo_lite.core.types import Problem, Rollout

Drawn = Literal["trace", "ratio", "help"]
HELP_PARTS = 2**30  # so finely the probability of help is drawn


@dataclass(eq=False)
class Branch:
    """A Branch is a rollout that may be drawn.

    room:          how many tokens it may draw, 0 if its prefix leaves none
    reward_bounds: the lowest and the highest reward that any rollout can have
    is_skipped:    whether nothing is drawn (`otherwise: skip`)
    """

    rollout: Rollout
    micro_group: int
    room: int
    reward_bounds: tuple[float, float]
    state: Literal["planned", "sampling", "grading", "graded", "dropped"] = "planned"
    is_skipped: bool = False

    @property
    def rewards(self) -> tuple[float, float]:
        """Return the lowest and the highest reward that the rollout can have; without a reward it counts as 0."""
        reward = self.rollout.reward or 0.0
        return (reward, reward) if self.state == "graded" else self.reward_bounds


class GroupInProgress:
    """A GroupInProgress owns the branches of one problem's group.

    show: returns the prompt that shows a prefix (`prefix_in: prompt`)
    pick: draws one of several traces (expert solutions as tokens) or ratios for a micro-group, or whether it may help;
          called with its index, what is drawn, and how many there are
    """

    def __init__(
        self,
        problem: Problem,
        micro_groups: Sequence[MicroGroup],
        *,
        max_response_tokens: int,
        pick: Callable[[int, Drawn, int], int],
        is_boundary: Callable[[int], bool],
        show: Callable[[Problem, Sequence[int]], tuple[int, ...]] | None = None,
        reward_bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.problem = problem
        self.micro_groups = [
            replace(each, prefix_ratio=each.drawn_from[pick(index, "ratio", len(each.drawn_from))], drawn_from=())
            if each.drawn_from
            else each
            for index, each in enumerate(micro_groups)
        ]
        self._reward_bounds = reward_bounds
        self._limit, self._pick, self._is_boundary, self._show = max_response_tokens, pick, is_boundary, show
        self._slots: list[dict[bool, Branch]] = []  # maps "is helped" to a branch; both are the same if no help exists
        for index, micro_group in enumerate(self.micro_groups):
            self._slots += self._plan(index, micro_group)
        self.candidates: list[list[Branch]] = [list(dict.fromkeys(slot.values())) for slot in self._slots]
        """For each slot, the branches that may still be needed; a decided slot has one."""
        self.rule_out()

    @property
    def num_settled(self) -> int:
        """Return how many slots are decided and graded."""
        return sum(len(left) == 1 and all(b.state == "graded" for b in left) for left in self.candidates)

    @property
    def current_micro_group(self) -> int:
        """Return the index of the first micro-group with a slot that is not decided and graded."""
        for left in self.candidates:
            if len(left) > 1 or left[0].state != "graded":
                return left[0].micro_group
        return len(self.micro_groups)

    def rule_out(self) -> list[Branch]:
        """Drop the branches that the rewards so far exclude, and return them."""
        dropped: list[Branch] = []
        worst: list[float] = []
        best: list[float] = []
        slot = 0
        for micro_group in self.micro_groups:
            # Help is given below a threshold: if the worst and the best rewards agree, all rewards between them do.
            answers = {prefix_ratio(micro_group, worst) > 0.0, prefix_ratio(micro_group, best) > 0.0}
            bounds = []
            for branches in self._slots[slot : slot + micro_group.num_rollouts]:
                wanted = {branches[is_helped] for is_helped in answers}
                left = [branch for branch in self.candidates[slot] if branch in wanted]
                dropped += [branch for branch in self.candidates[slot] if branch not in wanted]
                self.candidates[slot] = left
                bounds += [(min(b.rewards[0] for b in left), max(b.rewards[1] for b in left))]
                slot += 1
            worst += [low for low, _ in bounds]
            best += [high for _, high in bounds]
        for branch in dropped:
            branch.state = "dropped"
        return dropped

    def _plan(self, index: int, micro_group: MicroGroup) -> list[dict[bool, Branch]]:
        trace, prefix = self._prefix(index, micro_group)
        num_trained = micro_group.num_rollouts if micro_group.num_trained is None else micro_group.num_trained
        planned = []
        for member in range(micro_group.num_rollouts):
            slot = len(self._slots) + member
            alone = self._branch(slot, index, trace=None, prefix=(), is_trained=False)
            if micro_group.otherwise == "skip":
                alone.state, alone.is_skipped = "graded", True
            helped = alone
            if prefix:
                is_trained = member >= micro_group.num_rollouts - num_trained
                helped = self._branch(slot, index, trace=trace, prefix=prefix, is_trained=is_trained)
            planned.append({False: alone, True: helped})
        return planned

    def _prefix(self, index: int, micro_group: MicroGroup) -> tuple[int | None, tuple[int, ...]]:
        """Return the index of the micro-group's expert trace and its prefix, or (None, ()) if it cannot give help."""
        traces = self.problem.expert_ids
        if micro_group.prefix_ratio == 0.0 or not traces:
            return None, ()
        chance = micro_group.help_probability
        if chance < 1.0 and self._pick(index, "help", HELP_PARTS) >= chance * HELP_PARTS:
            return None, ()
        trace = self._pick(index, "trace", len(traces)) if micro_group.trace is None else micro_group.trace
        trace = trace if trace < len(traces) else 0
        keep = cut_prefix(traces[trace], micro_group.prefix_ratio, self._is_boundary)
        return (trace, traces[trace][:keep]) if keep else (None, ())

    def _branch(
        self, slot: int, micro_group: int, *, trace: int | None, prefix: tuple[int, ...], is_trained: bool
    ) -> Branch:
        in_prompt = bool(prefix) and self.micro_groups[micro_group].prefix_in == "prompt"
        is_whole_trace = trace is not None and len(prefix) == len(self.problem.expert_ids[trace]) and not in_prompt
        prompt_ids = self.problem.prompt_ids
        if in_prompt:
            if self._show is None:
                raise ValueError(f"problem {self.problem.id}: its prompt must show a prefix, and no `show` is given")
            prompt_ids = self._show(self.problem, prefix)
        rollout = Rollout(
            problem_id=self.problem.id,
            slot=slot,
            prompt_ids=prompt_ids,
            prefix_ids=() if in_prompt else prefix,
            num_shown=len(prefix) if in_prompt else 0,
            finish_reason="expert" if is_whole_trace else "length",
            trace=trace,
            prefix_ratio=self.micro_groups[micro_group].prefix_ratio if prefix else 0.0,
            train_prefix=is_trained and not in_prompt,
            prefix_weight=self.micro_groups[micro_group].prefix_weight if prefix else 1.0,
            teacher_prompt_ids=self.problem.teacher_prompt_ids,
        )
        given = len(prompt_ids) - len(self.problem.prompt_ids) + len(rollout.prefix_ids)  # counts as part of the answer
        room = 0 if is_whole_trace else max(0, self._limit - given)
        return Branch(rollout, micro_group, room, self._reward_bounds)
