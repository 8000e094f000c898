"""Compare by math-verify what is neither a number nor a word. No SymPy object is ever turned into a string."""

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
# Units are removed before: math-verify's own unit reader also drops variables (`m`, `e`) after a space.
NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
)
CASE_MATTERS = ConversionConfig(lowercase_symbols=False)
FORMULA_OR_NUMBER = (LatexExtractionConfig(), ExprExtractionConfig())


def _num_primes(text: str) -> int:
    return text.count("'") + text.count(r"\prime")


_ALGEBRA = (Add, Mul, Pow, Symbol, Number, NumberSymbol)
# Transposes, primes, and derivatives of what the parser takes for constants become symbols of their own, because
# the parser drops them or computes them away. And `1e-10` is no product.
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

    SLL gives LL's tree or a syntax error (antlr4.atn.PredictionMode). After an error the parser tries LL.
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
    """Return whether two plain texts are the same mathematics by math-verify's reading.

    Numbers, also computed ones, are compared here: math-verify rounds to six absolute decimals, so that all small
    numbers would be equal. Equations that differ at a point are decided here too, because math-verify would solve them.
    Expressions that SymPy cannot compute with are not the same.
    """
    gold_parsed, answer_parsed = _parse_formula(gold), _parse_formula(answer)
    if gold_parsed is None or answer_parsed is None:
        return False
    try:
        return _same_parsed(answer_parsed, gold_parsed)
    except (TypeError, ValueError, ArithmeticError, NotImplementedError):  # SymPy's ways to say that it cannot
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
        return False  # `x = x` states nothing
    if isinstance(answer, Equality) or isinstance(gold, Equality):
        if isinstance(answer, Expr) or isinstance(gold, Expr):
            return False  # `x + y = 3` is not its right side; `name = value` was compared before
        if isinstance(answer, Equality) and isinstance(gold, Equality) and _have_other_solutions(answer, gold):
            return False
    return verify([gold], [answer], allow_set_relation_comp=True, timeout_seconds=0)


def extract(text: str) -> str | None:
    """Return the part of a text without a box that math-verify would grade, as it stands in the text, or None.

    math-verify's anchors ("the final answer is", "answer:") come first, then the last formula or number anywhere. So a
    bare number in an unfinished sentence is an answer.
    """
    parsed = parse(text, FORMULA_OR_NUMBER, parsing_timeout=0)
    return next((reading for reading in parsed if isinstance(reading, str)), None)


@lru_cache(maxsize=512)
def _parse_formula(text: str) -> Any:
    r"""Return the SymPy object that math-verify's parser reads in `text` as one formula, or None. Case matters.

    Its reader of plain numbers is left out. From a formula that does not parse it would pick a number, and
    `1 - \frac{1}{...}` would equal `1 + \frac{1}{...}` because both hold a 1.
    """
    for pattern, replacement in _TOLD_APART:
        text = pattern.sub(replacement, text)
    latex = normalize_latex(text, NORMALIZATION)
    is_real = not should_treat_as_complex(latex)
    try:
        return latex2sympy(latex, is_real=is_real, normalization_config=None, conversion_config=CASE_MATTERS)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # its errors are plain Exceptions
        return None


def _is_number(reading: object) -> bool:
    return isinstance(reading, Expr) and not reading.free_symbols and bool(reading.is_number)


def _are_algebraic(*readings: object) -> bool:
    """Return whether all readings are built from symbols and exact numbers by arithmetic and roots."""
    return all(
        isinstance(reading, Expr)
        and not reading.has(Float)
        and all(isinstance(part, _ALGEBRA) for part in preorder_traversal(reading))
        and reading.is_algebraic_expr()
        for reading in readings
    )


def _differ_at_a_point(answer: Expr, gold: Expr) -> bool:
    """Return whether the values differ at one point. To simplify the difference takes ten times as long."""
    symbols = sorted(answer.atoms(Symbol) | gold.atoms(Symbol), key=lambda symbol: symbol.name)
    point = [(symbol, 1 + Rational(2 * index + 1, 97)) for index, symbol in enumerate(symbols)]
    answer_value, gold_value = (expression.subs(point).evalf(EXACT_DIGITS) for expression in (answer, gold))
    difference, size = abs(answer_value - gold_value), abs(gold_value)
    return bool(difference.is_Float and size.is_Float and difference > 1e-12 * size)


def _have_other_solutions(answer: Equality, gold: Equality) -> bool:
    r"""Return whether the equations' ratio of (left - right) differs at two points, so that no factor makes them equal.

    An undefined function counts as a symbol, `\theta(t)` as well as `t`.
    """
    answer_difference, gold_difference = (_left_minus_right(side) for side in (answer, gold))
    if 0 in (answer_difference, gold_difference):
        return answer_difference != gold_difference  # `x = x` states nothing
    atoms = answer_difference.atoms(Symbol, AppliedUndef) | gold_difference.atoms(Symbol, AppliedUndef)
    if len(atoms) < 2 or answer_difference.has(Derivative) or gold_difference.has(Derivative):
        return False  # equations in one unknown may differ in form and have the same solutions
    functions_first = sorted(atoms, key=lambda atom: (-len(atom.args), default_sort_key(atom)))
    names: Any = dict(zip(functions_first, symbols(f"x:{len(atoms)}"), strict=True))
    ratios = []
    for start in (3, 5):
        point = {name: 1 + Rational(2 * index + start, 97) for index, name in enumerate(names.values())}
        values = [side.subs(names).subs(point).evalf(EXACT_DIGITS) for side in (answer_difference, gold_difference)]
        if not all(value.is_Float and abs(value) > 1e-12 for value in values):
            return False
        ratios.append(values[0] / values[1])
    return bool(abs(ratios[0] - ratios[1]) > 1e-12 * abs(ratios[0]))


def _left_minus_right(equation: Any) -> Any:
    return equation.lhs - equation.rhs


def _is_small(expression: Expr) -> bool:
    """Return whether the number is quick to compute exactly, without decimals: `2^{1009} + 1` is, `9^{9^9}` is not."""
    exponents: list[Any] = [power.exp for power in expression.atoms(Pow)]
    arguments: list[Any] = [argument for function in expression.atoms(Function) for argument in function.args]
    return not expression.has(Float) and all(
        value.is_Integer and abs(value) <= MAX_EXACT for value in exponents + arguments
    )


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
