r"""Grade one answer in layers: choose its text, then compare words, numbers, lists and at last use math-verify.

A layer returns None if it cannot decide. The first layer that decides wins. docs/verifier.md has the rules in prose.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from trapo_lite.reward import notation
from trapo_lite.reward.extraction import find_answer, is_readable
from trapo_lite.reward.quantity import Quantity, read_quantity, same_quantity
from trapo_lite.reward.symbolic import extract, same_expression
from trapo_lite.reward.unboxed import MAX_TAIL_CHARS, answer_line, unboxed_answer
from trapo_lite.reward.units import may_be_same, split_known_unit

MAX_GOLD_CHARS = 300  # the longest benchmark gold has 210; anything longer is a solution
MAX_UNORDERED = 16  # formulas; numbers are compared however many there are
_HEDGES = re.compile(r"\\(?:ldots|dots|cdots|forall|exists)(?![a-zA-Z])|\.\.\.")
_INTERVALS = {"()", "(]", "[)", "[]"}
_RATIO = re.compile(r"\d+(?:\s*(?::|\\colon)\s*\d+)+")
_WORD = re.compile("[a-z]{3}")  # shorter ones may be products, where capitals are other letters
# Without these, words would be products of letters: `on` would equal `no`.
_BARE_WORDS = {"yes", "no", "true", "false", "even", "odd", "none", "never", "north", "south", "east", "west"}

Element = TypeVar("Element")


def grade(answer_text: str, gold: str, *, require_box: bool) -> tuple[str, str | None]:
    r"""Return (kind, graded text) of one answer. The kind is correct, wrong or no_answer.

    >>> grade(r"so it is \boxed{0.5}", r"\frac12", require_box=True)
    ('correct', '0.5')
    >>> grade("it is 0.5", r"\frac12", require_box=True)
    ('no_answer', None)
    """
    golds = gold_readings(gold)
    span = find_answer(answer_text)
    text = span.last
    if text is None and not require_box and not span.is_open:  # a box that was begun and cut off earns nothing
        text = unboxed_answer(span.tail, golds)
    if text is None or not notation.plain(text):
        return "no_answer", None
    if any(is_same(text, reading) for reading in golds):
        return "correct", text
    if span.merged is not None and any(_is_list(reading) and is_same(span.merged, reading) for reading in golds):
        return "correct", span.merged
    return "wrong", text


@lru_cache(maxsize=1024)
def gold_readings(gold: str) -> tuple[str, ...]:
    r"""Return the texts that count as correct: usually one, the gold itself or the contents of its boxes.

    A gold that is a whole solution is read like an answer. An empty gold has no reading, so that nothing equals it.
    """
    span = find_answer(gold)
    if span.last is not None:
        readings = [span.merged or span.last]
    elif len(gold) > MAX_GOLD_CHARS or ("\n" in gold.strip() and r"\begin" not in gold):
        readings = [extract(gold[-MAX_TAIL_CHARS:])]
    elif line := answer_line(gold):
        readings = [line, gold] if notation.choice_letter(notation.plain(gold)) else [line]  # `A: light`
    else:
        readings = [gold]
    return tuple(reading for reading in readings if reading and notation.plain(reading))


def is_same(answer: str, gold: str) -> bool:
    """Return whether two answers, as written, are the same answer."""
    if not is_readable(answer) or not is_readable(gold):
        return notation.squeezed(answer) == notation.squeezed(gold)
    return _is_same_plain(notation.plain(answer), notation.plain(gold))


def _is_same_plain(answer: str, gold: str) -> bool:
    if not answer or not gold:
        return False
    if notation.squeezed(answer) == notation.squeezed(gold):
        return True
    if _HEDGES.search(answer) or _HEDGES.search(gold):
        return False  # sequences given by a few terms and statements for all x are equal only as texts
    for decide in (_same_words, _same_number, _same_ratio, _same_assignment, _same_list, _same_with_unit):
        decision = decide(answer, gold)
        if decision is not None:
            return decision
    return same_expression(answer, gold)


def _same_words(answer: str, gold: str) -> bool | None:
    letter = notation.choice_letter(gold)
    if letter and letter == notation.choice_letter(answer) and (notation.is_letter(gold) or notation.is_letter(answer)):
        return True
    answer_words, gold_words = notation.words(answer), notation.words(gold)
    is_text = notation.has_text(answer) or notation.has_text(gold)
    if answer_words and answer_words == gold_words and (is_text or _WORD.search(answer_words)):
        return True
    if answer_words and gold_words and is_text:
        return False
    if {answer_words, gold_words} & _BARE_WORDS:
        return False
    if r"\angle" in answer and r"\angle" in gold:
        return False  # the letters are points, not factors
    return None


def _same_number(answer: str, gold: str) -> bool | None:
    """Compare two numbers. The letter in the gold `5 m` is a unit only if the answer has that unit, else a factor."""
    answer_number, gold_number = read_quantity(answer, letter_is_unit=True), read_quantity(gold)
    if answer_number is not None and answer_number.unit and gold_number is None:
        gold_number = read_quantity(gold, letter_is_unit=True)
        if gold_number is not None and gold_number.unit != answer_number.unit:
            return None
    if answer_number is None or gold_number is None:
        return None
    return same_quantity(answer_number, gold_number)


def _same_ratio(answer: str, gold: str) -> bool | None:
    """Compare two ratios: `3:4` equals `6:8`. `4:40` and `2:20` differ, because they may be times of day."""
    if not _RATIO.fullmatch(answer) or not _RATIO.fullmatch(gold):
        return None
    ours, theirs = (re.findall(r"\d+", text) for text in (answer, gold))
    a, b = list(map(int, ours)), list(map(int, theirs))
    if a == b or len(a) != len(b) or all(len(part) == 2 for part in (*ours[1:], *theirs[1:])):
        return a == b
    return 0 not in (*a, *b) and all(x * b[0] == y * a[0] for x, y in zip(a, b, strict=True))


def _same_assignment(answer: str, gold: str) -> bool | None:
    r"""Compare assignments: `x = 1` equals `1`, `f(x) = 2x` equals `y = 2x`; any other two names must be the same.

    Of `a \approx b` only a is compared.
    """
    exact, is_rounded, _ = answer.partition(r"\approx")
    if is_rounded and not notation.is_relation(gold):
        if _is_same_plain(exact.strip(), gold):
            return True
        if not notation.is_name(exact):
            return False
    (answer_name, answer_value), (gold_name, gold_value) = notation.assignment(answer), notation.assignment(gold)
    if "=" in answer and not notation.is_relation(gold):
        if notation.is_equation_chain(answer):
            return _is_same_plain(answer.rpartition("=")[2].strip(), gold)
        return False if len(notation.split_list(answer)) == 1 else None
    if answer_name is None and gold_name is None:
        return None
    if (
        answer_name
        and gold_name
        and answer_name.casefold() != gold_name.casefold()
        and not (_is_function(answer_name) and _is_function(gold_name))
    ):
        return None
    if any(name is None and notation.is_relation(text) for name, text in ((answer_name, answer), (gold_name, gold))):
        return None
    return _is_same_plain(answer_value, gold_value)


def _is_function(name: str) -> bool:
    r"""Return whether the name stands for a function's value: `y`, `f(x)`, `g(t)`, but not `\sin(x)`."""
    return name == "y" or bool(re.fullmatch(r"[a-zA-Z]\(.*\)", name))


