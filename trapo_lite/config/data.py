"""Define the options of the data: the rows, their columns, and how they become tokens."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from trapo_lite.config.fields import PathOrPaths, Positive, PositiveInt, Section, TextAsList

QWEN_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{problem}\n"
    "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
)

Column = Annotated[str, Field(min_length=1)]


class DataColumns(Section):
    """A DataColumns names columns of the rows, nested ones as outer.inner; None: found by the known names."""

    problem: Column | None = None
    answer: Column | None = None
    solutions: Annotated[TextAsList, Field(min_length=1)] | None = None
    """The columns that hold expert solutions, all of them together."""
    id: Column | None = None

    def named(self) -> Iterator[tuple[str, str]]:
        """Yield (what it holds, name of the column) for each column that is named."""
        for name in ("problem", "answer", "id"):
            if (column := getattr(self, name)) is not None:
                yield name, column
        yield from (("solutions", column) for column in self.solutions or ())


Allowed = bool | int | float | str | None
"""A value that data.filter allows, or an end of a range: None is an open one."""


def is_range(allowed: Sequence[Allowed]) -> bool:
    """Return whether the values are the ends of a range: two numbers, or a number and None."""
    numbers = [value for value in allowed if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(allowed) == 2 and len(numbers) + list(allowed).count(None) == 2 and len(numbers) > 0


def _checked_filter(value: Any) -> Any:
    """Return the filter with lists of allowed values; raise ValueError for one that has no meaning."""
    if not isinstance(value, dict):
        raise ValueError(f"found {value!r:.60}; give columns with what to keep, such as {{level: [3, 4, 5]}}")
    return {column: _checked_values(str(column), allowed) for column, allowed in value.items()}


def _checked_values(column: str, value: Any) -> list[Allowed]:
    allowed = value if isinstance(value, list) else [value]
    for item in (column, *allowed):
        is_text = isinstance(item, str) and item.isprintable()
        is_number = isinstance(item, int | float) and abs(item) < 1e300
        if not (is_text or is_number or (item is None and is_range(allowed))):
            raise ValueError(f"{column!r:.60} has {item!r:.60}; give texts or numbers, or the two ends of a range")
    if not allowed:
        raise ValueError(f"{column!r:.60} keeps nothing; give the values to keep, or remove it")
    if is_range(allowed) and None not in allowed and allowed[0] > allowed[1]:
        raise ValueError(f"{column!r:.60}: the range {allowed} is empty; give the lower end first")
    return allowed


Filter = Annotated[dict[str, list[Allowed]], BeforeValidator(_checked_filter)]


def _as_mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"found {value!r:.60}; write names with values in braces, such as {{enable_thinking: false}}")
    return value


TokensAsList = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]


class DataSection(Section):
    """A DataSection names the problems and says how they become tokens."""

    train: PathOrPaths = "Elliott/Openr1-Math-46k-8192"
    """Parquet, JSON, JSON-lines or CSV files, or a hub id."""
    shares: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Shares of the sources of data.train in a step's problems, in their order; None: each problem is drawn equally
    often."""
    columns: DataColumns | None = None
    """Columns of problem, answer, solutions and id in data.train; None: found by the known names (docs/data.md)."""
    answer_from: Literal["column", "box"] = "column"
    """box: a row without a value in an answer column has the last \\boxed{...} of its first solution as the answer."""
    filter: Filter = Field(default_factory=dict)
    """Rows of data.train are kept by their columns: each names a list of values, or [low, high] as a range."""
    expert_text: Literal["thought", "full", "opened"] = "thought"
    """Text of an expert solution. thought: inside its first <think>...</think> (the official code); full: all of it;
    opened: all behind its first <think>, for a prompt that ends in <think>."""
    prompt_template: str = QWEN_TEMPLATE
    """Text with {problem} where the problem goes, or chat: the tokenizer's own chat template."""
    system_text: str | None = None
    """System message of the chat template; None: its own, if it has one."""
    instruction: str = ""
    """Text behind the problem in the user's message of the chat template."""
    template_options: Annotated[dict[str, bool | int | str], BeforeValidator(_as_mapping)] = Field(default_factory=dict)
    """Options of the chat template, such as enable_thinking: false."""
    system: Literal["template", "row"] = "template"
    """row: a system message of the row replaces the template's."""
    eos_token: str | None = None
    """Token that ends traces (expert solutions as tokens) and answers; None: what ends an answer in the chat template,
    otherwise the tokenizer's own."""
    stop_tokens: TokensAsList | None = None
    """More tokens that end an answer; None: the tokenizer's own and those of the model's generation_config.json."""
    max_prompt_tokens: PositiveInt = 1024
    on_bad_row: Literal["error", "skip"] = "error"
    require_expert: bool = False
    """Whether a row without a usable expert solution is a bad row."""

    @field_validator("prompt_template")
    @classmethod
    def _has_slot(cls, template: str) -> str:
        if template == "chat" or template.count("{problem}") == 1:
            return template
        if difflib.get_close_matches(template.casefold(), ["chat", "chat_template"], n=1, cutoff=0.7):
            raise ValueError(f"found {template!r}; did you mean chat, which is the tokenizer's chat template?")
        raise ValueError("must contain {problem} exactly once; add it where the problem goes, or set it to chat")

    @property
    def sources(self) -> list[str]:
        """Return data.train as a list."""
        return [self.train] if isinstance(self.train, str) else self.train

    def split(self, num_problems: int) -> list[int]:
        """Return how many of a step's problems come from each source of data.train; without shares, the one number.

        Each number is within 1 of the source's share of `num_problems`, and their sum is `num_problems`.
        """
        if self.shares is None:
            return [num_problems]
        parts = [share / max(self.shares) for share in self.shares]  # whose sum is finite
        exact = [part * num_problems / sum(parts) for part in parts]
        counts = [int(number) for number in exact]
        by_rest = sorted(range(len(exact)), key=lambda index: (counts[index] - exact[index], index))
        for index in by_rest[: num_problems - sum(counts)]:
            counts[index] += 1
        return counts

    @model_validator(mode="after")
    def _has_a_share_for_each_source(self) -> "DataSection":
        if self.shares is not None and len(self.shares) != len(self.sources):
            raise ValueError(
                f"shares: found {len(self.shares)} for the {len(self.sources)} sources of data.train; give one for "
                "each, or data.shares=null"
            )
        return self

    @model_validator(mode="after")
    def _has_one_slot(self) -> "DataSection":
        for name, text in (("system_text", self.system_text), ("instruction", self.instruction)):
            if text is not None and "{problem}" in text:
                raise ValueError(f"{name}: contains {{problem}}, which the user's message has already; remove it")
        return self

    def idle_keys(self) -> dict[str, str]:
        if self.prompt_template == "chat":
            return {"system": "a template that is written out"}
        return dict.fromkeys(("system_text", "instruction", "template_options"), "data.prompt_template: chat")
