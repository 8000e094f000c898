"""Choose the rollouts that a page shows: whole problems, spread evenly over the steps, within a number of bytes."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trapo_lite.report.script_json import in_script, is_number, whole_text
from trapo_lite.run.folder import STEP_NAME

MOST_CHARACTERS = 20_000
"""Longer texts are cut on the page."""
TEXTS = ("problem_id", "prompt", "prefix", "completion")
OTHER_TEXTS = ("verdict", "answer", "gold", "finish_reason")
NUMBERS = ("slot", "micro_group", "ratio", "reward", "advantage", "trace")
PiecesOf = Callable[[Sequence[int], str], list[int] | None]
"""Maps token ids and their text to the length of each token's text, in UTF-16 units as in JavaScript, or None."""


@dataclass(frozen=True)
class RolloutSample:
    """A RolloutSample is what a page shows of all rollouts.

    groups:      problems, each as {"step": ..., "rollouts": [...]}, in the order of their steps
    num_shown, num_all: rollouts.   num_damaged: lines or files that could not be read
    """

    groups: list[dict[str, Any]]
    num_shown: int
    num_all: int
    num_damaged: int


def sample_rollouts(folder: Path, *, most_bytes: int, pieces_of: PiecesOf | None = None) -> RolloutSample:
    """Read rollouts/step-N.jsonl in a run's folder `rollouts`.

    pieces_of: None: probabilities of tokens are left out
    """
    files = sorted(
        (path for path in folder.glob("step-*.jsonl") if STEP_NAME.fullmatch(path.stem)),
        key=lambda path: int(path.stem.removeprefix("step-")),
    )
    num_all = sum(map(_count_lines, files))
    groups: dict[tuple[int, int], dict[str, Any]] = {}
    num_damaged, size = 0, 0
    for chosen in _spread(len(files)):
        step, before = int(files[chosen].stem.removeprefix("step-")), size
        lines, damaged = _read(files[chosen])
        num_damaged += damaged
        for index, group in enumerate(_by_problem(lines)):
            shown = {"step": step, "rollouts": [_shown(line, pieces_of) for line in group]}
            if len(in_script(shown).encode()) > most_bytes / 8:  # probabilities take the most
                shown["rollouts"] = [_shown(line, None) for line in group]
            length = len(in_script(shown).encode())
            if size + length > most_bytes:
                break
            size += length
            groups[step, index] = shown
            if size - before > most_bytes / 8:  # a step with long rollouts leaves room for others
                break
    ordered = [groups[key] for key in sorted(groups)]
    return RolloutSample(ordered, sum(len(group["rollouts"]) for group in ordered), num_all, num_damaged)


def _spread(count: int) -> list[int]:
    """Return 0 to count - 1, last and first before the others, so that every beginning is spread over all.

    >>> _spread(8)
    [7, 0, 4, 2, 6, 1, 5, 3]
    """
    width = max(1, (count - 1).bit_length())
    by_reversed_bits = sorted(range(count), key=lambda index: int(f"{index:0{width}b}"[::-1], 2))
    return list(dict.fromkeys([count - 1, 0, *by_reversed_bits])) if count else []


def _count_lines(file: Path) -> int:
    try:
        with file.open("rb") as opened:
            return sum(block.count(b"\n") for block in iter(lambda: opened.read(1 << 20), b""))
    except OSError:
        return 0


def _read(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of a file that are rollouts, and how many are not; a file that cannot be read counts as one."""
    lines, num_damaged = [], 0
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            for text in opened:
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    line = None
                if isinstance(line, dict) and all(isinstance(line.get(name), str) for name in TEXTS):
                    lines.append(line)
                else:
                    num_damaged += 1
    except OSError:
        num_damaged += 1
    return lines, num_damaged


def _by_problem(lines: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rollouts of each problem; a problem that is drawn twice in a step begins again at slot 0."""
    group: list[dict[str, Any]] = []
    for line in lines:
        if group and (line["problem_id"] != group[0]["problem_id"] or line.get("slot") == 0):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _shown(line: dict[str, Any], pieces_of: PiecesOf | None) -> dict[str, Any]:
    """Return what the page shows of a line. What has another type than it should is left out."""
    shown: dict[str, Any] = {name: line[name] for name in NUMBERS if is_number(line.get(name))}
    shown |= {name: whole_text(line[name]) for name in OTHER_TEXTS if isinstance(line.get(name), str)}
    shown |= {name: whole_text(line[name])[:MOST_CHARACTERS] for name in TEXTS}
    if line.get("replaced") is True:
        shown["is_replaced"] = True
    if any(len(line[name]) > MOST_CHARACTERS for name in TEXTS):
        shown["is_cut"] = True
    elif pieces_of is not None and (pieces := _pieces(line, pieces_of)) is not None:
        shown["pieces"] = pieces
        shown["logprobs"] = [round(value, 2) for value in line["completion_logprobs"]]
    return shown


def _pieces(line: dict[str, Any], pieces_of: PiecesOf) -> list[int] | None:
    """Return the lengths of the texts of a completion's tokens, or None if ids and log-probs do not tell them."""
    ids, logprobs = line.get("completion_ids"), line.get("completion_logprobs")
    if not isinstance(ids, list) or not isinstance(logprobs, list) or len(ids) != len(logprobs):
        return None
    are_ids = all(type(token_id) is int and 0 <= token_id < 2**31 for token_id in ids)
    if not are_ids or not all(map(is_number, logprobs)):
        return None
    return pieces_of(ids, whole_text(line["completion"]))
