r"""Find the complete boxes, `\boxed{...}`, in a text. The verifier and the data read the same ones."""

import re

MAX_SPAN_CHARS = 500  # the longest benchmark gold has 210
MAX_BOXES_TRIED = 100
MAX_LIST_BOXES = 16

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def last_box(text: str) -> str | None:
    r"""Return what the last complete box after the thought holds, otherwise the last one in the thought, or None.

    >>> last_box(r"<think>\boxed{7}</think> so \boxed{\frac{1}{2}}."), last_box(r"\boxed{")
    ('\\frac{1}{2}', None)
    """
    for part in (text.rpartition("</think>")[2], text):
        boxes, _ = complete_boxes(part)
        if boxes:
            start, end = boxes[-1]
            return part[start:end]
    return None


def complete_boxes(text: str) -> tuple[list[tuple[int, int]], bool]:
    """Return (start, end) of the contents of the last complete boxes, in order, and whether the last box is open."""
    boxes: list[tuple[int, int]] = []
    is_open = False
    for match in list(BOX.finditer(text))[: -MAX_BOXES_TRIED - 1 : -1]:
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
