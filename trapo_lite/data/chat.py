"""Take the prompt template, and the token that ends an answer, from the tokenizer (data.prompt_template: chat)."""

import difflib
import functools
import inspect
import json
import random
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from trapo_lite.config import DataSection
from trapo_lite.core.errors import DataError
from trapo_lite.data.tokens import end_of_text_id, texts_of

SYSTEM, PROBLEM, ANSWER = "{system}", "{problem}", "{answer}"
WRITE_A_TEMPLATE = f"set data.prompt_template to a text of your own, such as 'Problem: {PROBLEM}\\nAnswer:'"
REFUSALS = (TemplateError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""A chat template raises one of these for messages or options that it does not take."""

EITHER_FILE = "the model's chat_template.jinja or tokenizer_config.json"
MAX_SHOWN = 200  # characters of a prompt in a message
DAYS = (datetime(2001, 2, 3, 4, 5, 6, 7), datetime(2112, 11, 10, 19, 28, 57, 58))
"""A template that writes anything of the date or the time gives two prompts for them: they differ in every part."""


def written_out(data: DataSection, tokenizer: PreTrainedTokenizerBase) -> DataSection:
    """Return the section with a literal prompt_template and, if it has none, the eos_token of the chat template.

    Raises DataError if the tokenizer has no chat template, or if that raises, drops a message, or writes the date or
    anything random.
    """
    if data.prompt_template != "chat":
        return data
    name = tokenizer.name_or_path or "the model"
    if not tokenizer.chat_template:
        raise DataError(
            f"data.prompt_template: chat, but the tokenizer of {name} has no chat template; {WRITE_A_TEMPLATE}, or "
            "name the instruction-tuned model (model.name)"
        )
    contents = messages_of(data)
    try:
        _require_known_options(data.template_options, tokenizer, name=name)
        random_state = random.getstate()
        template, template_of_other_day = (
            render(tokenizer, contents, {"strftime_now": day.strftime, **data.template_options}) for day in DAYS
        )
        ended = render(tokenizer, {**contents, "assistant": ANSWER}, data.template_options)
    except REFUSALS as error:
        raise _refusal(error, data, tokenizer, name=name) from None
    if random.getstate() != random_state:
        raise DataError(
            f"data.prompt_template: chat, but the chat template of {name} draws at random, so that no two prompts are "
            f"the same; {WRITE_A_TEMPLATE}"
        )
    _require_contents(template, contents, tokenizer, name=name)
    if template != template_of_other_day:
        raise DataError(
            f"data.prompt_template: chat, but the chat template of {name} writes today's date or the time, so that a "
            "run could not be resumed tomorrow; fix it, for Llama 3 by "
            "data.template_options: {date_string: 26 Jul 2024}"
        )
    eos_token = data.eos_token
    if eos_token is None and ANSWER in ended:
        eos_token = _first_special(tokenizer, ended.rpartition(ANSWER)[2])
    return data.model_copy(update={"prompt_template": template, "eos_token": eos_token})


def messages_of(data: DataSection) -> dict[str, str]:
    """Return the messages of a prompt in the chat template, by role: the user's, after the system's if there is one."""
    user = {"user": PROBLEM + data.instruction}
    return user if data.system_text is None else {"system": data.system_text, **user}


def template_with_defaults(data: DataSection, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the tokenizer's chat template with `data.template_options` as defaults, which a caller's options replace.

    None: the tokenizer has several templates or none, or this one makes other prompts or answered chats than the
    options given by a caller, as where the options are not the template's but those of apply_chat_template.
    """
    if not isinstance(tokenizer.chat_template, str):
        return None
    options, prompt = data.template_options, messages_of(data)
    literals = {name: json.dumps(value, ensure_ascii=False) for name, value in options.items()}
    # Lines by themselves: the line break behind a tag is no part of the text.
    defaults = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {literal} %}}{{%- endif %}}\n"
        for name, literal in literals.items()
    )
    template = defaults + tokenizer.chat_template
    try:
        for contents in (prompt, {**prompt, "assistant": ANSWER}):
            if render(tokenizer, contents, {"chat_template": template}) != render(tokenizer, contents, options):
                return None
    except REFUSALS:
        return None
    return template


