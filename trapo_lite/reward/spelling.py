"""Give answers that are the same at first sight one spelling, which a vote counts."""

from trapo_lite.reward import notation
from trapo_lite.reward.extraction import is_readable
from trapo_lite.reward.quantity import read_quantity


def spelling(answer: str) -> str:
    r"""Spell numbers by value, choices by letter, and other answers without typesetting, blanks and case.

    >>> spelling(r"\frac{1}{2}") == spelling("$0.5$"), spelling(r"\text{ Evelyn }"), spelling(r"x + \sqrt2")
    (True, 'evelyn', 'x+\\sqrt{2}')
    """
    if not is_readable(answer):
        return answer.strip()
    text = notation.plain(answer)
    quantity = read_quantity(text)
    if quantity is not None:
        base = "" if quantity.base is None else f" in base {quantity.base}"
        return f"{quantity.value}{' percent' if quantity.is_percent else ''} {quantity.unit}{base}".strip()
    return (notation.choice_letter(text) or notation.words(text) or notation.squeezed(text)).casefold()
