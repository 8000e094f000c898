"""Warn about texts of the rows that become other tokens than their author meant: special tokens, unclosed thoughts."""

import re
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from trapo_lite.core.types import Problem
from trapo_lite.data.expert_thoughts import unclosed_thoughts
from trapo_lite.data.rows import Example

THOUGHT_TAGS = ("<think>", "</think>")


def row_warnings(
    problems: Sequence[Problem],
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_id: int,
    cut_at_end: Sequence[str],
    prompt_template: str,
    closes_thought: str,
) -> tuple[str, ...]:
    """Return one line for each kind of such texts, with their number and the first row.

    examples:        the texts behind the problems, in the same order
    cut_at_end:      where the expert traces are that were cut at an end token in their text
    prompt_template: written out
    closes_thought:  what to do about a thought that is never closed
    """
    end = tokenizer.convert_ids_to_tokens(end_id)
    special = special_tokens(tokenizer)
    other_ids = frozenset(special) - {end_id}
    in_traces = [
        example.where
        for problem, example in zip(problems, examples, strict=True)
        for trace in problem.expert_ids
        if not other_ids.isdisjoint(trace)
    ]
    pattern = re.compile("|".join(map(re.escape, special.values())) or "(?!)")
    in_problems = [example.where for example in examples if pattern.search(example.problem)]
    unclosed = unclosed_thoughts(prompt_template, examples)
    kinds = (
        (
            cut_at_end,
            f"the text of expert solutions holds {end!r}, which ends them: what follows is cut off; remove it from the "
            "text",
        ),
        (in_traces, "the text of expert solutions holds special tokens of the tokenizer; remove them from the text"),
        (in_problems, "the text of problems holds special tokens of the tokenizer; remove them from the text"),
        (unclosed, f"the prompt ends in <think>, and expert solutions have no </think> to close it; {closes_thought}"),
    )
    return tuple(f"warning: {text} ({len(rows)}, the first in {rows[0]})" for rows, text in kinds if rows)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the text of each special token by its id. The tags of a thought are not among them."""
    ids: Iterable[int] = [
        *(token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special),
        *tokenizer.all_special_ids,
    ]
    texts = {token_id: str(tokenizer.convert_ids_to_tokens(token_id)) for token_id in ids}
    return {token_id: text for token_id, text in texts.items() if text and text not in THOUGHT_TAGS}
