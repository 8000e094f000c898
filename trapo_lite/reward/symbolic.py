"""math-verify, for everything that is neither a number nor a word. No SymPy object is ever turned into a string."""

from functools import lru_cache
from typing import Any

from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, _Latex2Sympy
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Expr, Float, Rational, Symbol, expand

EXACT_DIGITS = 30  # two expressions without decimals are equal if they agree to this many digits, less five
RELATIVE_TOLERANCE = 1e-6
# Units are dealt with before; math-verify's own unit reader also drops variables (`m`, `e`) that stand behind a space.
NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
)
FORMULA = (LatexExtractionConfig(normalization_config=NORMALIZATION),)
FORMULA_OR_NUMBER = (LatexExtractionConfig(), ExprExtractionConfig())


def parse_quickly() -> None:
    """Have math-verify's parser try ANTLR's SLL prediction before LL, which caches nothing: 3 times faster.

    SLL gives the tree that LL gives or a syntax error (antlr4.atn.PredictionMode), and after an error LL has its turn.
    """
    create_parser = _Latex2Sympy.create_parser

    def create_quick_parser(self: _Latex2Sympy, latex: str) -> Any:
        parser = create_parser(self, latex)
        parse_all = parser.math

        def math() -> Any:
            parser._interp.predictionMode = PredictionMode.SLL
            try:
                return parse_all()
            except (MemoryError, RecursionError):
                raise
            except Exception:  # their error listener raises the class itself
                parser.reset()
                parser._interp.predictionMode = PredictionMode.LL
                return parse_all()

        parser.math = math
        return parser

    _Latex2Sympy.create_parser = create_quick_parser  # type: ignore[method-assign]


def same_expression(answer: str, gold: str) -> bool:
    """Whether two plain texts are the same mathematics by math-verify's reading.

    Numbers, however they are computed, are compared here instead: math-verify rounds to six absolute decimals, which
    makes every pair of small numbers equal.
    """
    gold_parsed, answer_parsed = _parse_formula(gold), _parse_formula(answer)
    if not gold_parsed or not answer_parsed:
        return False
    numbers = [reading[0] for reading in (answer_parsed, gold_parsed) if _is_number(reading[0])]
    if len(numbers) == 2:
        return _same_number(*numbers)
    if _are_algebraic(answer_parsed[0], gold_parsed[0]):
        if _differ_at_a_point(answer_parsed[0], gold_parsed[0]):
            return False
        if expand(answer_parsed[0] - gold_parsed[0]) == 0:
            return True
    return verify(list(gold_parsed), list(answer_parsed), allow_set_relation_comp=True, timeout_seconds=0)


def extract(text: str) -> str | None:
    """The part of a text without a box that math-verify would grade, as it stands in the text; None if there is none.

    math-verify's anchors ("the final answer is", "answer:") come first, then the last formula or number anywhere, so a
    bare number in an unfinished sentence is an answer.
    """
    parsed = parse(text, FORMULA_OR_NUMBER, parsing_timeout=0)
    return next((reading for reading in parsed if isinstance(reading, str)), None)


@lru_cache(maxsize=512)
def _parse_formula(text: str) -> tuple:
    """What math-verify reads in `text` taken as one formula.

    Its reader of plain numbers is left out: where the formula does not parse it would pick a number out of it, and
    `1 - \\frac{1}{...}` would equal `1 + \\frac{1}{...}` because both hold a 1.
    """
    return tuple(parse(f"${text}$", FORMULA, parsing_timeout=0))


def _is_number(reading: object) -> bool:
    return isinstance(reading, Expr) and not reading.free_symbols and bool(reading.is_number)


def _are_algebraic(*readings: object) -> bool:
    """Whether they are built from symbols and exact numbers by arithmetic and roots."""
    return all(isinstance(one, Expr) and one.is_algebraic_expr() and not one.has(Float) for one in readings)


def _differ_at_a_point(answer: Expr, gold: Expr) -> bool:
    """What has two values at one point is not the same; to simplify the difference takes ten times as long."""
    symbols = sorted(answer.atoms(Symbol) | gold.atoms(Symbol), key=lambda symbol: symbol.name)
    point = [(symbol, 1 + Rational(2 * number + 1, 97)) for number, symbol in enumerate(symbols)]
    here, there = (one.subs(point).evalf(EXACT_DIGITS) for one in (answer, gold))
    difference, size = abs(here - there), abs(there)
    return bool(difference.is_Float and size.is_Float and difference > 1e-12 * size)


def _same_number(answer: Expr, gold: Expr) -> bool:
    if answer == gold:
        return True
    tolerance = RELATIVE_TOLERANCE if answer.has(Float) or gold.has(Float) else 10.0 ** (5 - EXACT_DIGITS)
    difference, size = abs((answer - gold).evalf(EXACT_DIGITS)), abs(gold.evalf(EXACT_DIGITS))
    if not (difference.is_Float or difference.is_Integer) or not (size.is_Float or size.is_Integer):
        return False  # infinite, undefined, or not evaluated
    return bool(difference <= tolerance * (size if size != 0 else 1))
