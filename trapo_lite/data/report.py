"""Report what loading kept, what it dropped and why, and how long prompts and traces are."""

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trapo_lite.core.in_words import counted
from trapo_lite.core.types import Problem

MAX_NAMED = 10  # ids in a line
QUANTILES = {"min": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "max": 1.0}


@dataclass(frozen=True)
class DataReport:
    """A DataReport counts what was kept and what was dropped of `files`.

    rows_filtered:                 column -> rows that data.filter leaves out by it.
    rows_dropped, traces_dropped:  reason -> how many.
    first_dropped:                 where the first dropped rows are.
    num_boxed_answers:             number of answers that were taken from a solution's last box.
    num_lost_boxes:                number of usable expert solutions whose boxes are all cut off by data.expert_text.
    problems_by_traces:            number of usable expert traces -> how many problems have that many.
    prompt_lengths, trace_lengths: name of a quantile -> tokens; traces include EOS. Empty without prompts or traces.
    num_graded, unverified_ids:    number of graded expert traces; the problem id of each trace not found correct.
    prompt_warnings:               lines about prompts that differ from the tokenizer's own.
    teacher_lengths:               as prompt_lengths, of a teacher's prompts; empty without a teacher.
    teacher_left_out:              reason -> how many problems a teacher cannot judge.
    fingerprint:                   sha256 over ids, answers and tokens of the problems in their order.
    """

    files: tuple[str, ...]
    expert_text: str
    num_rows: int
    num_problems: int
    rows_filtered: Mapping[str, int]
    rows_dropped: Mapping[str, int]
    first_dropped: tuple[str, ...]
    traces_dropped: Mapping[str, int]
    num_boxed_answers: int
    num_lost_boxes: int
    problems_by_traces: Mapping[int, int]
    prompt_lengths: Mapping[str, int]
    trace_lengths: Mapping[str, int]
    num_graded: int
    unverified_ids: tuple[str, ...]
    prompt_warnings: tuple[str, ...]
    fingerprint: str
    teacher_lengths: Mapping[str, int] = field(default_factory=dict)
    teacher_left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_traces(self) -> int:
        return sum(traces * problems for traces, problems in self.problems_by_traces.items())

    @property
    def num_unverified(self) -> int:
        return len(self.unverified_ids)

    @property
    def unverified_share(self) -> float:
        """Return the share of graded traces that are not correct. It is NaN, never 0, if no trace was graded."""
        return self.num_unverified / self.num_graded if self.num_graded else math.nan

    def lines(self) -> list[str]:
        """Return the report as lines of text, without empty counts."""
        with_traces = ", ".join(f"{problems} with {traces}" for traces, problems in self.problems_by_traces.items())
        lines = [
            f"{', '.join(self.files)}: {counted(self.num_problems, 'problem')} of {counted(self.num_rows, 'row')}",
            f"  expert traces  {self.num_traces} ({self.expert_text}); problems: {with_traces}",
            f"  prompt tokens  {_spelt(self.prompt_lengths)}",
        ]
        if self.trace_lengths:
            lines.append(f"  trace tokens   {_spelt(self.trace_lengths)}")
        if self.teacher_lengths:
            left_out = f"; problems left out: {_spelt(self.teacher_left_out)}" if self.teacher_left_out else ""
            lines.append(f"  teacher tokens {_spelt(self.teacher_lengths)}{left_out}")
            if (num_left_out := sum(self.teacher_left_out.values())) > self.num_problems / 10:
                lines.append(
                    f"warning: algorithm.teacher: {num_left_out} of {self.num_problems} problems are left out, because "
                    "it has no prompt for them: raise max_prompt_tokens, or give them expert solutions?"
                )
        if self.num_boxed_answers:
            lines.append(f"  answers        {self.num_boxed_answers} from the last box of a solution")
        if self.rows_filtered:
            lines.append(f"  rows filtered  {_spelt(self.rows_filtered)} (data.filter)")
        if self.rows_dropped:
            lines.append(f"  rows dropped   {_spelt(self.rows_dropped)}; first: {', '.join(self.first_dropped)}")
        if self.traces_dropped:
            lines.append(f"  traces dropped {_spelt(self.traces_dropped)}")
        num_dropped = sum(self.traces_dropped.values())
        if num_dropped > self.num_traces:
            lines.append("warning: most expert traces were dropped: raise rollout.max_response_tokens?")
        if self.num_lost_boxes:
            share = f"{self.num_lost_boxes} of {self.num_traces} expert traces"
            lines.append(
                f"warning: data.expert_text: {self.expert_text} cuts off the boxed answer of {share}: set it "
                "to full, or to opened for a prompt that ends in <think>"
            )
        if self.num_graded:
            share = f"{self.num_unverified} of {self.num_graded} ({self.unverified_share:.1%})"
            lines.append(f"  expert traces that do not verify: {share}")
            if self.unverified_share > 0.5:
                lines.append("warning: most expert traces do not verify: are these their answers?")
            if self.unverified_ids:
                more = ", ..." if self.num_unverified > MAX_NAMED else ""
                lines.append(f"    of problems {', '.join(self.unverified_ids[:MAX_NAMED])}{more}")
        return [*lines, *self.prompt_warnings, f"  fingerprint    {self.fingerprint[:16]}"]


def length_quantiles(lengths: Iterable[int]) -> dict[str, int]:
    """Return nearest-rank quantiles of the lengths.

    >>> length_quantiles([5, 1, 3])
    {'min': 1, 'median': 3, '90 %': 5, '99 %': 5, 'max': 5}
    """
    ordered = sorted(lengths)
    if not ordered:
        return {}
    return {name: ordered[max(0, math.ceil(q * len(ordered)) - 1)] for name, q in QUANTILES.items()}


def fingerprint(problems: Sequence[Problem]) -> str:
    """Return the sha256 of all ids, answers and tokens. It changes with any of them and with their order."""
    digest = hashlib.sha256()
    for problem in problems:
        traces = problem.expert_ids
        lengths = (len(problem.prompt_ids), *map(len, traces))
        digest.update(repr((problem.id, problem.answer, lengths)).encode())
        if problem.row:  # which the reward functions take
            digest.update(json.dumps(problem.row, sort_keys=True).encode())
        for token_ids in (problem.prompt_ids, *traces):
            digest.update(array("i", token_ids).tobytes())
    return digest.hexdigest()


def _spelt(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
