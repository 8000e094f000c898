"""Judge responses by the reward functions that need no code of the user's, except math.

Each takes its options (config/rewards.py) and the response as the workers get it (`pool.question_of`), and returns
(kind of verdict, value, judged text).
What follows a thought (`</think>`) is the response; `matches_format` and `length` see the thought too.
"""

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from trapo_lite.core.boxes import last_box

Judgement = tuple[str, float | None, str | None]
FENCE = re.compile(r"```[\w-]*\n(.*?)```", re.DOTALL)


def exact(options: Mapping[str, Any], response: Mapping[str, Any]) -> Judgement:
    r"""Compare the whole response, its last line or its last box with the row's answer.

    >>> exact({"text": "last_line", "ignore_case": True}, {"response": "Well:\n Paris ", "answer": "paris"})
    ('correct', 1.0, 'Paris')
    """
    text = after_thought(response["response"]).strip()
    if options["text"] == "box":
        text = (last_box(text) or "").strip()
    elif options["text"] == "last_line":
        text = text.rpartition("\n")[2].strip()
    return _compared(text, response["answer"], ignore_case=options["ignore_case"])


def regex(options: Mapping[str, Any], response: Mapping[str, Any]) -> Judgement:
    r"""Compare what the pattern finds last with the row's answer.

    >>> options = {"pattern": r"answer: (\w+)", "ignore_case": False}
    >>> regex(options, {"response": "answer: 3, no, answer: 4", "answer": "4"})
    ('correct', 1.0, '4')
    """
    last = ""
    flags = re.IGNORECASE if options["ignore_case"] else re.NOFLAG
    for match in re.finditer(options["pattern"], after_thought(response["response"]), flags):
        last = match[1] if match.re.groups else match[0]
    return _compared((last or "").strip(), response["answer"], ignore_case=options["ignore_case"])


def json_field(options: Mapping[str, Any], response: Mapping[str, Any]) -> Judgement:
    """Compare a field of the response's JSON object with the row's answer, by value if both are numbers.

    >>> json_field({"field": "sum"}, {"response": '{"sum": 3.0}', "answer": "3"})
    ('correct', 1.0, '3.0')
    """
    text = after_thought(response["response"]).strip()
    fences = FENCE.findall(text)
    try:
        value = json.loads(fences[-1] if fences else text)
        for name in options["field"].split("."):
            value = value[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "no_answer", 0.0, None
    answer = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    ours, theirs = _decimal(answer), _decimal(response["answer"])
    are_numbers = ours is not None and theirs is not None
    is_same = ours == theirs if are_numbers else answer.strip() == response["answer"].strip()
    return "correct" if is_same else "wrong", float(is_same), answer


def matches_format(options: Mapping[str, Any], response: Mapping[str, Any]) -> Judgement:
    """Say whether the pattern describes the whole response.

    >>> matches_format({"pattern": "<think>.*</think>.+"}, {"response": "<think>so</think>4"})
    ('correct', 1.0, None)
    """
    fits = re.fullmatch(options["pattern"], response["response"].strip(), re.DOTALL) is not None
    return "correct" if fits else "wrong", float(fits), None


def length(options: Mapping[str, Any], response: Mapping[str, Any]) -> Judgement:
    """Return 0 up to free_tokens, -1 from most_tokens on, and a straight line between.

    >>> length({"free_tokens": 100, "most_tokens": 200}, {"num_tokens": 125})
    ('wrong', -0.25, None)

    Source: DAPO, arXiv:2503.14476, equation 13.
    """
    over = (response["num_tokens"] - options["free_tokens"]) / (options["most_tokens"] - options["free_tokens"])
    value = 0.0 - min(max(over, 0.0), 1.0)
    return "correct" if value == 0.0 else "wrong", value, None


FUNCTIONS = {"exact": exact, "regex": regex, "json_field": json_field, "format": matches_format, "length": length}


def after_thought(text: str) -> str:
    """Return what follows the thought, or the whole text without one."""
    return text.rpartition("</think>")[2]


def _compared(text: str, answer: str, *, ignore_case: bool) -> Judgement:
    if not text:
        return "no_answer", 0.0, None
    ours, theirs = (part.strip().casefold() if ignore_case else part.strip() for part in (text, answer))
    return "correct" if ours == theirs else "wrong", float(ours == theirs), text


def _decimal(text: str) -> Decimal | None:
    """Return the number that a text spells, exactly, or None."""
    try:
        decimal = Decimal(text.strip())
    except InvalidOperation:
        return None
    return decimal if decimal.is_finite() and "_" not in text else None
