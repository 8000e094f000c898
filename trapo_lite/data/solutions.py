"""Read the expert solutions of a row: texts, messages, conversations, steps, or thoughts and attempts."""

import re
from collections.abc import Sequence
from typing import Any

from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.cells import lookup, require_list, require_text
from trapo_lite.data.forms import ATTEMPT_BY_THOUGHTS
from trapo_lite.data.messages import found_roles, turns_of

TAGGED = re.compile(
    r"\s*<\|begin_of_thought\|>(?P<thought>.*?)<\|end_of_thought\|>"
    r"\s*<\|begin_of_solution\|>(?P<solution>.*?)(?:<\|end_of_solution\|>)?\s*",
    re.DOTALL,
)


def read_solutions(fields: dict[str, Any], columns: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the non-blank expert solutions of the first entry of `columns` that has any, in the row's order.

    The columns of an entry are read together.
    """
    for names in columns:
        texts = [text for name in names for text in _solutions_in(fields, name)]
        if solutions := tuple(text for text in texts if text.strip()):
            return solutions
    return ()


def with_think_tags(text: str) -> str:
    r"""Return OpenThoughts' form with the tags that the rest of the data has, and any other text as it is.

    >>> with_think_tags("<|begin_of_thought|> 6 * 7 <|end_of_thought|> <|begin_of_solution|> 42 <|end_of_solution|>")
    '<think>\n6 * 7\n</think>\n\n42'
    """
    match = TAGGED.fullmatch(text)
    return text if match is None else _thought_and_text(match["thought"], match["solution"])


def _thought_and_text(thought: str, text: str) -> str:
    return f"<think>\n{thought.strip()}\n</think>\n\n{text.strip()}"


def _solutions_in(fields: dict[str, Any], field: str) -> list[str]:
    value = lookup(fields, field)
    if value is None:
        return []
    if field == "hint":
        return [_joined_steps([require_text(step, field) for step in require_list(value, field)])]
    if field == "target":
        return [_trace(value, field)]
    if field == "generations":
        return _checked_generations(fields, require_list(value, field))
    if field in ATTEMPT_BY_THOUGHTS:
        return _thoughts_with_attempts(fields, field)
    return [_trace(item, field) for item in _items(value, field)]


def _items(value: Any, field: str) -> list[Any]:
    return [value] if isinstance(value, str) else require_list(value, field)


def _thoughts_with_attempts(fields: dict[str, Any], field: str) -> list[str]:
    """Return each thought with the attempt that follows it. Thoughts without an attempt are no solution."""
    thoughts = [_trace(thought, field) for thought in _items(fields[field], field)]
    attempt = ATTEMPT_BY_THOUGHTS[field]
    attempts = [_trace(text, attempt) for text in _items(fields.get(attempt) or [], attempt)]
    pairs = zip(thoughts, attempts, strict=False)
    return [_thought_and_text(thought, text) for thought, text in pairs if thought.strip() and text.strip()]


def _trace(value: Any, field: str) -> str:
    """Return one solution, given as a text, a message, or a conversation that ends in it."""
    if value is None or value == []:
        return ""
    messages = value if isinstance(value, list) else [value]
    if len(messages) == 1 and isinstance(messages[0], str):
        return require_text(messages[0], field)
    _, turns = turns_of(messages, field)
    if [role for role, _ in turns] not in ([""], ["assistant"], ["user", "assistant"]):
        fix = "give one message of the assistant's, and nothing after it"
        raise BadRow("other messages than one solution", field=field, found=found_roles(messages), fix=fix)
    return turns[-1][1]


def _joined_steps(steps: list[str]) -> str:
    return "".join(step if step[-1:].isspace() else f"{step}\n" for step in steps).rstrip("\n")


def _checked_generations(fields: dict[str, Any], generations: list[Any]) -> list[str]:
    """Return the generations that were found correct and complete (OpenR1-Math-220k, METHOD 6)."""
    texts = [_trace(generation, "generations") for generation in generations]
    for field in ("correctness_math_verify", "is_reasoning_complete"):
        flags = fields.get(field)
        if flags is not None:
            if len(require_list(flags, field)) != len(generations):
                found = f"found {len(flags)} flags for {len(generations)} generations"
                raise BadRow("wrong type", field=field, found=found, fix="give one flag a generation")
            texts = [text if flag else "" for text, flag in zip(texts, flags, strict=True)]
    return texts
