"""Keep what is known of the use of help over a run's steps, and in its checkpoints (core/utility.py)."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trapo_lite.config import Config
from trapo_lite.core.micro_groups import MicroGroup
from trapo_lite.core.types import Mean, Problem, Rollout
from trapo_lite.core.utility import Arm, Measured, Value, adjust, is_measured, learn, observe
from trapo_lite.run.processes import Ranks

STATE = "utility"
"""Key in a checkpoint's state."""


class UtilityState:
    """A UtilityState owns the estimates. All ranks hold the same, because all see the rollouts of all."""

    def __init__(self, config: Config, problems: Sequence[Problem]) -> None:
        self.rule = config.algorithm.utility.build()
        self._algorithm = config.algorithm
        self._source_by_id = {problem.id: str(problem.source_index) for problem in problems if problem.expert_ids}
        self.table: dict[tuple[str, int], Measured] = {}

    def _acts(self, step: int) -> bool:
        return self.rule is not None and self._algorithm.stage_at(step) is self._algorithm

    def schedule(
        self, step: int, micro_groups: Sequence[MicroGroup]
    ) -> Sequence[MicroGroup] | Callable[[Problem], Sequence[MicroGroup]]:
        """Return the micro-groups of a step: as they are, or for each problem by the use of its source's help."""
        rule = self.rule
        if rule is None or not self._acts(step):
            return micro_groups
        return lambda problem: adjust(rule, self.table, micro_groups, str(problem.source_index))

    def learn(
        self, step: int, micro_groups: Sequence[MicroGroup], groups: Sequence[Sequence[Rollout]], ranks: Ranks
    ) -> None:
        """Add what the rollouts of all ranks say, of problems that have an expert solution."""
        if self.rule is None or not self._acts(step):
            return
        mine = []
        for rollouts in groups:
            source = self._source_by_id.get(rollouts[0].problem_id)
            if source is not None:
                drawn = adjust(self.rule, self.table, micro_groups, source)
                mine += [(source, *item) for item in observe(self.rule, drawn, rollouts).items()]
        observations: dict[tuple[str, int], tuple[list[Value], list[Value]]] = defaultdict(lambda: ([], []))
        for source, index, (helped, alone) in ranks.gather(mine):
            observations[source, index][0].extend(helped)
            observations[source, index][1].extend(alone)
        self.table = learn(self.rule, self.table, observations)

    def metrics(self, step: int, micro_groups: Sequence[MicroGroup]) -> dict[str, Mean]:
        """Return what is known of each micro-group that shows a part of a solution, as means over the sources."""
        if self.rule is None or not self._acts(step):
            return {}
        found = {}
        for index in (index for index, micro_group in enumerate(micro_groups) if is_measured(micro_group)):
            known = [measured for (_, of), measured in self.table.items() if of == index]
            gains = [measured.gain(self.rule) for measured in known]
            probabilities = [measured.probability(self.rule) for measured in known]
            found[f"utility/gain_{index + 1}"] = Mean(sum(gains), len(gains))
            found[f"utility/probability_{index + 1}"] = Mean(sum(probabilities), len(probabilities))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the estimates for a checkpoint; nothing if utility is not measured."""
        if self.rule is None:
            return {}
        arms = {
            f"{source} {index}": [vars(measured.helped), vars(measured.alone)]
            for (source, index), measured in self.table.items()
        }
        return {STATE: arms}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the estimates of a checkpoint."""
        for key, (helped, alone) in state.get(STATE, {}).items():
            source, index = key.split(" ")
            self.table[source, int(index)] = Measured(Arm(**helped), Arm(**alone))
