"""Turn multiple-choice rows into problems whose gold is a letter."""

import hashlib
import random
import string
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from trapo_lite.data.bad_row import BadRow


class OptionColumns(BaseModel):
    """Name the columns of a row's question, options and answer; "a.b" is column b inside a.

    texts, labels, answer:  a list of options, their labels (A, B, ... if there are none) and the right one's label
    correct, incorrect:     one column for each option, the right one first; the question seeds the order of the options
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    texts: str | None = None
    labels: str | None = None
    answer: str | None = None
    correct: str | None = None
    incorrect: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_one_form(self) -> "OptionColumns":
        if (self.texts is None) == (self.correct is None) or (self.texts is None) != (self.answer is None):
            raise ValueError("options: give texts and answer, or correct and incorrect")
        return self


def choice_problem(fields: dict[str, Any], columns: OptionColumns) -> tuple[str, str]:
    r"""Return (question with its options, letter of the right one). Raise BadRow if the right option is unclear.

    >>> columns = OptionColumns(question="q", texts="o.text", labels="o.label", answer="key")
    >>> choice_problem({"q": "Even?", "o": {"text": ["1", "2"], "label": ["1", "2"]}, "key": "2"}, columns)
    ('Even?\n\nA) 1\nB) 2', 'B')
    """
    question = str(column(fields, columns.question)).strip()
    if columns.correct is not None:
        texts = [str(column(fields, name)).strip() for name in (columns.correct, *columns.incorrect)]
        order = list(range(len(texts)))
        random.Random(hashlib.sha256(question.encode()).digest()).shuffle(order)
        texts, right = [texts[index] for index in order], order.index(0)
    else:
        assert columns.texts is not None and columns.answer is not None
        texts = [str(text).strip() for text in column(fields, columns.texts)]
        labels = list(string.ascii_uppercase) if columns.labels is None else column(fields, columns.labels)
        answer = str(column(fields, columns.answer)).strip()
        if answer not in labels[: len(texts)]:
            raise BadRow("unknown option", field=columns.answer, found=f"found {answer!r}", fix="give a label")
        right = list(labels).index(answer)
    if not question or not 2 <= len(texts) <= 26:
        raise BadRow("no options", field=columns.question, found=f"found {len(texts)}", fix="give 2 to 26")
    listed = "\n".join(f"{letter}) {text}" for letter, text in zip(string.ascii_uppercase, texts, strict=False))
    return f"{question}\n\n{listed}", string.ascii_uppercase[right]


def column(fields: dict[str, Any], path: str) -> Any:
    """Return the value at the path; "a.b" is column b inside a. Raise BadRow if there is none."""
    value: Any = fields
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        raise BadRow("missing column", field=path, found=f"found {', '.join(sorted(fields))}", fix="name another")
    return value