def _refusal(error: Exception, data: DataSection, tokenizer: PreTrainedTokenizerBase, *, name: str) -> DataError:
    """Return the error for a chat template that raised `error`, with the option to change, found by trying."""
    where = f"data.prompt_template: chat, but the chat template of {name}"
    if isinstance(error, TemplateSyntaxError):
        return DataError(
            f"{where} is not valid Jinja (line {error.lineno}: {error.message}); "
            f"{_correct_or_write(tokenizer, file=EITHER_FILE)}"
        )

    def takes(contents: Mapping[str, str], options: Mapping[str, Any]) -> bool:
        try:
            render(tokenizer, contents, options)
            render(tokenizer, {**contents, "assistant": ANSWER}, options)
        except REFUSALS:
            return False
        return True

    contents, options = messages_of(data), data.template_options
    user = {"user": contents["user"]}
    cure = _correct_or_write(tokenizer)
    if options and takes(contents, {}):
        cure = f"change data.template_options, without which it works, or {cure}"
    elif data.system_text is not None and takes(user, options):
        cure = f"remove data.system_text, without which it works, or {cure}"
    elif data.system_text is None and takes({"system": SYSTEM, **user}, options):
        cure = f"set data.system_text, with which it works, or {cure}"
    with_options = f" with {', '.join(options)}" if options else ""
    return DataError(
        f"{where} does not take a {' and a '.join(contents)} message{with_options} ({type(error).__name__}: {error}); "
        f"{cure}"
    )


def _correct_or_write(tokenizer: PreTrainedTokenizerBase, *, file: str | None = None) -> str:
    """Return advice for a chat template with a fault: correct its file, if it is a local one, or write a text.

    file: what to name where the tokenizer is of no local folder
    """
    folder = Path(tokenizer.name_or_path or "")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if tokenizer.name_or_path and (folder / name).is_file():
            file = str(folder / name)
            break
    return WRITE_A_TEMPLATE if file is None else f"correct chat_template in {file}, or {WRITE_A_TEMPLATE}"


def _require_contents(
    template: str, contents: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, *, name: str
) -> None:
    """Raise DataError unless the prompt shows each message unchanged, and the problem once."""
    for role, content in contents.items():
        if content in template and template.count(PROBLEM) == 1:
            continue
        if content.strip() in template and template.count(PROBLEM) == 1:
            option, place = ("system_text", "beginning and end") if role == "system" else ("instruction", "end")
            raise DataError(
                f"data.{option}: the chat template of {name} trims the {role} message; remove the blanks and line "
                f"breaks at the {place} of this text"
            )
        fault = f"does not show the {role} message unchanged and once"
        if (PROBLEM if role == "user" else content.strip()).casefold() not in template.casefold():
            fault = f"drops the {role} message: the prompt would be {_shortened(template)}"
        raise DataError(
            f"data.prompt_template: chat, but the chat template of {name} {fault}; {_correct_or_write(tokenizer)}"
        )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ...")


