r"""Find the answer in a text: the last complete `\boxed{...}` after the thought, or none."""

import re
from dataclasses import dataclass

from trapo_lite.core.boxes import BOX, MAX_SPAN_CHARS, complete_boxes

MAX_TEXT_CHARS = 100_000  # only the end of an answer is read; 8,192 tokens are about 30,000 characters
MAX_DEPTH = 10  # the deepest benchmark gold has 4; parsers take exponential time in the depth
MAX_LIST_GAP = 24  # characters, and
MAX_LIST_WORDS = 3  # words between two boxes of one list

_CONNECTIVES = re.compile(r"\\(?:quad|qquad|[,;:!\[\]()\\])|\\text\s*\{|\\(?:displaystyle|left|right)\b|[\s$,;.{}]")
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|</?answer>")


@dataclass(frozen=True)
class AnswerSpan:
    r"""Hold the answer found in a text.

    last:     content of the last complete box, or None.
    merged:   contents of the run of boxes that ends in it, joined by commas (`\boxed{1}` and `\boxed{2}`: "1, 2");
              None if it stands alone.
    tail:     the text after the thought, for readers that need no box.
    is_open:  a box was begun after the last complete one and never closed.
    """

    last: str | None
    merged: str | None
    tail: str
    is_open: bool


def find_answer(text: str) -> AnswerSpan:
    r"""Find the last complete box after the last `</think>`.

    If there is none, the last complete box inside the thought counts. A completion that is cut off right after its
    thought, or that ends in a summary without a box, has still given an answer.

    >>> find_answer(r"<think>\boxed{7}</think>so \boxed{\frac{1}{2}}.").last
    '\\frac{1}{2}'
    >>> find_answer(r"roots: \boxed{-2} and \boxed{1}").merged
    '-2, 1'
    """
    text = _SPECIAL_TOKEN.sub(" ", text[-MAX_TEXT_CHARS:])
    thought, _, tail = text.rpartition("</think>")
    boxes, is_open = complete_boxes(tail)
    if not boxes and not is_open:
        boxes, _ = complete_boxes(thought)
        where = thought
    else:
        where = tail
    if not boxes:
        return AnswerSpan(last=None, merged=None, tail=tail, is_open=is_open)
    run = _joined_run(where, boxes)
    merged = ", ".join(where[start:end] for start, end in run) if len(run) > 1 else None
    start, end = boxes[-1]
    return AnswerSpan(last=where[start:end], merged=merged, tail=tail, is_open=is_open)


def nesting_depth(text: str) -> int:
    r"""Return the deepest nesting of brackets of any kind; `\{` counts as a bracket.

    >>> nesting_depth(r"\frac{1}{(2)}"), nesting_depth("]]]")
    (2, 0)
    """
    depth = deepest = 0
    for character in text:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth = max(depth - 1, 0)
    return deepest


def is_readable(text: str) -> bool:
    """Return whether `text` is short and shallow enough for the parsers."""
    return len(text) <= MAX_SPAN_CHARS and nesting_depth(text) <= MAX_DEPTH


def _joined_run(text: str, boxes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the last of the `boxes` that have hardly anything but connectives between them."""
    run = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        gap = BOX.sub("", text[box[1] + 1 : run[0][0]])
        if len(gap) > 80:
            break
        rest = _CONNECTIVES.sub(" ", gap).split()
        if len(rest) > MAX_LIST_WORDS or len(" ".join(rest)) > MAX_LIST_GAP:
            break
        run.insert(0, box)
    return run
