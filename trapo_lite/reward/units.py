r"""Read the units and counted things behind a number, and decide whether two of them may be the same."""

import re

from trapo_lite.reward.notation import SET_UPRIGHT

MULTIPLIERS = {
    "dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "quadrillion": 10**15, "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
MAX_WORDS = 4  # words for the counted thing: `5 \text{ small red balls}`
_UNITS = (
    "mm millimeter,cm centimeter,dm,m meter,km kilometer,in inch inches,ft foot feet,yd yard,mile mi,"
    "ms,s sec second,min minute,h hr hour,day,week,month,year yr,am,pm,"
    "mg,g gram,kg kilogram,lb pound,ton tonne,oz ounce,"
    "dollar USD,cent,euro,yuan,rupee,unit,degree deg,radian rad,L l liter litre,mL ml,gallon,mph,Hz,kHz,"
    "MHz,J,kJ,W,kW,N,Pa,V,A,K,C,mol,people person,student,way,point,side,square sq,cubic cu,per,erg,AU,pc,ly,eV"
)
_UNIT_BY_WORD = {
    spelling: spellings.split()[0]
    for spellings in _UNITS.split(",")
    for word in spellings.split()
    for spelling in (word, word + "s")
}
_UNIT_BY_WORD |= {"mph": "mile per h", "kph": "km per h", "kmh": "km per h"}
_PRODUCTS = ("mg", "ms", "mi", "hr", "pc")  # not units directly behind a number: `5mg` may be mass times acceleration
_LONG_WORDS = [word for word in (*_UNIT_BY_WORD, *MULTIPLIERS) if len(word) > 1]
_LONG_UNIT = "|".join(sorted(_LONG_WORDS, key=len, reverse=True))
_TEXT_UNIT = re.compile(rf"\s*{SET_UPRIGHT}\s*\{{([^{{}}]*)\}}\s*(?:\^\s*\{{?([-\d]+)\}}?)?\s*$")
_WORD_UNIT = re.compile(
    rf"(?<![\\a-zA-Z])\s*((?:{_LONG_UNIT})(?:[ /]+(?:{_LONG_UNIT}))*)\.?\s*(?:\^\s*\{{?(-?\d)\}}?)?\s*$"
)
_DEGREE = re.compile(r"\s*\^\\circ\s*(?:\\(?:text|mathrm)\s*\{\s*)?([CF])?\s*\}?\s*$")
_POWERS = [(re.compile(rf"\b{name} (\S+)"), rf"\1^{power}") for name, power in (("square", 2), ("cubic", 3))]
_TEMPERATURE = re.compile(r"\bdegree (?:([CF])\b|(celsiu|fahrenheit)\b)")
# `5 \text{ or more}` is another answer than 5.
_RESTRICTING = (
    "or and not no more less fewer least most than about almost approximately nearly only is are was does do if "
    "when where for unless except either neither maybe perhaps possible other false true wrong incorrect "
    "undefined impossible cannot none approx roughly around probably likely guess otherwise else but also then "
    "six xor nor versus upwards up under above below beyond exceeding within minimum maximum to through one two "
    "three four five seven eight nine ten zero half halves third quarter tenth hundredth pi times root plus minus "
    "negative squared cubed factorial inverse reciprocal remainder mod modulo base infinity permille ppm"
)
_NOT_COUNTED = frozenset(_RESTRICTING.split())
_KNOWN = frozenset(_UNIT_BY_WORD.values())


def split_unit(text: str) -> tuple[str, str]:
    r"""Return (`text` without its unit, unit). The unit is a final `\text{...}`, or plain words that are always units.

    >>> split_unit(r"10 \text{ cm}^{2}"), split_unit(r"3\text{ square feet}"), split_unit(r"5 \text{ or more}")
    (('10', 'cm^2'), ('3', 'ft^2'), ('5 \\text{ or more}', ''))
    """
    if degree := _DEGREE.search(text):
        return text[: degree.start()], "degree" + (f"-{degree[1]}" if degree[1] else "")
    for pattern in (_TEXT_UNIT, _WORD_UNIT):
        match = pattern.search(text)
        if match and match.start() > 0 and not (pattern is _WORD_UNIT and match[0] in _PRODUCTS):
            unit = _unit_of(match[1], match[2])
            return (text, "") if unit is None else (text[: match.start()], unit)
    return text, ""


def split_known_unit(text: str) -> tuple[str, str]:
    r"""Split the unit off any expression. An unknown word stays, because it may be a part of the expression.

    >>> split_known_unit(r"12\pi \text{ cm}^2"), split_known_unit(r"n \text{ odd}"), split_known_unit("2mg")
    (('12\\pi', 'cm^2'), ('n \\text{ odd}', ''), ('2mg', ''))
    """
    rest, unit = split_unit(text)
    is_set_off = not rest or not rest[-1].isalnum() or text[len(rest) :][:1] in (" ", "\\", "^")
    return (rest, unit) if is_set_off and all(map(_is_known, unit.split())) else (text, "")


def multiplied(unit: str) -> tuple[int, str]:
    """Return (factor, unit without it): `5 million dollars` is a number of dollars.

    >>> multiplied("million dollar"), multiplied("cm")
    ((1000000, 'dollar'), (1, 'cm'))
    """
    factor, words = 1, unit.split()
    while words and words[0] in MULTIPLIERS:
        factor *= MULTIPLIERS[words.pop(0)]
    return factor, " ".join(words)


def may_be_same(unit: str, other: str) -> bool:
    """Return whether equal numbers with these units are one answer: equal units, one missing, or one more precise.

    >>> may_be_same("cm", ""), may_be_same("cm", "km"), may_be_same("red ball", "ball"), may_be_same("km per h", "km")
    (True, False, True, False)
    """
    if unit == other or not unit or not other:
        return True
    if unit.startswith("degree") and other.startswith("degree"):
        return "degree" in (unit, other)
    shorter, longer = sorted((set(unit.split()), set(other.split())), key=len)
    return shorter < longer and not any(_is_known(word) for word in longer - shorter)


def _unit_of(text: str, power: str | None) -> str | None:
    """Return the unit in one spelling, "" for `units`, or None for words that are neither unit nor counted thing."""
    text = re.sub(r"\b([ap])\.\s*m\b\.?", r"\1m", text)
    text = re.sub(r"\s*/\s*|\bper\b", " per ", text)
    words = [_UNIT_BY_WORD.get(word) or _singular(word) for word in re.split(r"[\s.,]+", text) if word]
    if len(words) > MAX_WORDS or not all(map(_is_word, words)):
        return None
    unit = " ".join(words) + (f"^{power}" if power and words else "")
    for pattern, powered in _POWERS:
        unit = pattern.sub(powered, unit)
    unit = _TEMPERATURE.sub(lambda match: f"degree-{match[1] or match[2][0].upper()}", unit)
    return " ".join(word for word in unit.split() if word.split("^")[0] != "unit")


def _singular(word: str) -> str:
    return word.lower().removesuffix("s") if len(word) > 3 else word


def _is_word(word: str) -> bool:
    """Return whether the word may be part of a unit or a counted thing. A lone letter that is no unit is a symbol."""
    is_long_enough = len(word) > 1 or word in _UNIT_BY_WORD
    return word.split()[0].replace("-", "").isalpha() and is_long_enough and word.lower() not in _NOT_COUNTED


def _is_known(word: str) -> bool:
    return word.split("^")[0] in _KNOWN
