r"""Give answers that differ only in their typesetting one spelling.

`plain` removes typesetting and keeps everything with a mathematical meaning. The other functions take a plain text
apart.
"""

import re
import unicodedata
from functools import lru_cache

_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/",
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "°": r"^\circ ", "√": r"\sqrt ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "…": r"\ldots ", "θ": r"\theta ", "α": r"\alpha ",
        "β": r"\beta ", "⁄": "/", "，": ",", "：": ":", "（": "(", "）": ")",
    }
)  # fmt: skip
_OVERLINED = re.compile(r"(\d)[\u0304\u0305]")  # a repeating decimal; combining marks are removed otherwise
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
# A whole amount. `\$x + 5` and `\$5 million` only lose the sign.
_CURRENCY = r"(\\\$|€)\s*(\d[\d,]*(?:\.\d+)?)(?=\s*(?:$|[,;.)\]}$]|\\text\s*\{\s*(?:and|or)\b|and\b|or\b))"
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r" \1 "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|hfill)(?![a-zA-Z])\s*(?:\.(?!\d))?", ""),
        (r"(?<=\d)(?:\{,\}|\\[,!]\s*|,\\!\s*|~)(?=\d{3}(?!\d))", ","),
        (r"\\!", ""),
        (r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z]))|~|&nbsp;", " "),
        (_CURRENCY, lambda m: rf"{m[2]} \text{{{'euro' if m[1] == '€' else 'dollar'}}}"),
        (r"\\\$|\$|(?<!\\)\\[()\[\]]|[£€¥]", ""),
        (r"_\s*\{?\s*\\(odot|oplus|star|perp|parallel)(?![a-zA-Z])\s*\}?", r"_{\1}"),
        (r"_\s*\{\s*\\(?:text|mathrm|rm)\s*\{(\w+)\}\s*\}", r"_{\1}"),
        (r"\\(?:lt|gt)(?![a-zA-Z])", lambda m: "<" if m[0] == r"\lt" else ">"),
        (r"\\(leq?|geq?|neq?)(?:slant)?(?![a-zA-Z])", lambda m: "\\" + m[1][:2]),
        (r"\\not\s*=|!=", r"\\ne "),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
        (r"\\pmod\s*(\w)", r"\\pmod{\1}"),
        (r"\\(?:text)?color\s*\{\w+\}|\\(?:bf|it|rm)(?![a-zA-Z])|\\underline(?![a-zA-Z])", ""),
        (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
        (r"^\s*(?:=|\\approx(?![a-zA-Z]))\s*", ""),
        (r">=", r"\\ge "),
        (r"<=", r"\\le "),
        (r"\\(?:lbrace|rbrace)", lambda m: r"\{" if m[0] == r"\lbrace" else r"\}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*([0-9a-zA-Z])(?![a-zA-Z])", r"\\sqrt{\1}"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\\pi(?![a-zA-Z])|[a-zA-Z])\s*(\d|[a-zA-Z])(?![\d{])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\*\*(?=.*\*\*)|\*\*$|^\*\*", ""),
        (r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))|\\degree(?![a-zA-Z])", r"^\\circ "),
        (r"\s+", " "),
    ]
]  # fmt: skip
_DOUBLED_BACKSLASH = re.compile(r"\\\\(?=[a-zA-Z!,;:(){}\[\]$%])")
_WORDS = re.compile(r"[a-z][a-z \-']*[a-z]")
TEXT_COMMAND = r"\\(?:text(?:bf|it|rm|tt|sf|sc|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname|emph|hbox)"
SET_UPRIGHT = r"\\(?:text(?:rm|normal)?|mathrm|mbox|hbox)"  # commands for units; a bold text is a vector
_TEXT_GROUP = re.compile(TEXT_COMMAND + r"\s*\{([^{}]*)\}")
_CONJUNCTION = re.compile(
    rf"\s*(?:{TEXT_COMMAND}\s*\{{\s*,?\s*(?:and|or)\s*\}}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*"
)
_NAME = r"(?:\\?[a-zA-Z]+\s*(?:_\s*(?:\{[^{}]*\}|\w))?\s*'*\s*(?:\([a-zA-Z_\\, ]{1,12}\))?)"
_RATIO = rf"(?:{_NAME}|\\frac\s*\{{{_NAME}\}}\s*\{{{_NAME}\}}|\|{_NAME}\|)"
_LEFT_SIDE = re.compile(rf"\s*({_RATIO}(?:\s*[:/]\s*{_RATIO})*|\(\s*{_NAME}(?:\s*,\s*{_NAME})+\s*\))\s*$")
_RELATION = re.compile(r"(?<![<>!:\\])=|\\(?:approx|in|equiv|sim)(?![a-zA-Z])|\\(?:le|ge|ne)(?![a-zA-Z])|[<>]")
_LOGIC = re.compile(r"\\(?:lor|vee|land|wedge|lnot|neg|Rightarrow|implies|iff|mid|q?quad)(?![a-zA-Z])|\|\s*[a-z]\s*=")
# `B) 42`, but not `(a)^2` or `a:b`: a blank must follow the mark.
_CHOICE = re.compile(
    r"(?:(?i:option|choice|answer)\s*:?\s+)?\(?\s*([A-Ja-j])\s*"
    r"(?:[).:](?:\s++(?![+*/=!^|,;&]|\\l?or\b|\\vee|or\b|and\b)(.*))?)?",
    re.DOTALL,
)
_LETTER = r"(?:[A-J]|(?<![\w^_=+*/-])(?<!\w\()[a-j])"
_SECOND_CHOICE = re.compile(
    rf"(?<![a-zA-Z]){_LETTER}\s*[).:](?!\S)|(?:and|or|[,/&])\s*\(?{_LETTER}\)?\s*$|^\s*\(?{_LETTER}\)?\W*$"
    r"|\b(?:or|and|also|but|maybe|option|choice|answer)\b[^a-z]*[A-J]\b"
)
_OPEN, _CLOSE = "([{", ")]}"