def _require_known_options(options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    """Raise DataError if an option is not for the chat template.

    That is an option whose name the template does not have, which would have no effect, and the parameters of
    apply_chat_template itself, which would change what this module asks for.
    """
    words = re.findall(r"\w+", tokenizer.get_chat_template())
    own = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
    for option in options:
        if option in own:
            raise DataError(
                f"data.template_options: {option!r} is set by the trainer or belongs to transformers' "
                "apply_chat_template, and is no option of a template; remove it"
            )
        if option not in words:
            near = difflib.get_close_matches(option, words, n=1)
            fix = f"did you mean {near[0]!r}?" if near else "write a name that the template reads, or remove it"
            raise DataError(f"data.template_options: the chat template of {name} has no option {option!r}; {fix}")


def render(
    tokenizer: PreTrainedTokenizerBase,
    contents: Mapping[str, str],
    options: Mapping[str, Any] | None = None,
    *,
    opens_answer: bool = True,
) -> str:
    """Return what the chat template makes of one message of each role, up to where the assistant answers.

    opens_answer: end with the beginning of the assistant's turn, if the assistant has no message
    Raises one of REFUSALS if it does not take them.
    """
    messages = [{"role": role, "content": content} for role, content in contents.items()]
    is_open = opens_answer and "assistant" not in contents
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_open, **(options or {}))
    if not isinstance(text, str):
        raise TypeError("it gives no text")
    return text


def _first_special(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """Return the token that the text begins with, if it is one of the tokenizer's added or special tokens."""
    ids = tokenizer(text.lstrip(), add_special_tokens=False)["input_ids"]
    if ids and (ids[0] in tokenizer.added_tokens_decoder or ids[0] in tokenizer.all_special_ids):
        return str(tokenizer.convert_ids_to_tokens(ids[0]))
    return None


def end_id_of(data: DataSection, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that ends expert traces, and answers first of all; raise DataError if it is none."""
    return end_of_text_id(tokenizer, written_out(data, tokenizer).eos_token)


def stop_ids_of(data: DataSection, tokenizer: PreTrainedTokenizerBase, *, model: str) -> tuple[int, ...]:
    """Return the ids that end a completion: the one that ends traces, then the others, each once.

    The others are `data.stop_tokens`; None: the tokenizer's own and those of the model's generation_config.json.
    Raises DataError for a stop token that is not one token, or an id of the file that is no token.
    """
    end_id = end_id_of(data, tokenizer)
    if data.stop_tokens is not None:
        others = [end_of_text_id(tokenizer, token, option="data.stop_tokens") for token in data.stop_tokens]
    else:
        own = [] if tokenizer.eos_token is None else [end_of_text_id(tokenizer)]
        others = [*own, *_own_stops(tokenizer, model)]
    return tuple(dict.fromkeys([end_id, *others]))


def prompt_settings(data: DataSection, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Return what a run must keep of prompts and ends of answers, as JSON values: the literal template and the ids."""
    return {"template": written_out(data, tokenizer).prompt_template, "stop_ids": list(stop_ids)}


def prompt_line(data: DataSection, tokenizer: PreTrainedTokenizerBase, *, stop_ids: Sequence[int]) -> str:
    """Return a line that says where the prompt comes from and which tokens end an answer."""
    origin = "data.prompt_template"
    if data.prompt_template == "chat":
        options = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in data.template_options.items()]
        origin = "the tokenizer's chat template" + (f" with {', '.join(options)}" if options else "")
    ends = map(repr, texts_of(tokenizer, stop_ids).values())
    return f"prompt: {origin}; an answer ends at {' or '.join(ends)}"


def _own_stops(tokenizer: PreTrainedTokenizerBase, model: str) -> tuple[int, ...]:
    """Return the ids of the model's generation_config.json. Raise DataError if one is no token of the tokenizer."""
    ids = generation_ends(model)
    last = max(tokenizer.get_vocab().values()) if ids else 0
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id <= last:  # a bool is no id either
            raise DataError(
                f"{model}/generation_config.json: eos_token_id: found {token_id!r}, which is not the id of a token (0 "
                f"to {last}); correct it, or name the tokens that end an answer in data.stop_tokens"
            )
    return ids


@functools.cache
def generation_ends(model: str) -> tuple[int, ...]:
    """Return eos_token_id from the generation_config.json of a model's folder or hub id, as it stands there."""
    try:
        ids = GenerationConfig.from_pretrained(model).eos_token_id
    except (OSError, ValueError):
        return ()
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)
