"""One spelling for answers that are the same at first sight: what a vote among them counts."""

from trapo_lite.reward import notation
from trapo_lite.reward.extraction import is_readable
from trapo_lite.reward.quantity import read_quantity


def spelling(answer: str) -> str:
    r"""Numbers by their value, choices by their letter, anything else without typesetting, blanks and case. No
    mathematics is done.

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