@lru_cache(maxsize=2048)
def plain(text: str) -> str:
    r"""Remove math delimiters, spacing, sizes, currency signs and end punctuation; unify variants of one command.

    >>> plain(r"$\displaystyle \dfrac12.$"), plain(r"11,\! 111{,}000"), plain("2³ − π")
    ('\\frac{1}{2}', '11,111,000', '2^{3} - \\pi')
    """
    text = with_plain_constants(text)
    text = _OVERLINED.sub(r"\\overline{\1}", text)
    text = re.sub("[⁰¹²³⁴-⁹⁻⁺]+", lambda run: "^{" + run[0].translate(_SUPERSCRIPTS) + "}", text)
    text = "".join(_ascii(character) for character in text).translate(_CHARACTERS)
    if r"\begin" not in text:
        text = _DOUBLED_BACKSLASH.sub(lambda _: "\\", text)  # LaTeX that was escaped once too often
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"[\s.,;\\]+$", "", text.strip()).lstrip(" ,;")
    while text.startswith("{") and _spans(text):
        text = text[1:-1].strip()  # braces that are not printed
    return text


def with_plain_constants(text: str) -> str:
    r"""Write `\mathrm{e}` and `\mathrm{i}` as `e` and `i`, because math-verify takes them for units and drops them."""
    return re.sub(r"\\(?:mathrm|rm|text)\s*\{([ei])\}", r"{\1}", text)


def squeezed(text: str) -> str:
    r"""Remove spaces and text commands from a `plain` text, to compare it as a string.

    `x _1 \text{ or } 2` becomes `x_1or2`. Two numbers stay two; `1 000` is one.

    >>> squeezed("1 1/2"), squeezed("12 000")
    ('1 1/2', '12000')
    """
    text = _TEXT_GROUP.sub(r"\1", text)
    text = re.sub(r"(?<=\d)\s+(?=\d)(?!\d{3}(?!\d))", "\0", text)
    return re.sub(r"\s+|(?<=[_^])\{(\w)\}", lambda match: match[1] or "", text).replace("\0", " ")


def words(text: str) -> str | None:
    r"""Return the answer in lower case if it holds only words, such as `\text{Evelyn}` or `no solution`, else None.

    >>> words(r"\text{ No  solution}"), words("xy"), words("x + 1")
    ('no solution', 'xy', None)
    """
    bare = " ".join(_TEXT_GROUP.sub(r" \1 ", text).lower().split()).strip("'\" ")
    return bare if _WORDS.fullmatch(bare) else None


def has_text(text: str) -> bool:
    r"""Return whether a part is set as text: `\text{even}` is a word, `even` might be a product of four letters."""
    return bool(_TEXT_GROUP.search(text))


def choice_letter(text: str) -> str | None:
    r"""Return the letter of a multiple-choice answer (`C`, `(C)`, `\text{(C)} 42`, `C) light`, `Option C`), or None."""
    match = _CHOICE.fullmatch(_TEXT_GROUP.sub(r"\1 ", text).strip())
    return match[1].upper() if match and not _SECOND_CHOICE.search(match[2] or "") else None


