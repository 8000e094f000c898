"""math-verify, for everything that is neither a number nor a word. No SymPy object is ever turned into a string."""

import re
from functools import lru_cache
from typing import Any

from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    _Latex2Sympy,
    latex2sympy,
    normalize_latex,
)
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from math_verify.grader import should_treat_as_complex
from sympy import (
    Add,
    Derivative,
    Equality,
    Expr,
    Float,
    Function,
    Mul,
    Number,
    NumberSymbol,
    Pow,
    Rational,
    Symbol,
    default_sort_key,
    expand,
    false,
    preorder_traversal,
    symbols,
    true,
)
from sympy.core.function import AppliedUndef

EXACT_DIGITS = 30  # two expressions without decimals are equal if they agree to this many digits, less five
RELATIVE_TOLERANCE = 1e-6
MAX_EXACT = 5_000  # exponent, or argument of a factorial
# Units are dealt with before; math-verify's own unit reader also drops variables (`m`, `e`) that stand behind a space.
NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
)
CASE_MATTERS = ConversionConfig(lowercase_symbols=False)
FORMULA_OR_NUMBER = (LatexExtractionConfig(), ExprExtractionConfig())


def _num_primes(text: str) -> int:
    return text.count("'") + text.count(r"\prime")


_ALGEBRA = (Add, Mul, Pow, Symbol, Number, NumberSymbol)
# What the parser drops or computes away becomes a symbol of its own: transposes, primes, derivatives of what it takes
# for constants. And `1e-10` is no product.
_TOLD_APART = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\^\s*(?:\{\s*(?:T|\\top)\s*\}|T(?![a-zA-Z])|\\top(?![a-zA-Z]))", r"_{T}"),
        (r"(?<=[a-zA-Z}])\s*('+|\^\s*\{?\s*(?:\\prime\s*)+\}?)", lambda m: f"_{{{_num_primes(m[1]) * 'p'}}}"),
        (
            r"\\frac\s*\{\s*(?:d|\\partial)\s*(?:\\?([a-zA-Z]+)|\{\s*\\?([a-zA-Z]+)\s*\})\s*\}"
            r"\s*\{\s*(?:d|\\partial)\s*\\?([a-zA-Z]+)\s*\}",
            lambda m: rf"D_{{{m[1] or m[2]}o{m[3]}}}",
        ),
        (r"\\d(d?)ot\s*\{\s*\\?([a-zA-Z]+)\s*\}(?:\(\w\))?", lambda m: rf"D_{{{m[1]}t{m[2]}}}"),
        (r"(?<=\d)[eE](?=[-+]?\d)([-+]?\d+)", r"\\cdot 10^{\1}"),
    ]
]


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
    makes every pair of small numbers equal. So are equations that some point tells apart: math-verify would solve them.
    What SymPy cannot compute with is not the same.
    """
    gold_parsed, answer_parsed = _parse_formula(gold), _parse_formula(answer)
    if gold_parsed is None or answer_parsed is None:
        return False
    try:
        return _same_parsed(answer_parsed, gold_parsed)
    except (TypeError, ValueError, ArithmeticError, NotImplementedError):  # SymPy's ways of saying that it cannot
        return False


def _same_parsed(answer: Any, gold: Any) -> bool:
    if _is_number(answer) and _is_number(gold):
        return _same_number(answer, gold)
    if _are_algebraic(answer, gold):
        if _differ_at_a_point(answer, gold):
            return False
        if expand(answer - gold) == 0:
            return True
    if answer in (true, false) or gold in (true, false):
        return False  # `x = x`: nothing is said
    if isinstance(answer, Equality) or isinstance(gold, Equality):
        if isinstance(answer, Expr) or isinstance(gold, Expr):
            return False  # `x + y = 3` is not its right side; names of values are dealt with before
        if isinstance(answer, Equality) and isinstance(gold, Equality) and _have_other_solutions(answer, gold):
            return False
    return verify([gold], [answer], allow_set_relation_comp=True, timeout_seconds=0)


def extract(text: str) -> str | None:
    """The part of a text without a box that math-verify would grade, as it stands in the text; None if there is none.

    math-verify's anchors ("the final answer is", "answer:") come first, then the last formula or number anywhere, so a
    bare number in an unfinished sentence is an answer.
    """
    parsed = parse(text, FORMULA_OR_NUMBER, parsing_timeout=0)
    return next((reading for reading in parsed if isinstance(reading, str)), None)


@lru_cache(maxsize=512)
def _parse_formula(text: str) -> Any:
    """The SymPy object that math-verify's parser reads in `text` taken as one formula, capitals kept apart; or None.

    Its reader of plain numbers is left out: where the formula does not parse it would pick a number out of it, and
    `1 - \\frac{1}{...}` would equal `1 + \\frac{1}{...}` because both hold a 1.
    """
    for pattern, replacement in _TOLD_APART:
        text = pattern.sub(replacement, text)
    latex = normalize_latex(text, NORMALIZATION)
    is_real = not should_treat_as_complex(latex)
    try:
        return latex2sympy(latex, is_real=is_real, normalization_config=None, conversion_config=CASE_MATTERS)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # its errors are of the class itself
        return None


def _is_number(reading: object) -> bool:
    return isinstance(reading, Expr) and not reading.free_symbols and bool(reading.is_number)


def _are_algebraic(*readings: object) -> bool:
    """Whether they are built from symbols and exact numbers by arithmetic and roots."""
    return all(
        isinstance(one, Expr)
        and not one.has(Float)
        and all(isinstance(part, _ALGEBRA) for part in preorder_traversal(one))
        and one.is_algebraic_expr()
        for one in readings
    )


def _differ_at_a_point(answer: Expr, gold: Expr) -> bool:
    """What has two values at one point is not the same; to simplify the difference takes ten times as long."""
    symbols = sorted(answer.atoms(Symbol) | gold.atoms(Symbol), key=lambda symbol: symbol.name)
    point = [(symbol, 1 + Rational(2 * number + 1, 97)) for number, symbol in enumerate(symbols)]
    here, there = (one.subs(point).evalf(EXACT_DIGITS) for one in (answer, gold))
    difference, size = abs(here - there), abs(there)
    return bool(difference.is_Float and size.is_Float and difference > 1e-12 * size)


def _have_other_solutions(answer: Equality, gold: Equality) -> bool:
    """Whether left minus right are not in one ratio at two points: then neither equation is a multiple of the other.

    An undefined function is a symbol here, `\\theta(t)` as well as `t`.
    """
    here, there = (_left_minus_right(one) for one in (answer, gold))
    if 0 in (here, there):
        return here != there  # `x = x` says nothing
    atoms = here.atoms(Symbol, AppliedUndef) | there.atoms(Symbol, AppliedUndef)
    if len(atoms) < 2 or here.has(Derivative) or there.has(Derivative):
        return False  # in one unknown, equations of other forms have the same solutions
    functions_first = sorted(atoms, key=lambda atom: (-len(atom.args), default_sort_key(atom)))
    names: Any = dict(zip(functions_first, symbols(f"x:{len(atoms)}"), strict=True))
    ratios = []
    for start in (3, 5):
        point = {name: 1 + Rational(2 * number + start, 97) for number, name in enumerate(names.values())}
        values = [one.subs(names).subs(point).evalf(EXACT_DIGITS) for one in (here, there)]
        if not all(value.is_Float and abs(value) > 1e-12 for value in values):
            return False
        ratios.append(values[0] / values[1])
    return bool(abs(ratios[0] - ratios[1]) > 1e-12 * abs(ratios[0]))


def _left_minus_right(equation: Any) -> Any:
    return equation.lhs - equation.rhs


def _is_small(number: Expr) -> bool:
    """Whether it can be computed exactly, without decimals, in no time: `2^{1009} + 1` can, `9^{9^9}` cannot."""
    exponents: list[Any] = [power.exp for power in number.atoms(Pow)]
    arguments: list[Any] = [argument for function in number.atoms(Function) for argument in function.args]
    return not number.has(Float) and all(one.is_Integer and abs(one) <= MAX_EXACT for one in exponents + arguments)


def _same_number(answer: Expr, gold: Expr) -> bool:
    if answer == gold:
        return True
    if answer.is_rational and gold.is_rational and _is_small(answer) and _is_small(gold):
        difference = (answer - gold).doit()
        if difference.is_Rational:
            return difference == 0
    tolerance = RELATIVE_TOLERANCE if answer.has(Float) or gold.has(Float) else 10.0 ** (5 - EXACT_DIGITS)
    difference, size = abs((answer - gold).evalf(EXACT_DIGITS)), abs(gold.evalf(EXACT_DIGITS))
    if not (difference.is_Float or difference.is_Integer) or not (size.is_Float or size.is_Integer):
        return False  # infinite, undefined, or not evaluated
    return bool(difference <= tolerance * (size if size != 0 else 1))
