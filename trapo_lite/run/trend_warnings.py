"""Look at a run's steps together for what a single one cannot show, and say once what to change."""

from collections.abc import Iterable, Mapping

Row = Mapping[str, float | int | None]

NUM_STEPS = 5  # whose mean is looked at, because one step's is noisy
COLLAPSED = 0.1  # share of the first steps' entropy
MOSTLY_SOLVED = 0.5  # share of problems, from which on a low entropy is what training is for


class TrendWarnings:
    """A TrendWarnings reads the lines of metrics.jsonl in their order, and gives each warning once.

    earlier: the lines before a resume, whose warnings were given then
    """

    def __init__(self, earlier: Iterable[Row] = ()) -> None:
        self._rows: list[Row] = []
        self._given: set[str] = set()
        for row in earlier:
            self.after(row)

    def after(self, row: Row) -> list[str]:
        """Return the warnings that became true by this line."""
        self._rows.append(row)
        lines = {"reward/gain_by_help": self._help_line(), "policy/entropy": self._entropy_line()}
        new = {name: line for name, line in lines.items() if line is not None and name not in self._given}
        self._given.update(new)
        return list(new.values())

    def _help_line(self) -> str | None:
        """Compare guided with unguided rollouts of the same problems.

        TRAPO gives help where unguided rollouts failed, so by chance even useless help would show a gain.
        """
        gains = self._values("reward/gain_by_help")
        if len(gains) < NUM_STEPS or (gain := _mean(gains[-NUM_STEPS:])) >= 0.0:
            return None
        return (
            f"guided rollouts earn {-gain:.2g} less than unguided ones of the same problems (reward/gain_by_help, "
            f"mean of {NUM_STEPS} steps), so the expert prefixes do not help this model; look at guided completions in "
            "rollouts/, then take other experts, longer prefixes (prefix_ratio in algorithm.schedule), or "
            "algorithm/grpo.yaml"
        )

    def _entropy_line(self) -> str | None:
        entropies, solved = self._values("policy/entropy"), self._values("rollout/solved_groups")
        if len(entropies) < 2 * NUM_STEPS or _mean(solved[-NUM_STEPS:]) >= MOSTLY_SOLVED:
            return None
        first, now = _mean(entropies[:NUM_STEPS]), _mean(entropies[-NUM_STEPS:])
        if now >= COLLAPSED * first:
            return None
        return (
            f"policy/entropy fell from {first:.2g} to {now:.2g} nats (means of {NUM_STEPS} steps) while most problems "
            "are not solved, so hardly anything new is tried; lower optim.lr, or set algorithm.entropy_weight=0.001"
        )

    def _values(self, name: str) -> list[float]:
        return [value for row in self._rows if (value := row.get(name)) is not None]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
