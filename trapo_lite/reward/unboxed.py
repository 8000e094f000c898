"""The answer of a text that boxes none: an answer line, or what math-verify extracts, with all that is offered beside
it."""

import re
from collections.abc import Sequence

from trapo_lite.reward import notation
from trapo_lite.reward.extraction import MAX_DEPTH, nesting_depth
from trapo_lite.reward.quantity import read_quantity
from trapo_lite.reward.symbolic import extract

MAX_TAIL_CHARS = 1_500
_ANCHOR = r"\b(?i:answer)\**\s*+(?i:is|:)"
_ANSWER_LINE = re.compile(rf"(?:(?:^|\n)[^\S\n]*+(?:####|A:)|{_ANCHOR})[\s:]*+([^\n]{{1,200}})$")
_LETTER = r"(?:\\text(?:bf|rm)?\s*\{\s*)?\(?([A-J])"
_END = r"(?=[)}$* ]*+(?:[.,:;?!\n]|$|and\b|or\b)|\)|\s*+\})"
_MARKED_CHOICE = re.compile(
    r"(?:(?i:answer)\**+\s*+(?i:is)?+\s*+:?+|(?i:option|choice)\s*+(?i:is|:)|(?:^|\n)(?= *+\(?[A-J]\)?[.\s]*+$))"
    rf"[\s*$]*+(?i:option|choice)?+[\s*$]*+{_LETTER}{_END}"
)
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3}")  # not a LaTeX command
_JOINED_BY = r"[)*}\s]*(?:,\s*(?:and/or|or|and)?|and/or|or|and|to)\s+(?:(?:maybe|perhaps|possibly|else|also)\s+)?\**"
_NUMBER_OR_FORMULA = (
    r"(?:(?<![a-zA-Z])[a-zA-Z]\s*=\s*)?"
    r"(?:\$[^$\n=]{1,100}\$|\\\([^\n=]{1,100}?\\\)|(?<![\w.])[-+]?\d+(?:[.,/]\d+)*)"
)
_NUMBERS = re.compile(rf"{_NUMBER_OR_FORMULA}(?:{_JOINED_BY}{_NUMBER_OR_FORMULA})+")
_LETTERS = re.compile(rf"\(?[A-J]\)?(?:{_JOINED_BY}\(?[A-J]\)?(?=[)}}\s]*(?:[.,;?!\n]|$|and\b|or\b)))+")


def answer_line(text: str) -> str | None:
    """What stands behind `answer is`, `Answer:`, `A:` or `####` in the last line.

    >>> answer_line("So 3 + 4 is it.\\n#### 7"), answer_line("The answer is 7. I am sure.\\nYes.")
    ('7', None)
    """
    line = _ANSWER_LINE.search(text.rstrip())
    return line[1] if line else None


def unboxed_answer(tail: str, golds: Sequence[str]) -> str | None:
    """The answer in a text without a box; None if there is nothing to read in it.

    One of several that are offered (`7 or 8`) stands for all of them: who hedges has not answered 7.

    >>> unboxed_answer("Hence the answer is 7.", ["7"]), unboxed_answer("The answer is 7 or 8.", ["7"])
    ('7.', '7 or 8')
    """
    end = tail[-MAX_TAIL_CHARS:]
    if len(tail) > len(end) and "\n" in end[:-200]:
        end = end[end.index("\n") :]  # not in the middle of a formula
    if any(all(map(notation.choice_letter, notation.split_list(notation.plain(gold)))) for gold in golds):
        choices = list(_MARKED_CHOICE.finditer(end))
        if choices:
            return _with_its_company(_LETTERS, end, *choices[-1].span(1))
    line = answer_line(end)
    if line and read_quantity(notation.plain(line)):
        return line
    if nesting_depth(end) > MAX_DEPTH:
        return None
    end = notation.with_plain_constants(end)
    reading = extract(end)
    if reading is None:
        return line if line and (not _WORD.search(line) or any(map(notation.words, golds))) else None
    reading = reading.strip(" *")
    place = _place_of(reading, end)
    return reading if place is None else _with_its_company(_NUMBERS, end, *place)


def _place_of(reading: str, text: str) -> tuple[int, int] | None:
    """Where math-verify found it: the first such place behind the last `answer is`, or else the last one of all."""
    number = re.compile(rf"(?<![\w.,]){re.escape(reading)}(?![\w])(?![.,]\d)")
    anchor = max((match.end() for match in re.finditer(_ANCHOR, text)), default=None)
    behind = None if anchor is None else number.search(text, anchor)
    found = behind or next(reversed(list(number.finditer(text))), None)
    return found.span() if found else None


def _with_its_company(series: re.Pattern[str], text: str, start: int, end: int) -> str:
    """text[start:end], or the whole series that it is an element of."""
    around = next((one for one in series.finditer(text) if one.start() <= start and end <= one.end()), None)
    return around[0] if around else text[start:end]
