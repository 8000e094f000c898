"""Say which columns were looked for, and guess which of a row's own columns hold problem, answer and solutions."""

import difflib
import re
from typing import Any

from trapo_lite.config import plain_yaml
from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.cells import first, leaf_paths, lookup
from trapo_lite.data.forms import Form

ROLE_BY_WORD = {
    word: role
    for role, words in {
        "problem": "problem question prompt query instruction input task exercise puzzle messages dialog",
        "answer": "answer gold golden label target truth result expected reference",
        "solutions": "solution reasoning rationale explanation cot thought trace response completion output steps",
        "": "id ids idx index key type kind source count number num length score rate level difficulty correctness",
    }.items()
    for word in words.split()
}
"""Maps a word of a column's name to what such a column holds; "": something else."""
TYPES = {"problem": (str, list), "answer": (str, int, float, list), "solutions": (str, list)}


def missing(reason: str, field: str, fields: dict[str, Any], form: Form, *, what: str, has_box: bool = False) -> BadRow:
    """Make the error for an empty `field` or, if no field is named, for columns that are all missing.

    has_box: the row has a solution with a box, from which its answer can be taken
    """
    box = "set data.answer_from: box to take the last \\boxed{} of its solution, or " if has_box else ""
    if not field:
        names = form.problem if what == "problem" else form.answer
        found = f"found none of the columns {', '.join(names)}, only {', '.join(sorted(fields)) or 'an empty row'}"
        return BadRow(reason, field=what, found=found, fix=box + mapping_advice(fields, form, what=what))
    value = lookup(fields, field)
    found = "found none" if value is None else f"found {value!r:.40}"
    return BadRow(reason, field=field, found=found, fix=f"{box}give the {what}")


def mapping_advice(fields: dict[str, Any], form: Form, *, what: str) -> str:
    """Return the advice to set data.columns, with the row's own names where their words say what they hold.

    >>> from trapo_lite.data.forms import KNOWN
    >>> mapping_advice({"Question": "6 * 7?", "gold": "42", "reasoning": {"text": "..."}}, KNOWN, what="problem")
    'set "data.columns={problem: Question, answer: gold, solutions: reasoning.text}"'
    >>> mapping_advice({"question": "6 * 7?", "x": "42"}, KNOWN, what="answer")
    'set "data.columns={answer: COLUMN}" with the column that holds it'
    """
    guesses = guessed_columns(fields, form)
    columns = guesses if what in guesses else {what: "COLUMN", **guesses}
    line = f'set "data.columns={plain_yaml.in_one_line(columns)}"'
    return line if what in guesses else f"{line} with the column that holds it"


def guessed_columns(fields: dict[str, Any], form: Form) -> dict[str, str]:
    """Return a column for each of problem, answer and solutions that the form does not find, if one is guessed."""
    solutions = [name for names in form.solutions for name in names]
    names_by_role = {"problem": form.problem, "answer": form.answer, "solutions": solutions}
    has_known = {role for role, names in names_by_role.items() if first(fields, names)[1] is not None}
    columns: dict[str, str] = {}
    for role in TYPES:
        paths = (path for path, value in leaf_paths(fields) if _role_of(path) == role and _may_be(role, value))
        path = None if role in has_known else next(paths, None)
        if path is not None:
            columns[role] = path
    return columns


def _may_be(role: str, value: Any) -> bool:
    return isinstance(value, TYPES[role]) and not isinstance(value, bool)


def _role_of(path: str) -> str:
    """Return what a column holds by the last word of its path that says so, or by a word nearly like it."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", path)]
    for word in reversed(words):
        for known in (word, word.removesuffix("s")):
            if known in ROLE_BY_WORD:
                return ROLE_BY_WORD[known]
        near = difflib.get_close_matches(word, ROLE_BY_WORD, n=1, cutoff=0.8)
        if near and len(word) > 4:
            return ROLE_BY_WORD[near[0]]
    return ""
