r"""Find the answer in a text: the last complete `\boxed{...}` after the thought, or none."""

import re
from dataclasses import dataclass

MAX_TEXT_CHARS = 100_000  # only the end of an answer is read; 8,192 tokens are about 30,000 characters
MAX_SPAN_CHARS = 500  # the longest benchmark gold has 210
MAX_DEPTH = 10  # the deepest benchmark gold has 4; parsers take exponential time in the depth
MAX_BOXES_TRIED = 100
MAX_LIST_BOXES = 16
MAX_LIST_GAP = 24  # characters, and
MAX_LIST_WORDS = 3  # words between two boxes of one list

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
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
    boxes, is_open = _complete_boxes(tail)
    if not boxes and not is_open:
        boxes, _ = _complete_boxes(thought)
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


def _complete_boxes(text: str) -> tuple[list[tuple[int, int]], bool]:
    """Return (start, end) of the contents of the last complete boxes, in order, and whether the last box is open."""
    boxes: list[tuple[int, int]] = []
    is_open = False
    for match in list(_BOX.finditer(text))[: -MAX_BOXES_TRIED - 1 : -1]:
        end = _closing_brace(text, match.end())
        if end is None:
            is_open = is_open or not boxes
            continue
        while boxes and end >= boxes[-1][1]:
            boxes.pop()  # it lies inside this box: `\boxed{\boxed{42}}` is one box
        boxes.append((match.end(), end))
        if len(boxes) == MAX_LIST_BOXES:
            break
    return boxes[::-1], is_open


def _closing_brace(text: str, start: int) -> int | None:
    r"""Return the index of the brace that closes the group opened just before `start`.

    `\{` and `\}` are no group braces. If the group does not close without them (`\boxed{185\}`), they count as such.
    """
    window = text[start : start + 8 * MAX_SPAN_CHARS]
    for pattern in (r"\\.|([{}])", r"([{}])"):
        depth = 1
        for match in re.finditer(pattern, window, re.DOTALL):
            if match[1]:
                depth += 1 if match[1] == "{" else -1
            if depth == 0:
                return start + match.start()
    return None


def _joined_run(text: str, boxes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the last of the `boxes` that have hardly anything but connectives between them."""
    run = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        gap = _BOX.sub("", text[box[1] + 1 : run[0][0]])
        if len(gap) > 80:
            break
        rest = _CONNECTIVES.sub(" ", gap).split()
        if len(rest) > MAX_LIST_WORDS or len(" ".join(rest)) > MAX_LIST_GAP:
            break
        run.insert(0, box)
    return run
