r"""Read problem, gold answer, expert solutions and id from a stored row in any of the known forms.

OpenR1-Math-46k-8192:  prompt [system, user], target [assistant], reward_model {ground_truth}, extra_info {index}
  of the TRAPO loader: extra_info {answer_list, uuid}      of LUFFY: target_lst       of UFT: hint ["step\n", ...]
OpenR1-Math-220k:      problem, answer, generations, correctness_math_verify, is_reasoning_complete, uuid
simple:                problem, answer, solution or solutions; optional id, source, system
GSM8K:                 question, answer "48/2 = <<48/2=24>>24 ...\n#### 24"

Messages hold one question and perhaps its answer, which then is the expert solution. A longer conversation is a bad
row, because a part of it would be lost. A list of answers must hold one answer.
"""

import difflib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.sources import Row

CONVERSATIONS = ("messages", "conversation")
PROBLEM_FIELDS = ("prompt", "problem", "question")
ANSWER_FIELDS = ("reward_model.ground_truth", "answer", "final_answer")
# UFT's rows hold steps in `hint` and a number in `target`, so `hint` comes first.
SOLUTION_FIELDS = ("extra_info.answer_list", "target_lst", "hint", "target", "generations", "solutions", "solution")
GSM8K_ANSWER = re.compile(r"(?P<rationale>.*?)\n?####[ \t]*(?P<gold>[^\n]+)\s*", re.DOTALL)
GSM8K_MARK = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Example:
    """An Example holds the texts of one row, before template, cutting and tokens.

    id_is_given: the row names itself (`id`, `uuid`), so that a repeated id is a mistake.
    row_key:     a unique id, used if `id` is not unique.
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


def read_example(row: Row) -> Example:
    """Read one row. Raise BadRow if problem or gold answer is missing, ambiguous or of another type."""
    if row.bad is not None:
        raise row.bad
    fields = row.fields
    problem, system, reply = _problem(fields)
    rationale, answer = _answer(fields)
    solutions = _solutions(fields)
    if not solutions and rationale.strip():
        solutions = (rationale,)
    if reply.strip():
        if solutions:
            field = _first(fields, PROBLEM_FIELDS)[0]
            found = "its messages end in the assistant's reply, but the row has a solution besides"
            raise BadRow("two places for the solution", field=field, found=found, fix="keep one of them")
        solutions = (reply,)
    source = _first(fields, ("data_source", "source"))[1]
    source = "" if source is None else _text(source, "data_source")
    given = _given_id(fields)
    index = _lookup(fields, "extra_info.index")
    if given:
        identity = given
    elif isinstance(index, int) and index >= 0:
        identity = f"{source}-{index}" if source else str(index)
    else:
        identity = row.key
    return Example(identity, problem, answer, solutions, source, system, bool(given), row.key, row.where)


def _given_id(fields: dict[str, Any]) -> str:
    field, value = _first(fields, ("id", "uuid", "extra_info.uuid"))
    return str(value) if isinstance(value, int) else "" if value is None else _text(value, field)


def _problem(fields: dict[str, Any]) -> tuple[str, str | None, str]:
    """Return (problem, stored system message or None, the assistant's reply or "")."""
    field, value = _first(fields, PROBLEM_FIELDS)
    system, reply = fields.get("system"), ""
    if isinstance(value, list) and value:
        stored, value, reply = _question_of(value, field)
        system = system if stored is None else stored
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise _missing("no problem text", field, fields, PROBLEM_FIELDS, what="problem")
    return _text(value, field), None if system is None else _text(system, "system"), reply


def _question_of(messages: list[Any], field: str) -> tuple[str | None, str, str]:
    """Return (system message or None, what the user asks, what the assistant replies or "")."""
    system, turns = _turns(messages, field)
    if [role for role, _ in turns] not in (["user"], ["user", "assistant"]):
        fix = "give one question of the user's, perhaps after a system message, perhaps with the assistant's reply"
        raise BadRow("other messages than one question", field=field, found=_found_roles(messages), fix=fix)
    return system, turns[0][1], turns[1][1] if len(turns) > 1 else ""


def _turns(messages: list[Any], field: str) -> tuple[str | None, list[tuple[str, str]]]:
    """Return (system message if the list begins with one, (role, content) of each other message)."""
    turns = [_message(message, field) for message in messages]
    system = turns.pop(0)[1] if turns[0][0] == "system" else None
    return system, turns


def _found_roles(messages: list[Any]) -> str:
    return "found messages of " + ", ".join(str(message.get("role") or "nobody") for message in messages)


def _answer(fields: dict[str, Any]) -> tuple[str, str]:
    """Return (rationale, gold). The rationale is empty except in GSM8K's form, where one text holds both.

    GSM8K's rationale ends in a box, as the prompt asks: without it the expert trace would give no answer.
    """
    field, value = _first(fields, ANSWER_FIELDS)
    try:
        gold = _gold(value, field, takes_all=fields.get("is_multiple_answer") is True)
    except RecursionError:
        found = "found values in values, hundreds deep"
        raise BadRow("wrong type", field=field, found=found, fix="give text") from None
    if not gold:
        raise _missing("no gold answer", field, fields, ANSWER_FIELDS, what="answer")
    match = GSM8K_ANSWER.fullmatch(gold) if field == "answer" and "solutions" not in fields else None
    if match is None:
        return "", gold
    gold_number = match["gold"].strip().replace(",", "")
    rationale = GSM8K_MARK.sub("", match["rationale"]).strip()
    return rationale and f"{rationale}\n\nThe answer is \\boxed{{{gold_number}}}.", gold_number


def _gold(value: Any, field: str, *, takes_all: bool) -> str:
    """Return an answer as text, or as JSON if it is a checker's own record.

    takes_all: all answers of a list are asked for, as OlympiadBench's `is_multiple_answer` says. Without it most data
    sets mean any of them. One gold text cannot say that, so different answers are a bad row.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        value = _listed(value)
    if isinstance(value, list):
        golds = [gold for item in value if (gold := _gold(item, field, takes_all=takes_all))]
        if not takes_all and len(set(golds)) > 1:
            fix = "keep the one to grade by or, where all are asked for, write them as one text"
            raise BadRow("several answers", field=field, found=f"found several, {value!r:.80}", fix=fix)
        return ", ".join(golds if takes_all else golds[:1])
    if isinstance(value, dict):
        return _text(json.dumps(value, sort_keys=True, ensure_ascii=False), field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    return _text(value, field).strip()


def _listed(text: str) -> str | list[str]:
    """Return the texts of a JSON list of texts, else the text: '["32"]' is the answer 32, '[3, 4]' an interval."""
    if not text.lstrip().startswith('["'):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if all(isinstance(item, str) for item in value) else text


def _solutions(fields: dict[str, Any]) -> tuple[str, ...]:
    """Return the non-blank expert solutions of the first of SOLUTION_FIELDS that has any, in the row's order."""
    for field in SOLUTION_FIELDS:
        value = _lookup(fields, field)
        if value is None:
            continue
        if field == "hint":
            texts = [_joined_steps([_text(step, field) for step in _list(value, field)])]
        elif field == "target":
            texts = [_trace(value, field)]
        elif field == "generations":
            texts = _checked_generations(fields, _list(value, field))
        else:
            texts = [_trace(item, field) for item in ([value] if isinstance(value, str) else _list(value, field))]
        if solutions := tuple(text for text in texts if text.strip()):
            return solutions
    return ()


def _trace(value: Any, field: str) -> str:
    """Return one solution, given as a text, a message, or a conversation that ends in it."""
    if value is None or value == []:
        return ""
    messages = value if isinstance(value, list) else [value]
    if len(messages) == 1 and isinstance(messages[0], str):
        return _text(messages[0], field)
    _, turns = _turns(messages, field)
    if [role for role, _ in turns] not in ([""], ["assistant"], ["user", "assistant"]):
        fix = "give one message of the assistant's, and nothing after it"
        raise BadRow("other messages than one solution", field=field, found=_found_roles(messages), fix=fix)
    return turns[-1][1]


def _joined_steps(steps: list[str]) -> str:
    return "".join(step if step[-1:].isspace() else f"{step}\n" for step in steps).rstrip("\n")


def _checked_generations(fields: dict[str, Any], generations: list[Any]) -> list[str]:
    """Return the generations that were found correct and complete (OpenR1-Math-220k, METHOD 6)."""
    texts = [_trace(generation, "generations") for generation in generations]
    for field in ("correctness_math_verify", "is_reasoning_complete"):
        flags = fields.get(field)
        if flags is not None:
            if len(_list(flags, field)) != len(generations):
                found = f"found {len(flags)} flags for {len(generations)} generations"
                raise BadRow("wrong type", field=field, found=found, fix="give one flag a generation")
            texts = [text if flag else "" for text, flag in zip(texts, flags, strict=True)]
    return texts


def _lookup(fields: dict[str, Any], path: str) -> Any:
    """Return the value at "outer.inner", or None if a part is missing or null."""
    outer, _, inner = path.partition(".")
    value = fields.get(outer)
    if not inner or value is None:
        return value
    if not isinstance(value, dict):
        raise _wrong_type(value, outer, "an object")
    return value.get(inner)


def _first(fields: dict[str, Any], paths: tuple[str, ...]) -> tuple[str, Any]:
    """Return the first path that has a value, and that value. If all are empty, return the last one."""
    present = ""
    for path in paths:
        value = _lookup(fields, path)
        if value is not None:
            return path, value
        if path.partition(".")[0] in fields:
            present = path
    return present, None


def _missing(reason: str, field: str, fields: dict[str, Any], names: tuple[str, ...], *, what: str) -> BadRow:
    """Make the error for an empty `field` or, if no field is named, for columns that are all missing."""
    if not field:
        found = f"found none of the columns {', '.join(names)}, only {', '.join(sorted(fields)) or 'an empty row'}"
        return BadRow(
            reason, field=what, found=found, fix=_renaming(fields, names) or f"give the {what} under one of these names"
        )
    value = _lookup(fields, field)
    found = "found none" if value is None else f"found {value!r:.40}"
    return BadRow(reason, field=field, found=found, fix=f"give the {what}")


def _renaming(fields: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the advice to rename a column if one holds a conversation or has nearly one of the names; never an id."""
    for column in fields:
        if column.lower().endswith("id"):
            continue
        near = difflib.get_close_matches(column.lower(), names, n=1, cutoff=0.75)
        meant = "prompt" if column in CONVERSATIONS and "prompt" in names else near[0] if near else None
        if meant is not None:
            return f"rename {column} to {meant}"
    return None


def _message(value: Any, field: str) -> tuple[str, str]:
    if not isinstance(value, dict) or "content" not in value:
        raise _wrong_type(value, field, "messages with role and content")
    return str(value.get("role", "")), _text(value["content"], f"{field}.content")


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong_type(value, field, "a list")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _wrong_type(value, field, "text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"found half of a surrogate pair at character {error.start}"
        raise BadRow("not Unicode text", field=field, found=found, fix="write the text again as UTF-8") from None
    return value


def _wrong_type(value: Any, field: str, wanted: str) -> BadRow:
    return BadRow("wrong type", field=field, found=f"found {type(value).__name__} {value!r:.40}", fix=f"give {wanted}")
