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
_JOINED_BY = (
    r"[)*}?\s]*(?:[,;]\s*(?:and/or|or|and)?|\(?\s*(?:and/or|or|and|to|vs|otherwise)|[|&])"
    r"\s*(?:(?:maybe|perhaps|possibly|else|also|it is|then)\s+)*\**"
)
_NUMBER_OR_FORMULA = (
    r"(?:(?<![a-zA-Z])[a-zA-Z](?:_\w)?\s*=\s*)?"
    r"(?:\$[^$\n=]{1,100}\$|\\\([^\n=]{1,100}?\\\)|(?<![\w.])[-+]?\d+(?:[.,/]\d+)*)"
)
# What makes another answer of the number that it stands beside.
_QUALIFIED_BEFORE = re.compile(
    r"(?:(?i:\b(?:not|cannot be|minus|negative|least|most|than|over|under|root of|log|from|between|above|below)|n't)"
    r"|[<>≤≥≠√^]=?|!=|\\(?:neq?|leq?|geq?|log|ln|sqrt))[\s$({\\]*$"
)
_QUALIFIED_AFTER = re.compile(
    r"[)$}\s]*(?:!|\^|[+*·]\s*(?:[.\s]*$|[\w$])|/\s*(?:[.\s]*$|[\d$])|(?i:squared|cubed|factorial|choose|mod|remainder"
    r"|or (?:more|less|fewer)|and more|dozen|hundred|thousand|million|billion)\b)"
)
_NUMBERS = re.compile(rf"{_NUMBER_OR_FORMULA}(?:{_JOINED_BY}{_NUMBER_OR_FORMULA})+")
_LETTERS = re.compile(rf"\(?[A-J]\)?(?:(?:{_JOINED_BY}|\.\s+)\(?[A-J]\)?(?=[)}}\s]*(?:[.,;?!\n]|$|and\b|or\b)))+")


def answer_line(text: str) -> str | None:
    """What stands behind `answer is`, `Answer:`, `A:` or `####` in the last line.

    >>> answer_line("So 3 + 4 is it.\\n#### 7"), answer_line("The answer is 7. I am sure.\\nYes.")
    ('7', None)
    """
    line = _ANSWER_LINE.search(text.rstrip())
    return line[1].replace("**", "").strip(" .") if line else None


def unboxed_answer(tail: str, golds: Sequence[str]) -> str | None:
    """The answer in a text without a box; None if there is nothing to read in it.

    One of several that are offered (`7 or 8`) stands for all of them: who hedges has not answered 7.

    >>> unboxed_answer("Hence the answer is 7.", ["7"]), unboxed_answer("The answer is 7 or 8.", ["7"])
    ('7', '7 or 8')
    """
    end = tail[-MAX_TAIL_CHARS:]
    if len(tail) > len(end) and "\n" in end[:-200]:
        end = end[end.index("\n") :]  # not in the middle of a formula
    if any(all(map(notation.choice_letter, notation.split_list(notation.plain(gold)))) for gold in golds):
        choices = list(_MARKED_CHOICE.finditer(end))
        if choices:
            return _with_its_company(_LETTERS, end, *choices[-1].span(1))
    line = answer_line(end)
    if line and (not _WORD.search(line) or read_quantity(notation.plain(line))):
        return line
    if nesting_depth(end) > MAX_DEPTH:
        return None
    end = notation.with_plain_constants(end)
    reading = extract(end)
    if reading is None:
        return line if line and any(map(notation.words, golds)) else None
    reading = reading.strip(" *")
    place = _place_of(reading, end)
    if place is None:
        return reading
    found = _with_its_company(_NUMBERS, end, *place)
    is_alone = found == end[slice(*place)]
    if is_alone and (_QUALIFIED_BEFORE.search(end[: place[0]]) or _QUALIFIED_AFTER.match(end[place[1] :])):
        return _around(end, *place)
    return found


def _place_of(reading: str, text: str) -> tuple[int, int] | None:
    """Where math-verify found it: the first such place behind the last `answer is`, or else the last one of all.

    A reading with letters directly behind it (`7x`, `7cm`) stands there with them.
    """
    number = re.compile(rf"(?<![\w.,]){re.escape(reading)}(?!\d)[a-zA-Zπ]*(?![.,]\d)")
    anchor = max((match.end() for match in re.finditer(_ANCHOR, text)), default=None)
    behind = None if anchor is None else number.search(text, anchor)
    found = behind or next(reversed(list(number.finditer(text))), None)
    return found.span() if found else None


def _around(text: str, start: int, end: int) -> str:
    """The words about it, three before and two behind: as an answer they are not the number."""
    before = re.search(r"(?:\S+\s*){0,3}$", text[max(0, start - 40) : start])
    after = re.match(r"\s*\S*\s*\S*", text[end : end + 40])
    return f"{before[0] if before else ''}{text[start:end]}{after[0] if after else ''}".strip()


def _with_its_company(series: re.Pattern[str], text: str, start: int, end: int) -> str:
    """text[start:end], or the whole series that it is an element of."""
    around = next((one for one in series.finditer(text) if one.start() <= start and end <= one.end()), None)
    return around[0] if around else text[start:end]
