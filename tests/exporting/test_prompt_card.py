"""A card's code makes the prompt of training, and the exported template takes the options of training."""

import json
import re
from typing import Any

import jinja2
import pytest
from byte_model import CHATML, byte_tokenizer

from trapo_lite.config import DataSection, validate
from trapo_lite.data.chat import template_with_defaults, written_out
from trapo_lite.data.tokens import prompt_text
from trapo_lite.exporting.prompt_card import prompt_section

IN_A_MACRO = (
    "{% macro opening() %}{% if enable_thinking %}<think>{% endif %}{{ style }}{% endmacro %}"
    "{% for m in messages %}{{ opening() }}{{ m.content }}{% endfor %}"
)
PROBLEM = "1 + 1?"
ENDS = {7: "<|im_end|>", 9: "<|endoftext|>"}
OPTIONS = {"enable_thinking": False, "budget": 3, "style": 'short "and" sweet \\ 😀'}


def section(**data: Any) -> DataSection:
    return validate({"data": data}).data


def tokenizer_with(template: str | dict[str, str] | None) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "data",
    [
        {"prompt_template": "chat"},
        {
            "prompt_template": "chat",
            "system_text": 'Say "yes".',
            "instruction": "\nBox {it}.",
            "template_options": OPTIONS,
        },
        {"prompt_template": "<|im_start|>user\n{problem}\n```\n\\boxed{}<|im_end|>\n"},
    ],
    ids=["chat", "chat with everything", "literal"],
)
def test_the_code_and_the_request_of_the_card_make_the_prompt_of_training(data: dict) -> None:
    tokenizer = tokenizer_with("{% set read = [budget, style] %}" + CHATML)
    expected = prompt_text(written_out(section(**data), tokenizer).prompt_template, PROBLEM)
    card = prompt_section(section(**data), ENDS, has_defaults=False)

    [code], [request] = (
        re.findall(rf"^```{kind}\n(.*?)\n```$", card, re.DOTALL | re.MULTILINE) for kind in ("python", "json")
    )
    variables: dict[str, Any] = {"tokenizer": tokenizer, "problem": PROBLEM}
    exec(code, variables)
    assert variables["prompt"] == expected
    fields = json.loads(request)
    assert fields["stop_token_ids"] == [7, 9]
    if "messages" in fields:
        options = fields.get("chat_template_kwargs", {})
        text = tokenizer.apply_chat_template(fields["messages"], tokenize=False, add_generation_prompt=True, **options)
    else:
        text = fields["prompt"]
        assert fields["add_special_tokens"] is False
        assert tokenizer.decode(variables["input_ids"]) == expected
    assert text.replace("{problem}", PROBLEM) == expected


def test_the_card_says_whether_the_template_has_the_options_as_defaults() -> None:
    data = section(prompt_template="chat", template_options={"enable_thinking": False})
    assert "takes these values of `enable_thinking` as defaults" in prompt_section(data, ENDS, has_defaults=True)
    assert "does not take these values of `enable_thinking` as defaults" in prompt_section(
        data, ENDS, has_defaults=False
    )
    assert "as defaults" not in prompt_section(section(prompt_template="chat"), ENDS, has_defaults=False)


@pytest.mark.parametrize("template", [CHATML, "\n  " + CHATML, IN_A_MACRO], ids=["chatml", "blanks first", "macro"])
def test_the_exported_template_takes_the_options_where_the_caller_gives_none(template: str) -> None:
    tokenizer, messages = tokenizer_with(template), [{"role": "user", "content": PROBLEM}]

    def rendered(template: str, **options: Any) -> str:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, chat_template=template, **options
        )

    exported = template_with_defaults(section(prompt_template="chat", template_options=OPTIONS), tokenizer)
    assert exported is not None
    assert rendered(exported) == rendered(template, **OPTIONS) != rendered(template)
    others = OPTIONS | {"enable_thinking": True, "style": ""}
    assert rendered(exported, **others) == rendered(template, **others) != rendered(exported)
    # vLLM drops a caller's options that are not among these.
    assert set(OPTIONS) <= jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(exported))


@pytest.mark.parametrize(
    ("template", "options"),
    [
        (None, {}),
        ({"default": CHATML, "tool_use": CHATML}, {"enable_thinking": False}),
        (CHATML, {"not-a-name": 1}),
        (CHATML, {"add_generation_prompt": False}),
    ],
)
def test_what_a_template_cannot_take_is_left_to_the_caller(template: Any, options: dict) -> None:
    data = section(prompt_template="chat", template_options=options)
    assert template_with_defaults(data, tokenizer_with(template)) is None


def test_without_options_the_template_stays_as_it_is() -> None:
    assert template_with_defaults(section(prompt_template="chat"), tokenizer_with(CHATML)) == CHATML
