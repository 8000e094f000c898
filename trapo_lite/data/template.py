"""Check the prompt template against the tokenizer: its tags, its first token and the model's own chat template."""

import json
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import DataSection
from trapo_lite.core.errors import DataError
from trapo_lite.data.chat import (
    ANSWER,
    PROBLEM,
    REFUSALS,
    SYSTEM,
    WRITE_A_TEMPLATE,
    messages_of,
    prompt_line,
    render,
    stop_ids_of,
    written_out,
)
from trapo_lite.data.tokens import text_of

# Tags that cannot be plain text: <|user|>, <｜User｜>, <|turn> and <turn|>, and those of sentencepiece vocabularies.
TAG = re.compile(r"<[|｜][^<>{}\s]+[|｜]?>|<[^<>{}\s|｜]+[|｜]>|</?s>|<[be]os>|<(?:start|end)_of_turn>")
NUM_FIRST, NUM_LAST = 16, 8  # tokens shown of a prompt


def check_prompt(data: DataSection, tokenizer: PreTrainedTokenizerBase, *, model: str) -> str:
    """Return the line on the prompt and the ends of answers. Raises DataError if the tokenizer does not fit them.

    model: folder or hub id, whose generation_config.json names ends too
    """
    require_known_tags(written_out(data, tokenizer).prompt_template, tokenizer)
    return prompt_line(data, tokenizer, stop_ids=stop_ids_of(data, tokenizer, model=model))


