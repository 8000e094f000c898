"""Read problem, gold answer, expert solutions and id from a stored row in any of the known forms (forms.py).

Messages hold one question and perhaps its answer, which then is the expert solution. A longer conversation is a bad
row, because a part of it would be lost. A list of answers must hold one answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trapo_lite.config.data import DataColumns
from trapo_lite.core.boxes import last_box
from trapo_lite.data.answers import gold_text, split_gsm8k
from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.cells import first, lookup, plain, require_shallow, require_text
from trapo_lite.data.column_advice import missing
from trapo_lite.data.forms import Form, form_of
from trapo_lite.data.messages import question_of
from trapo_lite.data.solutions import read_solutions, with_think_tags
from trapo_lite.data.sources import Row


@dataclass(frozen=True)
class Example:
    """An Example holds the texts of one row, before template, cutting and tokens.

    id_is_given: the row names itself (`id`, `uuid`), so that a repeated id is a mistake.
    row_key:     a unique id, used if `id` is not unique.
    answer_is_boxed: the row has no answer of its own, so the answer is what a box in its solution holds.
    row:         all of its columns, if reward functions take them.
    source_index: the place of its file among those that are loaded together.
    """

    id: str
    problem: str
    answer: str
    solutions: tuple[str, ...]
    source: str
    system: str | None
    id_is_given: bool
    row_key: str
    where: str
    answer_is_boxed: bool = False
    row: Mapping[str, Any] | None = None
    source_index: int = 0


def read_example(
    row: Row,
    columns: DataColumns | None = None,
    *,
    takes_box: bool = False,
    needs_answer: bool = True,
    keeps_row: bool = False,
) -> Example:
    """Read one row. Raise BadRow if problem or gold answer is missing, ambiguous or of another type.

    columns:   where the row holds what; what they leave open is found by the known names
    takes_box: if there is no answer, take the last box of the first solution that has one
    needs_answer: whether a row without an answer is bad; otherwise its answer is empty
    keeps_row: keep all columns, for reward functions
    """
    if row.bad is not None:
        raise row.bad
    fields = row.fields
    form = form_of(fields, columns)
    problem, system, reply = _problem(fields, form)
    rationale, answer = _answer(fields, form)
    solutions = read_solutions(fields, form.solutions)
    if not solutions and rationale.strip():
        solutions = (rationale,)
    if reply.strip():
        if solutions:
            field = first(fields, form.problem)[0]
            found = "its messages end in the assistant's reply, but the row has a solution besides"
            raise BadRow("two places for the solution", field=field, found=found, fix="keep one of them")
        solutions = (with_think_tags(reply),)
    is_boxed = not answer and (needs_answer or takes_box)
    if is_boxed:
        answer = _boxed_answer(fields, form, solutions, takes_box=takes_box)
    source = first(fields, ("data_source", "source"))[1]
    source = "" if source is None else require_text(source, "data_source")
    given = _given_id(fields, form)
    identity = given or _index_id(fields, source) or row.key
    if keeps_row:
        require_shallow(fields)
    kept = plain(fields) if keeps_row else None
    return Example(
        identity, problem, answer, solutions, source, system, bool(given), row.key, row.where, is_boxed, kept
    )


def _given_id(fields: dict[str, Any], form: Form) -> str:
    field, value = first(fields, form.id)
    return str(value) if isinstance(value, int) else "" if value is None else require_text(value, field)


def _index_id(fields: dict[str, Any], source: str) -> str:
    """Return the id by extra_info.index: a text, as in DAPO, or a number, which counts the rows of one source."""
    index = lookup(fields, "extra_info.index")
    if isinstance(index, str):
        return require_text(index, "extra_info.index").strip()
    if not isinstance(index, int) or index < 0:
        return ""
    return f"{source}-{index}" if source else str(index)


def _problem(fields: dict[str, Any], form: Form) -> tuple[str, str | None, str]:
    """Return (problem, stored system message or None, the assistant's reply or "")."""
    field, value = first(fields, form.problem)
    system, reply = fields.get("system"), ""
    if isinstance(value, list) and value:
        stored, value, reply = question_of(value, field)
        system = system if stored is None else stored
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise missing("no problem text", field, fields, form, what="problem")
    return require_text(value, field), None if system is None else require_text(system, "system"), reply


def _answer(fields: dict[str, Any], form: Form) -> tuple[str, str]:
    """Return (rationale, gold or ""). The rationale is empty except in GSM8K's form, where one text holds both."""
    field, value = first(fields, form.answer)
    gold = gold_text(value, field, takes_all=fields.get("is_multiple_answer") is True)
    holds_both = form.answer == (field,) or field == "answer"
    pair = split_gsm8k(gold) if holds_both and "solutions" not in fields else None
    return ("", gold) if pair is None else pair


def _boxed_answer(fields: dict[str, Any], form: Form, solutions: tuple[str, ...], *, takes_box: bool) -> str:
    """Return what the last box of the first solution with a box holds; raise BadRow if that is not asked for."""
    boxes = [box.strip() for solution in solutions if (box := last_box(solution)) and box.strip()]
    if takes_box and boxes:
        return boxes[0]
    if takes_box and solutions:
        fix = 'remove the row, or name the column of its answer ("data.columns={answer: COLUMN}")'
        raise BadRow("no boxed answer", field="solution", found="found no complete \\boxed{} in it", fix=fix)
    field = first(fields, form.answer)[0]
    raise missing("no gold answer", field, fields, form, what="answer", has_box=bool(boxes))