def is_letter(text: str) -> bool:
    r"""Return whether the text is one letter and no more: `C`, `(C)`, `\text{c}`, but not `C) light`."""
    return len(squeezed(text).strip("()")) == 1


def assignment(text: str) -> tuple[str | None, str]:
    r"""Return (name, value) of `name = value` or `name \in value`, and (None, text) of any other text.

    >>> assignment("f(x) = 2x"), assignment(r"x \in [0,1)"), assignment("x + y = 1"), assignment("1 < x < 2")
    (('f(x)', '2x'), ('x', '[0,1)'), (None, 'x + y = 1'), (None, '1 < x < 2'))
    """
    relations = list(_RELATION.finditer(text))
    if len(relations) != 1 or relations[0][0] not in ("=", r"\in", r"\approx"):
        return None, text
    name = _LEFT_SIDE.match(text[: relations[0].start()])
    value = text[relations[0].end() :].strip()
    if not name or not value or len(split_list(value)) > 1:
        return None, text
    return squeezed(name[1]), value


def split_list(text: str) -> list[str]:
    r"""Split at top-level commas, semicolons and conjunctions. Digits grouped by commas stay one element.

    >>> split_list(r"1, (2, 3) \text{ and } x"), split_list("12,345"), split_list("1,2")
    (['1', '(2, 3)', 'x'], ['12,345'], ['1', '2'])
    """
    text = _CONJUNCTION.sub(" ; ", text)
    if re.fullmatch(r"[-+]?\s*\d{1,3}(?:,\d{3})+(?:\.\d+)?", text.strip()):
        return [text.strip()]
    elements, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
        elif character in ",;" and depth == 0:
            elements.append(text[start:i])
            start = i + 1
    elements.append(text[start:])
    return [element.strip() for element in elements if element.strip()]


def unbracketed(text: str) -> tuple[str, str]:
    r"""Return (brackets, inside) of the pair of brackets around the whole text, or ("", text) if there is no such pair.

    >>> unbracketed(r"\{1, 2\}"), unbracketed("[0, 1)"), unbracketed("(1)(2)")
    (('{}', '1, 2'), ('[)', '0, 1'), ('', '(1)(2)'))
    """
    text = re.sub(r"\\([{}])", r"\1", text.strip())
    return (text[0] + text[-1], text[1:-1].strip()) if _spans(text) else ("", text)


def _spans(text: str) -> bool:
    """Return whether the bracket at the start of `text` is closed at its end."""
    if len(text) < 2 or text[0] not in _OPEN or text[-1] not in _CLOSE or text[-2] == "\\":
        return False
    depth = 0
    for character in text[:-1]:
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0:
            return False
    return True


def _ascii(character: str) -> str:
    """Return `character` in its plainest form. Formatting and control characters become ""."""
    if character.isascii():
        return character if character.isprintable() or character.isspace() else ""
    kind = unicodedata.category(character)
    if kind == "Nd":
        return str(unicodedata.digit(character))
    if kind in ("Cf", "Mn", "Me", "Cc"):
        return ""
    simple = unicodedata.normalize("NFKC", character)
    if "⁄" in simple:
        numerator, denominator = simple.split("⁄")
        return rf"\frac{{{numerator}}}{{{denominator}}}"
    return simple


def is_name(text: str) -> bool:
    """Return whether a value may be assigned to this text."""
    return bool(_LEFT_SIDE.match(text))


def is_relation(text: str) -> bool:
    """Return whether the text states an equation or an inequality."""
    return bool(_RELATION.search(text))


def is_equation_chain(text: str) -> bool:
    r"""Return whether the text is `a = b = c ...` without another relation, words or a second statement on one name.

    >>> is_equation_chain("x^2 + 1 = 3 + 4 = 7"), is_equation_chain(r"x = 8 \lor x = 7"), is_equation_chain("x=8, x=7")
    (True, False, False)
    """
    relations = [match[0] for match in _RELATION.finditer(text)]
    if not relations or set(relations) != {"="} or has_text(text) or _LOGIC.search(text):
        return False
    first, *middle, _ = text.split("=")
    name = _LEFT_SIDE.match(first)
    is_said_again = name is not None and any(squeezed(name[1]) in squeezed(part) for part in middle)
    return not is_said_again and len(split_list(text.rpartition("=")[0])) == 1
