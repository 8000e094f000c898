"""Report the build of a training set: what was kept, dropped and added, and the lengths in tokens."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trapo_lite.data.report import length_quantiles

NUM_BARS = 12


@dataclass
class BuildTally:
    """Count rows and traces. Counters are as in the report: name or number of tokens -> how many.

    num_boxed_answers:   answers of kept rows that were taken from a solution's last box
    num_second:          problems that got a second trace; None without a second source
    num_second_rows:     rows of the second source, of which num_second_bad could not be read
    found_overlap:       [id, names of the sets] of each kept or removed row that shares a run of words with evaluation
                         sets
    prompt_warnings:     lines about prompts that differ from the tokenizer's own; None before the first prompt
    num_graded:          graded traces; None without a verifier
    num_wrong:           whole solutions that the verifier did not find correct
    num_wrong_thoughts:  the same count if only the text inside <think> is read
    """

    num_rows: int = 0
    num_kept: int = 0
    num_boxed_answers: int = 0
    rows_dropped: Counter[str] = field(default_factory=Counter)
    traces_dropped: Counter[str] = field(default_factory=Counter)
    problems_by_traces: Counter[str] = field(default_factory=Counter)
    prompt_lengths: Counter[str] = field(default_factory=Counter)
    trace_lengths: Counter[str] = field(default_factory=Counter)
    found_overlap: list[list[Any]] = field(default_factory=list)
    num_second: int | None = None
    num_second_rows: int | None = None
    num_second_bad: int | None = None
    prompt_warnings: list[str] | None = None
    num_graded: int | None = None
    num_wrong: int | None = None
    num_wrong_thoughts: int | None = None

    @property
    def rows_by_set(self) -> Counter[str]:
        """Return, by name of a set, the number of rows that share a run of words with it."""
        return Counter(name for _, names in self.found_overlap for name in names)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "BuildTally":
        read: dict[str, Any] = {key: Counter(value) if isinstance(value, dict) else value for key, value in row.items()}
        return cls(**read)

    def to_row(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    def lines(self) -> list[str]:
        """Return the report as lines of text, without empty counts."""
        by_traces = ", ".join(f"{n} with {traces}" for traces, n in sorted(self.problems_by_traces.items()))
        lines = [f"{self.num_kept} of {self.num_rows} rows kept; problems by traces: {by_traces}"]
        if self.num_boxed_answers:
            lines.append(f"  answers from the last box of a solution: {self.num_boxed_answers}")
        if self.problems_by_traces.keys() == {"0"}:
            lines.append("warning: no row has an expert solution, so only an algorithm without (grpo) can use this")
        for kind, counts in (("rows dropped", self.rows_dropped), ("traces dropped", self.traces_dropped)):
            if counts:
                lines.append(f"  {kind}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items())))
        if self.num_second is not None:
            lines.append(
                f"  second traces: {self.num_second}; of the second source's {self.num_second_rows} rows "
                f"{self.num_second_bad} could not be read"
            )
        if self.rows_by_set:
            shared = ", ".join(f"{name} {count}" for name, count in sorted(self.rows_by_set.items()))
            lines.append(f"  rows that share a run of words with a benchmark: {shared}")
        if self.num_graded and self.num_wrong is not None and self.num_wrong_thoughts is not None:
            whole, thought = (
                f"{wrong} ({wrong / self.num_graded:.1%})" for wrong in (self.num_wrong, self.num_wrong_thoughts)
            )
            if self.num_wrong == self.num_graded:
                lines.append("warning: no trace verifies: are these the answers to these problems?")
            lines.append(f"  of {self.num_graded} traces {whole} do not verify, {thought} by their thoughts alone")
        for kind, lengths in (("prompt", self.prompt_lengths), ("trace", self.trace_lengths)):
            lines += histogram(kind, {int(length): count for length, count in lengths.items()})
        return [*lines, *(self.prompt_warnings or ())]


def histogram(what: str, counts: Mapping[int, int]) -> list[str]:
    """Return a line of quantiles, and a bar for each range of tokens."""
    if not counts:
        return []
    quantiles = length_quantiles(Counter(counts).elements())
    width = max(1, -(-(max(counts) + 1) // NUM_BARS))
    bars: Counter[int] = Counter()
    for length, count in counts.items():
        bars[length // width] += count
    most = max(bars.values())
    lines = [f"  {what} tokens: " + ", ".join(f"{name} {length}" for name, length in quantiles.items())]
    for index in range(max(bars) + 1):
        bar = "#" * round(40 * bars[index] / most)
        lines.append(f"    {index * width:>6} to {(index + 1) * width - 1:<6} {bars[index]:>7} {bar}".rstrip())
    return lines
