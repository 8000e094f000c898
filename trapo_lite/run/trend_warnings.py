"""Look at a run's steps together for what a single one cannot show, and say once what to change."""

import statistics
from collections import deque
from collections.abc import Iterable, Mapping

Row = Mapping[str, float | int | None]

FEWEST_WITH_HELP, MOST_WITH_HELP = 10, 20  # steps whose gains by help are looked at together
STANDARD_ERRORS = 3.0  # by which their mean must be below zero
NUM_STEPS = 5  # whose mean entropy is compared with that of as many first ones
COLLAPSED = 0.1  # share of the first steps' entropy
MOSTLY_SOLVED = 0.5  # share of problems, from which on a low entropy is what training is for


class TrendWarnings:
    """A TrendWarnings reads the lines of metrics.jsonl in their order, and gives each warning once.

    earlier: the lines before a resume, whose warnings were given then
    """

    def __init__(self, earlier: Iterable[Row] = ()) -> None:
        self._gains: deque[float] = deque(maxlen=MOST_WITH_HELP)
        self._first_entropies: list[float] = []
        self._entropies: deque[tuple[float, float]] = deque(maxlen=NUM_STEPS)  # with the share of solved problems
        self._given: set[str] = set()
        for row in earlier:
            self.after(row)

    def after(self, row: Row) -> list[str]:
        """Return the warnings that became true by this line."""
        gain, entropy, solved = (
            row.get(name) for name in ("reward/gain_by_help", "policy/entropy", "rollout/solved_groups")
        )
        lines = {}
        acts_on_it = any(name.startswith("utility/") for name in row)  # by itself
        if gain is not None and not acts_on_it:
            self._gains.append(gain)
            lines["help"] = self._help_line()
        if entropy is not None and solved is not None:
            if len(self._first_entropies) < NUM_STEPS:
                self._first_entropies.append(entropy)
            else:
                self._entropies.append((entropy, solved))
            lines["entropy"] = self._entropy_line()
        new = {name: line for name, line in lines.items() if line is not None and name not in self._given}
        self._given.update(new)
        return list(new.values())

    def _help_line(self) -> str | None:
        """Compare guided with unguided rollouts of the same problems.

        TRAPO gives help where unguided rollouts failed, so by chance even useless help would show a gain.
        """
        if len(self._gains) < FEWEST_WITH_HELP:
            return None
        gain = statistics.fmean(self._gains)
        error = statistics.stdev(self._gains) / len(self._gains) ** 0.5
        if gain >= min(-STANDARD_ERRORS * error, -0.01):
            return None
        return (
            f"guided rollouts earn {-gain:.2g} less than unguided ones of the same problems (reward/gain_by_help, "
            f"mean of {len(self._gains)} steps), so the expert prefixes do not help this model; look at guided "
            "completions in rollouts/, then take other experts, longer prefixes (prefix_ratio in algorithm.schedule), "
            "algorithm/trapo_utility.yaml, which measures this and helps less, or algorithm/dr_grpo.yaml"
        )

    def _entropy_line(self) -> str | None:
        if len(self._entropies) < NUM_STEPS:
            return None
        first, now = statistics.fmean(self._first_entropies), statistics.fmean(e for e, _ in self._entropies)
        if now >= COLLAPSED * first or statistics.fmean(s for _, s in self._entropies) >= MOSTLY_SOLVED:
            return None
        return (
            f"policy/entropy fell from {first:.2g} to {now:.2g} nats (means of {NUM_STEPS} steps) while most problems "
            "are not solved, so hardly anything new is tried; lower optim.lr, or set algorithm.entropy_weight=0.001"
        )
