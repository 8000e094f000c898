"""Read conversations: lists of messages with role and content, or with from and value."""

from typing import Any

from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.cells import require_text, wrong_type

ROLES = {"human": "user", "gpt": "assistant"}
"""Maps names that conversations with `from` and `value` use to those of `role`."""


def question_of(messages: list[Any], field: str) -> tuple[str | None, str, str]:
    """Return (system message or None, what the user asks, what the assistant replies or "")."""
    system, turns = turns_of(messages, field)
    if [role for role, _ in turns] not in (["user"], ["user", "assistant"]):
        fix = "give one question of the user's, perhaps after a system message, perhaps with the assistant's reply"
        raise BadRow("other messages than one question", field=field, found=found_roles(messages), fix=fix)
    return system, turns[0][1], turns[1][1] if len(turns) > 1 else ""


def turns_of(messages: list[Any], field: str) -> tuple[str | None, list[tuple[str, str]]]:
    """Return (system message if the list begins with one, (role, content) of each other message)."""
    turns = [_message(message, field) for message in messages]
    system = turns.pop(0)[1] if turns[0][0] == "system" else None
    return system, turns


def found_roles(messages: list[Any]) -> str:
    """Return the part of an error that says who wrote the messages."""
    writers = [str(message.get("role") or message.get("from") or "nobody") for message in messages]
    return "found messages of " + ", ".join(writers)


def _message(value: Any, field: str) -> tuple[str, str]:
    """Return (role, content). The content is empty if the message holds `ground_truth` instead (Open-Reasoner-Zero)."""
    if isinstance(value, dict):
        for role, content in (("role", "content"), ("from", "value")):
            if content in value:
                writer = str(value.get(role, ""))
                return ROLES.get(writer, writer), require_text(value[content], f"{field}.{content}")
        if "from" in value and "ground_truth" in value:
            return ROLES.get(str(value["from"]), str(value["from"])), ""
    raise wrong_type(value, field, "messages with role and content, or with from and value")
