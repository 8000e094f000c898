r"""What a stored row says, in whatever of the known forms it is written: problem, gold answer, expert solutions, id.

OpenR1-Math-46k-8192:  prompt [system, user], target [assistant], reward_model {ground_truth}, extra_info {index}
  of the TRAPO loader: extra_info {answer_list, uuid}      of LUFFY: target_lst       of UFT: hint ["step\n", ...]
OpenR1-Math-220k:      problem, answer, generations, correctness_math_verify, is_reasoning_complete, uuid
simple:                problem, answer, solution or solutions; optional id, source, system
GSM8K:                 question, answer "48/2 = <<48/2=24>>24 ...\n#### 24"
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from trapo_lite.data.errors import BadRow
from trapo_lite.data.sources import Row

PROBLEM_FIELDS = ("prompt", "problem", "question")
ANSWER_FIELDS = ("reward_model.ground_truth", "answer", "final_answer")
# UFT's rows hold steps in `hint` and a number in `target`, so `hint` comes first.
SOLUTION_FIELDS = ("extra_info.answer_list", "target_lst", "hint", "target", "generations", "solutions", "solution")
GSM8K_ANSWER = re.compile(r"(?P<rationale>.*?)\n?####[ \t]*(?P<gold>[^\n]+)\s*", re.DOTALL)
GSM8K_MARK = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Example:
    """A row understood: original texts, before template, cutting and tokens.

    id_is_given: the row names itself (`id`, `uuid`), so a repetition is a mistake and not a poor counter.
    row_key:     a unique id in case `id` turns out not to be one.
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
    """Understand one row; raises BadRow where problem or gold answer is missing or a field has another type."""
    if row.bad is not None:
        raise row.bad
    fields = row.fields
    problem, system = _problem(fields)
    rationale, answer = _answer(fields)
    solutions = _solutions(fields)
    if not solutions and rationale.strip():
        solutions = (rationale,)
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


def _problem(fields: dict[str, Any]) -> tuple[str, str | None]:
    """The content of the last prompt message, and the stored system prompt if there is one."""
    field, value = _first(fields, PROBLEM_FIELDS)
    system = fields.get("system")
    if isinstance(value, list) and value:
        messages = [_message(message, field) for message in value]
        system = next((content for role, content in messages if role == "system"), system)
        value = messages[-1][1]
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise BadRow(
            "no problem text", field=field or "problem", found=_found_none(field, fields), fix="give a text or messages"
        )
    return _text(value, field), None if system is None else _text(system, "system")


def _answer(fields: dict[str, Any]) -> tuple[str, str]:
    """(rationale, gold). The rationale is empty except in GSM8K's form, where one text holds both.

    There it ends, like the prompt asks, in a box: without one the expert would stop short of an answer.
    """
    field, value = _first(fields, ANSWER_FIELDS)
    gold = _gold(value, field)
    if not gold:
        raise BadRow(
            "no gold answer", field=field or "answer", found=_found_none(field, fields), fix="give the row its answer"
        )
    match = GSM8K_ANSWER.fullmatch(gold) if field == "answer" and "solutions" not in fields else None
    if match is None:
        return "", gold
    number = match["gold"].strip().replace(",", "")
    rationale = GSM8K_MARK.sub("", match["rationale"]).strip()
    return rationale and f"{rationale}\n\nThe answer is \\boxed{{{number}}}.", number


def _gold(value: Any, field: str) -> str:
    """An answer as text; several answers of one problem stand in a list, a checker's own record as JSON."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, list):
        return ", ".join(filter(None, (_gold(one, field) for one in value)))
    if isinstance(value, dict):
        return _text(json.dumps(value, sort_keys=True, ensure_ascii=False), field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value)) if value == math.floor(value) else repr(value)
    return _text(value, field).strip()


def _solutions(fields: dict[str, Any]) -> tuple[str, ...]:
    """The expert's solutions in the row's order; blank ones are none. The first of SOLUTION_FIELDS with any counts."""
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
            texts = [_trace(one, field) for one in ([value] if isinstance(value, str) else _list(value, field))]
        if solutions := tuple(text for text in texts if text.strip()):
            return solutions
    return ()


def _trace(value: Any, field: str) -> str:
    """One solution: a text, a message, or a conversation, of which the last message counts."""
    if value is None or value == []:
        return ""
    if isinstance(value, list):
        value = value[-1]
    return _message(value, field)[1] if isinstance(value, dict) else _text(value, field)


def _joined_steps(steps: list[str]) -> str:
    return "".join(step if step[-1:].isspace() else f"{step}\n" for step in steps).rstrip("\n")


def _checked_generations(fields: dict[str, Any], generations: list[Any]) -> list[str]:
    """OpenR1-Math-220k: only generations that were found correct and complete (METHOD 6)."""
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
    """The value at "outer.inner"; None where a part is missing or null."""
    outer, _, inner = path.partition(".")
    value = fields.get(outer)
    if not inner or value is None:
        return value
    if not isinstance(value, dict):
        raise _wrong_type(value, outer, "an object")
    return value.get(inner)


def _first(fields: dict[str, Any], paths: tuple[str, ...]) -> tuple[str, Any]:
    """The first path that holds something, and what it holds; the last empty one otherwise."""
    present = ""
    for path in paths:
        value = _lookup(fields, path)
        if value is not None:
            return path, value
        if path.partition(".")[0] in fields:
            present = path
    return present, None


def _found_none(field: str, fields: dict[str, Any]) -> str:
    return "found none" if field else f"found none among the columns {', '.join(sorted(fields))}"


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
