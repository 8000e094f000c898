r"""Read numbers exactly, as rationals, with their percent sign, unit and base."""

import re
from dataclasses import dataclass
from fractions import Fraction

from trapo_lite.reward.notation import TEXT_COMMAND
from trapo_lite.reward.units import may_be_same, multiplied, split_unit

MAX_EXPONENT = 400
RELATIVE_TOLERANCE = Fraction(1, 10**6)

_LETTER_UNIT = re.compile(r"(?<=\d)\s+([msghLJNWKVAC])\s*$")
_PERCENT = re.compile(rf"\s*(?:\\?%|{TEXT_COMMAND}\s*\{{\s*(?:\\?%|percent)\s*\}}|[Pp]ercent(?:age)?|[Pp]ct)\s*$")
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)"
_SIGNED = rf"[-+]?\s*{_DECIMAL}"
_TIMES = r"\s*(?:\\times|\\cdot|\*|x)\s*"
_SCIENTIFIC = re.compile(
    rf"({_SIGNED})?(?:(?:{_TIMES})?(?<![\d.])10\s*\^\s*(?:\{{\s*([-+]?\s*\d+)\s*\}}|\(\s*([-+]?\d+)\s*\)|([-+]?\d+))"
    r"|[eE]([-+]?\d+))"
)
_FRACTION = re.compile(
    rf"([-+]?)\s*(\d+(?=\s*\\frac))?\s*\\frac\s*\{{\s*({_SIGNED})\s*\}}\s*\{{\s*({_SIGNED})\s*\}}"
    rf"|({_SIGNED})\s*/\s*({_DECIMAL})"
    rf"|([-+]?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)"
)
_REPEATING = re.compile(r"([-+]?)\s*(\d*)\.(\d*)(?:\\(?:overline|bar)\s*\{(\d+)\}|\\dot\s*\{(\d)\})")
_IN_BASE = re.compile(r"([-+]?)(\d+)\s*_\s*\{?\s*(\d{1,2})\s*\}?")


@dataclass(frozen=True)
class Quantity:
    """A Quantity is a number. `is_exact`: written as an integer or a fraction of integers, not as a decimal."""

    value: Fraction
    is_exact: bool
    is_percent: bool = False
    unit: str = ""
    base: int | None = None


def read_quantity(text: str, *, letter_is_unit: bool = False) -> Quantity | None:
    r"""Return the number that the plain text is, or None for anything else, including an expression to compute.

    letter_is_unit: a letter after a blank (`5 m`) is a unit; otherwise it is a symbol.

    >>> read_quantity(r"1\frac{1}{2}").value, read_quantity("4.5e3").value, read_quantity("28 percent").is_percent
    (Fraction(3, 2), Fraction(4500, 1), True)
    >>> read_quantity(r"10 \text{ cm}^{2}").unit, read_quantity("10x"), read_quantity("2^3")
    ('cm^2', None, None)
    """
    text, is_percent = _PERCENT.subn("", text)
    text, unit = split_unit(text)
    factor, unit = multiplied(unit)
    if letter_is_unit and not unit and (letter := _LETTER_UNIT.search(text)):
        text, unit = text[: letter.start()], letter[1]
    text = re.sub(r"^\(([^(),]*)\)$|^\{([^{}]*)\}$", lambda match: match[1] or match[2] or "", text.strip()).strip()
    if in_base := _IN_BASE.fullmatch(text):
        sign, digits, base = in_base[1], in_base[2], int(in_base[3])
        if not 2 <= base <= 10 or any(int(digit) >= base for digit in digits):
            return None
        return Quantity(Fraction(int(sign + digits, base)), is_exact=True, base=base)
    reading = _read_number(text)
    if reading is None:
        return None
    value, is_exact = reading
    return Quantity(factor * value, is_exact, is_percent=bool(is_percent), unit=unit)


def same_quantity(answer: Quantity, gold: Quantity) -> bool:
    """Compare two numbers: exact ones must be equal, decimals agree to 1e-6 (relative unless the gold is an integer).

    A percentage is the number before its sign or a hundredth of it, whichever fits: 28% equals 0.28, and it equals 28,
    which "how many percent" asks for. A unit may be missing; two different units are two different answers.
    """
    if not may_be_same(answer.unit, gold.unit):
        return False
    if gold.base != answer.base:
        return _digits_agree(answer, gold)
    if _close(answer.value, gold.value, is_exact=answer.is_exact and gold.is_exact):
        return True
    if answer.is_percent == gold.is_percent:
        return False
    scaled = answer.value / 100 if answer.is_percent else answer.value * 100
    return _close(scaled, gold.value, is_exact=answer.is_exact and gold.is_exact)


def _digits_agree(answer: Quantity, gold: Quantity) -> bool:
    """Return whether the digits agree: `52` equals the gold `52_8`, because the question named the base."""
    with_base, without = (gold, answer) if gold.base else (answer, gold)
    if without.base or not without.is_exact or without.value.denominator != 1 or with_base.base is None:
        return False
    digits = str(abs(without.value.numerator))
    if len(digits) > 100 or any(int(digit) >= with_base.base for digit in digits):
        return False
    return int(digits, with_base.base) * (1 if without.value >= 0 else -1) == with_base.value


def _close(answer: Fraction, gold: Fraction, *, is_exact: bool) -> bool:
    if is_exact:
        return answer == gold
    scale = Fraction(1) if gold.denominator == 1 and 0 < abs(gold) < 10**9 else abs(gold)
    return abs(answer - gold) <= RELATIVE_TOLERANCE * scale


def _read_number(text: str) -> tuple[Fraction, bool] | None:
    """Return (value, is_exact) of an optional sign and a decimal, a power of ten, a fraction or a mixed number."""
    if re.fullmatch(_SIGNED, text):
        return _decimal(text), "." not in text
    if match := _SCIENTIFIC.fullmatch(text):
        exponent = int(re.sub(r"\s", "", match[2] or match[3] or match[4] or match[5]))
        if abs(exponent) > MAX_EXPONENT or (match[5] and not match[1]):
            return None
        mantissa = _decimal(match[1]) if match[1] else Fraction(1)
        return mantissa * Fraction(10) ** exponent, not match[1] or "." not in match[1]
    if match := _REPEATING.fullmatch(text):
        before, once, again = match[2], match[3], match[4] or match[5]
        ends = int((before + once + again) or 0) - int((before + once) or 0)
        return (-1 if match[1] == "-" else 1) * Fraction(ends, (10 ** len(again) - 1) * 10 ** len(once)), True
    if match := _FRACTION.fullmatch(text):
        numerator, denominator = match[3] or match[5] or match[9], match[4] or match[6] or match[10]
        if _decimal(denominator) == 0:
            return None
        value = _decimal(match[2] or match[8] or "0") + _decimal(numerator) / _decimal(denominator)
        sign = -1 if "-" in (match[1] or match[7] or "") else 1
        return sign * value, "." not in numerator + denominator
    return None


def _decimal(digits: str) -> Fraction:
    return Fraction(re.sub(r"[\s,]", "", digits.rstrip(".")))