def _is_list(text: str) -> bool:
    brackets, inside = notation.unbracketed(notation.plain(text))
    return len(notation.split_list(inside if brackets in ("", "{}", "[]") else notation.plain(text))) > 1


def _same_list(answer: str, gold: str) -> bool | None:
    r"""Compare sets and bare lists in any order, tuples in order. Return None if math-verify should decide.

    It decides if an element may stand for several (`1 \pm 2`) or is a relation, and if the brackets may belong to an
    interval.
    """
    (answer_kind, answer_inside), (gold_kind, gold_inside) = notation.unbracketed(answer), notation.unbracketed(gold)
    answers, golds = notation.split_list(answer_inside), notation.split_list(gold_inside)
    if max(len(answers), len(golds)) < 2:
        return None
    answer_names, gold_names = _names(answers), _names(golds)
    if (answer_names is None) != (gold_names is None):
        return _same_values(answers, golds, answer_names or gold_names or [])
    is_open = any(_stands_for_more(element, is_named=answer_names is not None) for element in (*answers, *golds))
    answer_numbers, gold_numbers = _numbers(answers), _numbers(golds)
    are_numbers = answer_numbers is not None and gold_numbers is not None
    if answer_kind != gold_kind and {answer_kind, gold_kind} not in ({"", "()"}, {"", "{}"}):
        are_intervals = {answer_kind, gold_kind} <= _INTERVALS and {answer_kind, gold_kind} & {"(]", "[)"}
        is_decided = "{}" in (answer_kind, gold_kind) or (are_intervals and are_numbers)
        return False if is_decided and not is_open else None
    in_any_order = {answer_kind, gold_kind} <= {"", "{}"}
    if answer_numbers is not None and gold_numbers is not None:
        return _match(answer_numbers, gold_numbers, same_quantity, in_any_order=in_any_order)
    in_any_order = in_any_order and len(golds) <= MAX_UNORDERED
    return _match(answers, golds, _is_same_plain, in_any_order=in_any_order) or (None if is_open else False)


