"""Encode texts as token ids: prompts, expert texts, the token that ends them, and where a prefix may end."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trapo_lite.config.paths import check_model_files
from trapo_lite.core.errors import DataError

THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
SYSTEM_BLOCK = re.compile(r"(<\|im_start\|>system\n).*?(<\|im_end\|>)", re.DOTALL)
TEXTS_AT_ONCE = 128  # 1,000 texts of 8,000 tokens at once took 0.9 GB in the tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model's folder or hub id, without the model. Raise DataError if there is none."""
    check_model_files(name)
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            raise DataError(
                f"model.name: {name} holds no tokenizer that transformers can read; copy the model's tokenizer.json "
                "and tokenizer_config.json there"
            ) from None
        reason = str(error).splitlines()[0]
        raise DataError(f"model.name: no tokenizer at {name!r} ({reason}); give a model's folder or hub id") from None
    except Exception as error:
        # Errors of damaged files: the Rust library raises Exception itself, transformers fails on wrong types.
        if type(error) not in (Exception, TypeError, KeyError, AttributeError, RecursionError):
            raise
        raise DataError(
            f"model.name: the tokenizer's files in {name!r} are damaged ({error}); copy the model's files again"
        ) from None


def end_of_text_id(
    tokenizer: PreTrainedTokenizerBase, eos_token: str | None = None, *, option: str = "data.eos_token"
) -> int:
    """Return the id of a token that ends answers: that of `eos_token`, or the tokenizer's own.

    option: what named the token, for messages

    Raises DataError unless it is exactly one known token.
    """
    token = tokenizer.eos_token if eos_token is None else eos_token
    if not isinstance(token, str) or not token:
        raise DataError(f"{option}: the tokenizer has no end-of-text token of its own; name one of its tokens")
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or (ids[0] == tokenizer.unk_token_id and token != tokenizer.unk_token):
        found = "unknown to the tokenizer" if len(ids) == 1 else f"{len(ids)} tokens"
        raise DataError(
            f"{option}: {token!r} is {found}, and must be one token of the tokenizer, such as {tokenizer.eos_token!r}"
        )
    return ids[0]


def prompt_text(template: str, problem: str, *, system: str | None = None) -> str:
    r"""Return the template with {problem} replaced by the problem. All other braces stay as they are.

    >>> prompt_text("Q: {problem} In \\boxed{}. A:", "What is {1, 2}?")
    'Q: What is {1, 2}? In \\boxed{}. A:'

    system: replaces the content of the template's <|im_start|>system block. Raise DataError if it has none.
    """
    before, after = template.split("{problem}")
    if system is not None:
        before, num_blocks = SYSTEM_BLOCK.subn(lambda block: block[1] + system + block[2], before, count=1)
        if num_blocks == 0:
            raise DataError(
                "data.system: row, but data.prompt_template has no <|im_start|>system ... <|im_end|> block before "
                "{problem} to put the row's system message in; add one or set data.system: template"
            )
    return before + problem + after


def expert_text(solution: str, mode: Literal["thought", "full", "opened"]) -> str:
    r"""Return the part of a solution that becomes the trace.

    full: all of it;  thought: its first <think> block;  opened: all behind its first <think>

    >>> expert_text("<think> 6 * 7 = 42 </think> So it is 42.", "thought")
    '6 * 7 = 42'
    >>> expert_text("<think> 6 * 7 = 42", "thought")
    '<think> 6 * 7 = 42'
    >>> expert_text("<think>\n6 * 7 = 42 </think> So it is 42.", "opened")
    '6 * 7 = 42 </think> So it is 42.'

    Without a closed block `thought` returns the whole solution, as the official code does (METHOD 3). Without a <think>
    `opened` does so too.
    """
    if mode == "opened":
        _, tag, behind = solution.partition("<think>")
        return behind.removeprefix("\n") if tag else solution
    thought = THOUGHT.search(solution) if mode == "thought" else None
    return solution if thought is None else thought[1].strip()


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Yield the token ids of each text. Special tokens in a text are recognised, none is added.

    Equal ids share one object: 46k solutions with 190M tokens then take 8 bytes a token instead of 36.
    """
    shared = list(range(max(tokenizer.get_vocab().values()) + 1))
    remaining = iter(texts)
    while chunk := list(islice(remaining, TEXTS_AT_ONCE)):
        rows = tokenizer(chunk, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for ids in rows:
            yield tuple(map(shared.__getitem__, ids))


def text_of(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], *, with_special: bool = False) -> str:
    """Return the tokens' text. The verifier reads it without special tokens, the model sees it with them."""
    ids = list(token_ids)
    return str(tokenizer.decode(ids, skip_special_tokens=not with_special, clean_up_tokenization_spaces=False))


def texts_of(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> dict[int, str]:
    """Return the text of each token, special ones included, by its id."""
    return {token_id: text_of(tokenizer, [token_id], with_special=True) for token_id in token_ids}


def end_trace(token_ids: tuple[int, ...], end_id: int) -> tuple[int, ...]:
    """Return the trace up to its first EOS, or with EOS appended if it has none. Tokens after EOS are not scored.

    >>> end_trace((5, 6), 0), end_trace((5, 0, 6), 0)
    ((5, 6, 0), (5, 0))
    """
    stop = token_ids.index(end_id) if end_id in token_ids else len(token_ids)
    return (*token_ids[:stop], end_id)


def is_boundary_fn(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], bool]:
    """Return a function for core.micro_groups.cut_prefix that says whether a token's text contains a blank line.

    The token is decoded by itself, so byte-level spellings of a line break count too. Each id is decoded once, on first
    use: about 17 us, against 2.6 s for a vocabulary of 152k in advance.
    """

    @cache
    def is_boundary(token_id: int) -> bool:
        return "\n\n" in text_of(tokenizer, [token_id], with_special=True)

    return is_boundary
