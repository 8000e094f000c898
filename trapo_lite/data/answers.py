"""Read the gold answer of a row: a text, a number, a list with one answer, a checker's record, or GSM8K's form."""

import json
import math
import re
from typing import Any

from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.cells import require_text

GSM8K_ANSWER = re.compile(r"(?P<rationale>.*?)\n?####[ \t]*(?P<gold>[^\n]+)\s*", re.DOTALL)
GSM8K_MARK = re.compile(r"<<[^<>]*>>")


def split_gsm8k(text: str) -> tuple[str, str] | None:
    r"""Return (rationale, gold) of an answer in GSM8K's form, where one text holds both; None for any other answer.

    The rationale ends in a box, as the prompt asks: without it the expert trace would give no answer.

    >>> split_gsm8k("48/2 = <<48/2=24>>24\n#### 24")
    ('48/2 = 24\n\nThe answer is \\boxed{24}.', '24')
    """
    match = GSM8K_ANSWER.fullmatch(text)
    if match is None:
        return None
    gold = match["gold"].strip().replace(",", "")
    rationale = GSM8K_MARK.sub("", match["rationale"]).strip()
    return rationale and f"{rationale}\n\nThe answer is \\boxed{{{gold}}}.", gold


def gold_text(value: Any, field: str, *, takes_all: bool) -> str:
    """Return an answer as text, or as JSON if it is a checker's own record; "" if there is none.

    takes_all: all answers of a list are asked for, as OlympiadBench's `is_multiple_answer` says. Without it most data
    sets mean any of them. One gold text cannot say that, so different answers are a bad row.
    """
    try:
        return _gold(value, field, takes_all=takes_all)
    except RecursionError:
        found = "found values in values, hundreds deep"
        raise BadRow("wrong type", field=field, found=found, fix="give text") from None


def _gold(value: Any, field: str, *, takes_all: bool) -> str:
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
        return require_text(json.dumps(value, sort_keys=True, ensure_ascii=False), field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    return require_text(value, field).strip()


def _listed(text: str) -> str | list[str]:
    """Return the texts of a JSON list of texts, else the text: '["32"]' is the answer 32, '[3, 4]' an interval."""
    if not text.lstrip().startswith('["'):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if all(isinstance(item, str) for item in value) else text
