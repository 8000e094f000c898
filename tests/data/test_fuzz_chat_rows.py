"""Rows that are conversations, with any roles, contents and templates: refused, skipped, or exactly their texts."""

import json
from pathlib import Path
from typing import Any

import pytest
from byte_model import byte_tokenizer
from fuzzing import outcome, plain_data, texts
from hypothesis import example, given
from hypothesis import strategies as st

from trapo_lite.config import DataSection, validate
from trapo_lite.data.loading import load_problems
from trapo_lite.data.tokens import text_of

TOKENIZER = byte_tokenizer()
ROLES = st.one_of(st.sampled_from(["user", "assistant", "system", "tool", "User", "human", "gpt", ""]), plain_data(2))
MESSAGES = st.one_of(
    st.fixed_dictionaries({"role": ROLES, "content": st.one_of(texts(), plain_data(2))}),
    st.fixed_dictionaries({"from": ROLES, "value": texts()}),
    plain_data(2),
)
CONVERSATIONS = st.one_of(st.lists(MESSAGES, max_size=4), plain_data(3))
TEMPLATES = st.one_of(
    st.sampled_from(
        [
            "{problem}\n",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>system\n<|im_start|>user\n{problem}",
            "{problem}{system}{0}{",
        ]
    ),
    st.builds("{}{{problem}}{}".format, texts(), texts()),
)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.mark.slow
@given(st.sampled_from(["prompt", "messages", "problem"]), CONVERSATIONS, CONVERSATIONS, TEMPLATES, st.booleans())
@example("prompt", [], "x", "{problem}", False)
@example("prompt", [*user("1?"), {"role": "assistant", "content": "2"}], "x", "{problem}", False)
@example("prompt", [{"role": "system", "content": "s"}], "x", "{problem}", True)
@example("prompt", user(None), "x", "{problem}", False)
@example("prompt", user(["a"]), "x", "{problem}", False)
@example("prompt", user([{"type": "text", "text": "a"}]), "x", "{problem}", False)
@example("prompt", user("1?"), [{"role": "user", "content": "2"}], "{problem}", False)
@example("prompt", user("1?"), [[], []], "{problem}", False)
@example("prompt", [{"role": "system", "content": "s"}, *user("{problem}")], "x", "<|im_start|>system\n{problem}", True)
def test_conversations_of_any_kind(
    tmp_path_factory: pytest.TempPathFactory, field: str, prompt: Any, target: Any, template: str, takes_system: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "chat.jsonl"
    row = {field: prompt, "target": target, "answer": "2"}
    other = {"prompt": user("1 + 1?"), "target": [{"role": "assistant", "content": "two"}], "answer": "2"}
    file.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
    raw = {"train": str(file), "prompt_template": template, "system": "row" if takes_system else "template"}
    config = outcome(lambda: validate({"data": raw | {"on_bad_row": "skip"}}))
    if isinstance(config, str):
        return
    loaded = outcome(lambda: load_problems(config.data, TOKENIZER, max_response_tokens=64))
    if isinstance(loaded, str):
        return
    for problem in loaded.problems:
        text = text_of(TOKENIZER, problem.prompt_ids, with_special=True)
        content = "1 + 1?" if problem.id == "chat-1" else row[field]
        if isinstance(content, list):  # the problem stands where the last of the user's messages says it
            said = [message.get("content", message.get("value")) for message in content if isinstance(message, dict)]
            assert any(isinstance(one, str) and _plain(one.strip()) in _plain(text) for one in said)
        else:
            assert _plain(str(content).strip()) in _plain(text)


def _plain(text: str) -> str:
    """As the byte-level tokenizer gives it back."""
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return text_of(TOKENIZER, ids, with_special=True)


@pytest.mark.slow
@given(TEMPLATES, texts(200))
def test_a_problem_stands_in_the_template_to_the_letter(template: str, problem: str) -> None:
    from trapo_lite.data.tokens import prompt_text

    if template.count("{problem}") == 1:
        before, after = template.split("{problem}")
        assert prompt_text(template, problem) == before + problem + after


def test_the_section_refuses_templates_without_a_place(tmp_path: Path) -> None:
    for template in ("", "{problem", "{problem}{problem}", "{ problem }"):
        assert isinstance(outcome(lambda template=template: validate({"data": {"prompt_template": template}})), str)
    assert DataSection(prompt_template="{problem}").prompt_template == "{problem}"