def require_known_tags(template: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError if a tag of the template is neither one token of the tokenizer nor part of its chat template.

    The tokenizer would split such a tag into several tokens, a marker that the model has never seen.
    """
    own = _own_form(tokenizer, PROBLEM)
    unknown = [tag for tag in _unknown_tags(template, tokenizer) if tag not in (own or "")]
    if not unknown:
        return
    if own is not None:
        fix = f"take over its chat template: data.prompt_template: {json.dumps(own, ensure_ascii=False)}"
    else:
        vocab = tokenizer.get_vocab()
        tags = sorted(filter(TAG.fullmatch, vocab), key=vocab.__getitem__)
        fix = f"write the template with its own tags, such as {', '.join(tags[:NUM_LAST])}"
        ends = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
        if all(tag in ends for tag in tags):  # none of these marks a turn of a chat
            fix = f"it has no tags for a chat, so {WRITE_A_TEMPLATE}"
    ids = tokenizer(unknown[0], add_special_tokens=False)["input_ids"]
    raise DataError(
        f"data.prompt_template: {', '.join(map(repr, unknown))}: not known to the tokenizer of "
        f"{tokenizer.name_or_path or 'the model'}, which reads {unknown[0]!r} as {shown_tokens(tokenizer, ids)}; {fix}"
    )


def _unknown_tags(template: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [tag for tag in dict.fromkeys(TAG.findall(template)) if not _is_token(tag, tokenizer)]


def _is_token(tag: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer reads the tag as the token of that name. Sentencepiece may put a blank before it."""
    token_id = tokenizer.convert_tokens_to_ids(tag)
    if token_id is None or (token_id == tokenizer.unk_token_id and tag != tokenizer.unk_token):
        return False
    return token_id in tokenizer(tag, add_special_tokens=False)["input_ids"]


def open_turn_warnings(data: DataSection, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return a warning if the chat template ignores add_generation_prompt and prompts end before the assistant's turn.

    Templates that have no beginning of this turn, such as Mistral's, ignore it too; they are not warned about.
    """
    if data.prompt_template != "chat":
        return ()
    written = written_out(data, tokenizer)
    prompt, contents = written.prompt_template, messages_of(data)
    try:
        closed = render(tokenizer, contents, data.template_options, opens_answer=False)
        answered = render(tokenizer, {**contents, "assistant": ANSWER}, data.template_options)
    except REFUSALS:  # it refuses a chat that ends in the user's message
        return ()
    turn = answered.removeprefix(prompt).partition(ANSWER)[0]
    if prompt != closed or not answered.startswith(prompt) or not turn.strip():
        return ()
    whole = f"data.prompt_template: {json.dumps(prompt + turn, ensure_ascii=False)}"
    if written.eos_token is not None:
        whole += f" and data.eos_token: {json.dumps(written.eos_token, ensure_ascii=False)}"
    return (
        "warning: data.prompt_template: chat: the tokenizer's chat template ignores add_generation_prompt, so the "
        f"prompts end before {turn!r}, with which an answer begins; set {whole} instead",
    )


def template_warnings(
    template: str, tokenizer: PreTrainedTokenizerBase, first_prompt: Sequence[int], *, is_chat: bool = False
) -> tuple[str, ...]:
    """Return warnings about prompts that differ from the tokenizer's own, followed by the first prompt's tokens.

    Empty if nothing differs. Another system message and text around the problem in the user's turn don't count.

    is_chat: the template is the tokenizer's own, so it cannot differ, and the first prompt is always shown
    """
    own, bos = _own_form(tokenizer, PROBLEM), tokenizer.bos_token
    lines = []
    if isinstance(bos, str) and list(first_prompt[:2]) == [tokenizer.bos_token_id] * 2:
        raise DataError(f"data.prompt_template: the prompts begin with {bos!r} twice; remove one from the template")
    if isinstance(bos, str) and not is_chat and list(first_prompt[:1]) != [tokenizer.bos_token_id]:
        adds_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        if adds_bos or (own or "").startswith(bos):
            lines.append(
                f"warning: data.prompt_template: the prompts do not begin with {bos!r}, which the tokenizer puts in "
                "front of a text; begin the template with it"
            )
    if unknown := _unknown_tags(template, tokenizer):
        lines.append(
            f"warning: data.prompt_template: {', '.join(map(repr, unknown))}: not known to the tokenizer, which spells "
            "it in letters, though its chat template has it; was the model trained so?"
        )
    if own is not None and not is_chat and not _follows(template, tokenizer):
        lines.append(
            "warning: data.prompt_template: differs from the tokenizer's chat template, which would be "
            f"{json.dumps(own, ensure_ascii=False)}"
        )
    if lines or is_chat:
        lines.append(f"first prompt, {len(first_prompt)} tokens: {shown_tokens(tokenizer, first_prompt)}")
    return tuple(lines)


def _follows(template: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template is the chat template around a text that contains the problem.

    A system message of its own is allowed. A leading BOS is not compared here.
    """
    forms = (_own_form(tokenizer, PROBLEM), _own_form(tokenizer, SYSTEM, PROBLEM))
    bos = str(tokenizer.bos_token or "")
    return any(_pattern(form.removeprefix(bos)).fullmatch(template.removeprefix(bos)) for form in forms if form)


def _pattern(form: str) -> re.Pattern[str]:
    r"""Return the pattern of all templates of this form, with any system message and any text around the problem.

    >>> _pattern("<s>{system}\n\n{problem}[/]").fullmatch("<s>Be brief.\n\nQ: {problem}?[/]") is not None
    True
    """
    text = re.escape(form).replace(re.escape(SYSTEM), ".*").replace(re.escape(PROBLEM), r".*\{problem\}.*")
    return re.compile(text, re.DOTALL)


def _own_form(tokenizer: PreTrainedTokenizerBase, *contents: str) -> str | None:
    """Return the prompt that the tokenizer's chat template makes of a user message, or of a system and a user message.

    None if there is no chat template, or if it does not take such messages.
    """
    if not tokenizer.chat_template:
        return None
    try:
        form = render(tokenizer, dict(zip(("system", "user")[-len(contents) :], contents, strict=True)))
    except REFUSALS:  # Gemma's: "System role not supported"
        return None
    return form if all(form.count(content) == 1 for content in contents) else None


def shown_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, is_whole: bool = False) -> str:
    """Return text and id of each token: of a long prompt only the beginning and the end, unless `is_whole`."""
    shown = [f"{text_of(tokenizer, [token], with_special=True)!r} {token}" for token in ids]
    if len(shown) > NUM_FIRST + NUM_LAST and not is_whole:
        shown[NUM_FIRST:-NUM_LAST] = ["..."]
    return ", ".join(shown)