def _names(elements: Sequence[str]) -> list[str] | None:
    """Return the names in `x = 1, y = 2`, or None if an element has no name."""
    names = [notation.assignment(element)[0] for element in elements]
    return None if None in names else [name for name in names if name is not None]


def _same_values(answers: Sequence[str], golds: Sequence[str], names: Sequence[str]) -> bool | None:
    """Compare lists with names on one side only: in order if there are several names, in any order if there is one."""
    if any(map(notation.is_relation, answers)) and any(map(notation.is_relation, golds)):
        return None
    ours, theirs = ([notation.assignment(element)[1] for element in side] for side in (answers, golds))
    return _match(ours, theirs, _is_same_plain, in_any_order=len(set(names)) == 1 and len(names) > 1)


def _stands_for_more(element: str, *, is_named: bool) -> bool:
    return r"\pm" in element or r"\mp" in element or (notation.is_relation(element) and not is_named)


def _same_with_unit(answer: str, gold: str) -> bool | None:
    r"""Compare expressions with known units like numbers with units: `12\pi \text{ cm}^2` equals `12\pi`."""
    (ours, our_unit), (theirs, their_unit) = split_known_unit(answer), split_known_unit(gold)
    if (ours, theirs) == (answer, gold):
        return None
    return may_be_same(our_unit, their_unit) and _is_same_plain(ours, theirs)


def _match(
    answers: Sequence[Element],
    golds: Sequence[Element],
    same: Callable[[Element, Element], bool],
    *,
    in_any_order: bool,
) -> bool:
    """Return whether the elements pair off one to one, in order or `in_any_order`."""
    if len(answers) != len(golds):
        return False
    if not in_any_order:
        return all(map(same, answers, golds))
    remaining = list(golds)
    for answer in answers:
        match = next((index for index, gold in enumerate(remaining) if same(answer, gold)), None)
        if match is None:
            return False
        del remaining[match]
    return True


def _numbers(elements: Sequence[str]) -> list[Quantity] | None:
    numbers = [read_quantity(element) for element in elements]
    return None if None in numbers else [quantity for quantity in numbers if quantity is not None]
