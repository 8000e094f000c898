"""Read the answer of a text without a box: its answer line, or what math-verify extracts with any alternatives."""

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
# A number beside one of these is not the answer by itself.
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
    r"""Return the text behind `answer is`, `Answer:`, `A:` or `####` in the last line, or None.

    >>> answer_line("So 3 + 4 is it.\n#### 7"), answer_line("The answer is 7. I am sure.\nYes.")
    ('7', None)
    """
    line = _ANSWER_LINE.search(text.rstrip())
    return line[1].replace("**", "").strip(" .") if line else None


def unboxed_answer(tail: str, golds: Sequence[str]) -> str | None:
    """Return the answer in a text without a box, or None if there is none.

    If several are offered (`7 or 8`), all of them are the answer, so that a hedge is not a correct 7.

    >>> unboxed_answer("Hence the answer is 7.", ["7"]), unboxed_answer("The answer is 7 or 8.", ["7"])
    ('7', '7 or 8')
    """
    end = tail[-MAX_TAIL_CHARS:]
    if len(tail) > len(end) and "\n" in end[:-200]:
        end = end[end.index("\n") :]  # so as not to start in the middle of a formula
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
    span = _place_of(reading, end)
    if span is None:
        return reading
    answer = _with_its_company(_NUMBERS, end, *span)
    is_alone = answer == end[slice(*span)]
    if is_alone and (_QUALIFIED_BEFORE.search(end[: span[0]]) or _QUALIFIED_AFTER.match(end[span[1] :])):
        return _around(end, *span)
    return answer


def _place_of(reading: str, text: str) -> tuple[int, int] | None:
    """Return the position of math-verify's reading: the first behind the last `answer is`, else the last of all.

    Letters directly behind the reading (`7x`, `7cm`) are included.
    """
    pattern = re.compile(rf"(?<![\w.,]){re.escape(reading)}(?!\d)[a-zA-Zπ]*(?![.,]\d)")
    anchor = max((match.end() for match in re.finditer(_ANCHOR, text)), default=None)
    behind = None if anchor is None else pattern.search(text, anchor)
    nearest = behind or next(reversed(list(pattern.finditer(text))), None)
    return nearest.span() if nearest else None


def _around(text: str, start: int, end: int) -> str:
    """Return text[start:end] with three words before and two behind it, an answer that differs from the number."""
    before = re.search(r"(?:\S+\s*){0,3}$", text[max(0, start - 40) : start])
    after = re.match(r"\s*\S*\s*\S*", text[end : end + 40])
    return f"{before[0] if before else ''}{text[start:end]}{after[0] if after else ''}".strip()


def _with_its_company(series: re.Pattern[str], text: str, start: int, end: int) -> str:
    """Return text[start:end], or the whole series of which it is an element."""
    around = next((match for match in series.finditer(text) if match.start() <= start and end <= match.end()), None)
    return around[0] if around else text[start:end]
