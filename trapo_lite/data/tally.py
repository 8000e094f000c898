"""Count the rows and expert traces that are not used, and raise one error for all bad rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from trapo_lite.core.errors import DataError
from trapo_lite.core.in_words import counted
from trapo_lite.data.bad_row import BadRow

MAX_SHOWN = 5  # bad rows in a message


@dataclass
class Tally:
    """Count the rows and traces dropped so far, by reason.

    first_bad: (where, what is wrong) of the first bad rows.
    cut_at_end: where the expert traces are that an end token in their text cuts.
    filtered:  rows that data.filter leaves out, by column; filtered_values: the first values of each such column.
    """

    skip_bad_rows: bool
    num_rows: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    traces: Counter[str] = field(default_factory=Counter)
    first_bad: list[tuple[str, str]] = field(default_factory=list)
    cut_at_end: list[str] = field(default_factory=list)
    filtered: Counter[str] = field(default_factory=Counter)
    filtered_values: dict[str, list[str]] = field(default_factory=dict)

    def bad_row(self, where: str, bad: BadRow) -> None:
        self.rows[bad.reason] += 1
        if len(self.first_bad) < MAX_SHOWN:
            self.first_bad.append((where, str(bad)))

    def filtered_row(self, column: str, value: object) -> None:
        self.filtered[column] += 1
        values = self.filtered_values.setdefault(column, [])
        if len(values) < MAX_SHOWN and (shown := f"{value!r:.40}") not in values:
            values.append(shown)

    def require_good_rows(self) -> None:
        """Raise DataError if there were bad rows, unless they are skipped."""
        num_bad = self.rows.total()
        if num_bad == 0 or self.skip_bad_rows:
            return
        would_leave_some = num_bad < self.num_rows - self.filtered.total()
        skip = ", or set data.on_bad_row: skip" if would_leave_some else ""
        if num_bad == 1:
            [(where, fault)] = self.first_bad
            raise DataError(f"data {where}: {fault}{skip}")
        raise DataError(
            f"data: {num_bad} of {self.num_rows} rows read cannot be used ({self.reasons()}); correct them{skip}"
            f"{self.listed()}"
        )

    def reasons(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.rows.items())

    def listed(self) -> str:
        """Return the first bad rows as text: one line for each fault, rows with the same fault together."""
        rows_by_fault: dict[str, list[str]] = {}
        for where, fault in self.first_bad:
            rows_by_fault.setdefault(fault, []).append(where)
        lines = [f"{wheres[0]}: {fault}{_so_in(wheres[1:])}" for fault, wheres in rows_by_fault.items()]
        more = self.rows.total() - len(self.first_bad)
        lines += [f"and {counted(more, 'row')} not listed here"] if more else []
        return "".join(f"\n  {line}" for line in lines)


def _so_in(places: Sequence[str]) -> str:
    return f" (the same in {counted(len(places), 'more row')})" if places else ""
