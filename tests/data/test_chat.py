"""Prompts and stops from the tokenizer's own chat template: templates with the quirks of real ones, on byte tokens."""

import json
import re
from pathlib import Path

import pytest
from byte_model import CHATML, byte_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerBase

from trapo_lite.config import DataSection, validate
from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.data.chat import end_id_of, prompt_line, stop_ids_of, written_out
from trapo_lite.data.expert_thoughts import require_fitting_experts
from trapo_lite.data.loading import load_problems
from trapo_lite.data.rows import Example
from trapo_lite.data.template import open_turn_warnings

START, END = "<|im_start|>", "<|im_end|>"
OPENS_THE_THOUGHT = CHATML.replace("assistant\n", "assistant\n<think>\n")
WITH_BOS = "<|endoftext|>" + CHATML
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('who am I?') }}{% endif %}" + CHATML
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
IGNORES = CHATML.partition("{% if add_generation_prompt %}")[0]  # it ends before the assistant's turn
MISTRAL = "{% for m in messages %}{{ '[INST]' + m.content + '[/INST]' if m.role == 'user' else m.content }}{% endfor %}"
DROPS = "{{ messages[0].role }}<|im_start|>assistant\n"


def tokenizer_with(template: str | None, **tokens: str) -> PreTrainedTokenizerBase:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    return tokenizer


def section(**data: object) -> DataSection:
    return validate({"data": {"prompt_template": "chat", **data}}).data


def test_the_prompt_is_what_transformers_makes_of_the_messages() -> None:
    tokenizer = tokenizer_with(CHATML)
    data = section(system_text="Be brief.", instruction=" Box it.", template_options={"enable_thinking": False})
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1? Box it."}]
    expected = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    template = written_out(data, tokenizer).prompt_template
    assert template.replace("{problem}", "1 + 1?") == expected
    assert template.endswith("<think>\n\n</think>\n\n")


def test_a_template_that_is_written_out_stays_as_it_is() -> None:
    data = DataSection(prompt_template="Q: {problem}")
    assert written_out(data, tokenizer_with(CHATML)) is data


def test_an_expert_solution_ends_as_the_template_ends_an_answer() -> None:
    """The tokenizer's own end of a text is another token, as with Gemma, and it stops an answer too."""
    tokenizer = tokenizer_with(CHATML)
    end, own = (tokenizer.convert_tokens_to_ids(token) for token in (END, "<|endoftext|>"))
    assert end_id_of(section(), tokenizer) == end
    assert stop_ids_of(section(), tokenizer, model="none") == (end, own)
    assert end_id_of(section(eos_token="<|endoftext|>"), tokenizer) == own
    assert end_id_of(DataSection(prompt_template="Q: {problem}"), tokenizer) == own
    assert end_id_of(section(), tokenizer_with("{{ messages[-1].content }}")) == own  # nothing follows the answer


def test_stops_are_the_tokenizers_and_the_generation_configs_unless_they_are_named(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(CHATML)
    start, end, own = (tokenizer.convert_tokens_to_ids(token) for token in (START, END, "<|endoftext|>"))
    GenerationConfig(eos_token_id=[own, start]).save_pretrained(tmp_path)
    assert stop_ids_of(section(), tokenizer, model=str(tmp_path)) == (end, own, start)
    assert stop_ids_of(section(stop_tokens=[START]), tokenizer, model=str(tmp_path)) == (end, start)
    assert stop_ids_of(section(stop_tokens=[]), tokenizer, model=str(tmp_path)) == (end,)


@pytest.mark.parametrize(
    ("content", "found"),
    [(-1, "-1"), ("x", "'x'"), (99999, "99999"), (True, "True"), ([0, None], "None"), (1.0, r"1\.0"), ({}, "{}")],
)
def test_an_end_of_the_generation_config_that_is_no_token_is_an_error(
    content: object, found: str, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": content}))
    tokenizer = tokenizer_with(CHATML)
    with pytest.raises(
        DataError, match=rf"generation_config\.json: eos_token_id: found {found}, .*; correct it, .*data\.stop_tokens$"
    ):
        stop_ids_of(section(), tokenizer, model=str(tmp_path))
    [end] = stop_ids_of(section(stop_tokens=[]), tokenizer, model=str(tmp_path))  # the file is not read
    assert end == tokenizer.convert_tokens_to_ids(END)


@pytest.mark.parametrize(
    ("template", "data", "message"),
    [
        (
            None,
            {},
            r"data\.prompt_template: chat, but the tokenizer of .* has no chat template; set data\.prompt_template to "
            r"a text of your own, such as 'Problem: {problem}\\nAnswer:', or name the instruction-tuned model",
        ),
        (
            CHATML.replace("m.content", "m.content | trim"),
            {"instruction": "\nBox it.\n"},
            r"data\.instruction: the chat template of .* trims the user message; remove .* at the end of this text$",
        ),
        (
            CHATML.replace("m.content", "m.content | trim"),
            {"system_text": " Be brief."},
            r"data\.system_text: the chat template of .* trims the system message; remove .* at the beginning and end",
        ),
        (
            CHATML.replace("m.content", "m.content | trim | upper"),
            {"instruction": "\nBox.\n"},
            "does not show the user",
        ),
        (
            CHATML,
            {"template_options": {"enable_thinkin": False}},
            r"data\.template_options: the chat template of .* has no option 'enable_thinkin'; did you mean '",
        ),
        (CHATML, {"template_options": {"enable": True}}, r"data\.template_options: .* has no option 'enable'"),
        (
            CHATML,
            {"template_options": {"zz": True}},
            r"has no option 'zz'; write a name that the template reads, or remove it$",
        ),
        *(
            (CHATML, {"template_options": {option: "x"}}, rf"template_options: '{option}' is set by .*; remove it$")
            for option in (
                *("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents"),
                *("messages", "return_tensors", "tokenize", "tools"),
            )
        ),
        (
            NO_SYSTEM,
            {"system_text": "Be brief."},
            r"does not take a system and a user message .*no system role\); remove data\.system_text, without which it "
            r"works, or set data\.prompt_template to a text of your own",
        ),
        (
            NEEDS_SYSTEM,
            {},
            r"does not take a user message \(TemplateError: who am I\?\); set data\.system_text, with which it works",
        ),
        (
            "{{ 1 // (0 if loud else 1) }}" + CHATML,
            {"template_options": {"loud": True}},
            r"with loud \(ZeroDivisionError.*\); change data\.template_options, without which it works, or set data",
        ),
        (
            "{{ raise_exception('never') }}",
            {"system_text": "Be brief."},
            r"\(TemplateError: never\); set data\.prompt_template to a text of your own",
        ),
        (
            DROPS,
            {},
            r"drops the user message: the prompt would be 'user<\|im_start\|>assistant'; set data",
        ),
        (CHATML.replace("m.content", "m.content | upper"), {}, r"does not show the user message unchanged"),
        (CHATML.replace("m.content", "m.content * 2"), {}, r"does not show the user message unchanged and once"),
        ("{{ nothing.at_all }}", {}, r"does not take a user message .*nothing"),
        (
            "{% broken",
            {},
            r"is not valid Jinja \(line 1: .*'broken'.*\); correct chat_template in the model's chat_template\.jinja",
        ),
        ("{{ 1 // 0 }}", {}, r"does not take a user message \(ZeroDivisionError"),
        ("{{ 10.0 ** 400 }}", {}, r"does not take a user message \(OverflowError"),
        ("{{ 'a'.encode('ascci') }}", {}, r"does not take a user message \(LookupError: unknown encoding"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", {}, r"does not take a user message \(RecursionError"),
        (CHATML, {"stop_tokens": ["two words"]}, r"data\.stop_tokens: 'two words' is \d+ tokens, and must be one"),
        (CHATML, {"eos_token": "<|eot|>"}, r"data\.eos_token: '<\|eot\|>' is \d+ tokens"),
    ],
)
def test_what_a_template_or_a_stop_cannot_be_is_one_error(template: str | None, data: dict, message: str) -> None:
    tokenizer = tokenizer_with(template)
    with pytest.raises(DataError, match=message):
        stop_ids_of(section(**data), tokenizer, model="none")


@pytest.mark.parametrize(
    "now",
    [
        *("strftime_now('%d %b %Y')", "strftime_now('%d.%m.%Y')", "strftime_now('%b %d %Y')", "strftime_now('%A')"),
        *("strftime_now('%H:%M:%S')", "strftime_now('%Y') | int - 1", "strftime_now(format='%j')"),
        *("'Good morning' if strftime_now('%H') | int < 12 else 'Good evening'", "strftime_now('%p')"),
    ],
)
def test_a_template_that_writes_the_date_or_the_time_is_an_error(now: str) -> None:
    tokenizer = tokenizer_with("{{ " + now + " }}" + CHATML)
    with pytest.raises(DataError, match=r"writes today's date or the time, .*template_options: \{date_string"):
        written_out(section(), tokenizer)


@pytest.mark.parametrize("drawn", ["[1, 2, 3] | random", "range(10) | list | random", "lipsum(n=1)"])
def test_a_template_that_draws_at_random_is_an_error(drawn: str) -> None:
    with pytest.raises(DataError, match=r"draws at random, so that .*; set data\.prompt_template to a text"):
        written_out(section(), tokenizer_with("{{ " + drawn + " }}" + CHATML))


def test_a_template_that_looks_at_the_date_without_writing_it_is_taken() -> None:
    template = written_out(section(), tokenizer_with("{% set today = strftime_now('%d %b %Y') %}" + CHATML))
    assert template.prompt_template == written_out(section(), tokenizer_with(CHATML)).prompt_template


def test_one_line_says_where_the_prompt_and_its_ends_come_from() -> None:
    tokenizer = tokenizer_with(CHATML)
    stop_ids = tokenizer.convert_tokens_to_ids([END, "<|endoftext|>"])
    ends = "an answer ends at '<|im_end|>' or '<|endoftext|>'"
    assert prompt_line(section(), tokenizer, stop_ids=stop_ids) == f"prompt: the tokenizer's chat template; {ends}"
    data = section(template_options={"enable_thinking": False, "date_string": "26 Jul 2024"})
    assert prompt_line(data, tokenizer, stop_ids=stop_ids) == (
        'prompt: the tokenizer\'s chat template with enable_thinking: false, date_string: "26 Jul 2024"; ' + ends
    )
    data = DataSection(prompt_template="Q: {problem}")
    assert prompt_line(data, tokenizer, stop_ids=stop_ids[1:]) == (
        "prompt: data.prompt_template; an answer ends at '<|endoftext|>'"
    )


@pytest.mark.parametrize("name", ["system_text", "instruction"])
def test_the_place_of_the_problem_is_not_for_the_texts_around_it(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{name}: contains {{problem}}, .*; remove it"):
        section(**{name: "Solve {problem}."})


@pytest.mark.parametrize("name", ["system_text", "instruction", "template_options"])
def test_options_of_the_chat_template_need_it(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"data\.{name}: has no effect here: it acts with data\.prompt_template: chat"
    ):
        validate({"data": {name: {"a": 1} if name == "template_options" else "x"}})
    with pytest.raises(ConfigError, match=r"data\.system: has no effect here: it acts with a template that is written"):
        validate({"data": {"prompt_template": "chat", "system": "row"}})


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.parametrize("template", [DROPS, "{{ raise_exception('never') }}", "{% broken %}"])
def test_the_first_cure_of_a_faulty_template_is_its_file(tmp_path: Path, name: str, template: str) -> None:
    (tmp_path / name).write_text("{}")
    tokenizer = tokenizer_with(template)
    tokenizer.name_or_path = str(tmp_path)
    cure = f"; correct chat_template in {tmp_path / name}, or set data.prompt_template to a text"
    with pytest.raises(DataError, match=re.escape(cure)):
        written_out(section(), tokenizer)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    row = {"problem": "1 + 1?", "answer": "2", "solution": "<think>\nOne and one.\n</think>\nIt is 2."}
    file.write_text(json.dumps(row) + "\n")
    return file


def test_problems_are_loaded_in_it_and_the_first_prompt_is_shown(rows: Path) -> None:
    tokenizer = tokenizer_with(CHATML)
    loaded = load_problems(section(train=str(rows), expert_text="full"), tokenizer, max_response_tokens=100)
    [problem] = loaded.problems
    assert tokenizer.decode(problem.prompt_ids) == "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(problem.expert_ids[0][-1:]) == END
    assert any(line.strip().startswith("first prompt, ") for line in loaded.report.lines())


def test_a_thought_that_the_prompt_opens_is_not_opened_again(rows: Path) -> None:
    tokenizer = tokenizer_with(OPENS_THE_THOUGHT)
    data = section(train=str(rows), expert_text="opened")
    [problem] = load_problems(data, tokenizer, max_response_tokens=100).problems
    text = tokenizer.decode(problem.prompt_ids + problem.expert_ids[0])
    assert (
        text.endswith("assistant\n<think>\nOne and one.\n</think>\nIt is 2.<|im_end|>") and text.count("<think>") == 1
    )


WHOLE, OPENED, UNTAGGED = "<think>\n1 and 1.\n</think>\nIt is 2.", "1 and 1.\n</think>\nIt is 2.", "It is 2."


def check_experts(template: str, mode: str, solution: str, **data: object) -> None:
    example = Example("a", "1 + 1?", "2", (UNTAGGED, solution), "", None, True, "a", "rows.jsonl line 1")
    require_fitting_experts(section(expert_text=mode, **data), [example], tokenizer_with(template))


@pytest.mark.parametrize(
    ("template", "mode", "message"),
    [
        (OPENS_THE_THOUGHT, "full", r"ends in <think>, .* rows\.jsonl line 1 .*; set data\.expert_text: opened$"),
        (OPENS_THE_THOUGHT, "thought", r"ends in <think>, .* rows\.jsonl line 1 .*; set data\.expert_text: opened$"),
        (
            CHATML,
            "opened",
            r"does not end in <think>, .* rows\.jsonl line 1 .*; set data\.expert_text: thought or full$",
        ),
    ],
)
def test_an_expert_text_whose_thought_does_not_fit_the_prompt_names_the_one_that_does(
    template: str, mode: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.expert_text: {mode}, but the prompt {message}"):
        check_experts(template, mode, WHOLE)


def test_a_thought_that_no_expert_solution_closes_is_an_error_and_that_some_do_not_close_a_warning(
    tmp_path: Path,
) -> None:
    thinks = OPENS_THE_THOUGHT.replace("assistant\n<think>", "{{ enable_thinking }}assistant\n<think>")
    for template, data, cure in (
        (thinks, {}, r"set data\.template_options: \{enable_thinking: false\}, or write the thought"),
        (OPENS_THE_THOUGHT.replace("enable_thinking", "other"), {}, r"write the thought before the solution"),
        (None, {"prompt_template": "{problem}<think>"}, r"remove <think> from the end of data\.prompt_template"),
    ):
        with pytest.raises(ConfigError, match=rf"no expert solution has </think> \(.* line 1\), .*; {cure}"):
            check_experts(template, "opened", UNTAGGED, **data)
    file = tmp_path / "rows.jsonl"
    rows = [{"problem": f"{n} + 1?", "answer": "2", "solution": text} for n, text in enumerate([WHOLE, UNTAGGED])]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = section(train=str(file), expert_text="opened")
    loaded = load_problems(data, tokenizer_with(OPENS_THE_THOUGHT), max_response_tokens=100)
    [line] = [line for line in loaded.report.lines() if "</think>" in line and "warning: " in line]
    assert "ends in <think>" in line and line.endswith("(1, the first in " + f"{file} line 2)")


@pytest.mark.parametrize(
    ("template", "mode", "solution"),
    [
        *((CHATML, mode, UNTAGGED) for mode in ("thought", "full", "opened")),
        *((CHATML, mode, OPENED) for mode in ("thought", "full", "opened")),  # no value would help
        *((OPENS_THE_THOUGHT, mode, OPENED) for mode in ("thought", "full", "opened")),
        *((CHATML, mode, WHOLE) for mode in ("thought", "full")),
        (OPENS_THE_THOUGHT, "opened", WHOLE),
        (CHATML, "full", "<think> never closed"),
    ],
)
def test_an_expert_text_that_fits_the_prompt_or_that_no_value_would_fit_is_taken(
    template: str, mode: str, solution: str
) -> None:
    check_experts(template, mode, solution)


def test_an_option_that_closes_the_thought_decides_too() -> None:
    check_experts(CHATML, "full", WHOLE, template_options={"enable_thinking": False})


def test_bos_stands_once_also_where_template_and_tokenizer_both_have_it(rows: Path) -> None:
    tokenizer = tokenizer_with(WITH_BOS, bos_token="<|endoftext|>")
    [problem] = load_problems(section(train=str(rows)), tokenizer, max_response_tokens=100).problems
    assert problem.prompt_ids.count(tokenizer.bos_token_id) == 1 and problem.prompt_ids[0] == tokenizer.bos_token_id
    twice = DataSection(train=str(rows), prompt_template="<|endoftext|><|endoftext|>{problem}")
    with pytest.raises(DataError, match=r"the prompts begin with '<\|endoftext\|>' twice; remove one"):
        load_problems(twice, tokenizer, max_response_tokens=100)


def test_a_date_that_is_fixed_by_an_option_is_taken() -> None:
    template = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + CHATML
    data = section(template_options={"date_string": "26 Jul 2024"})
    assert written_out(data, tokenizer_with(template)).prompt_template.startswith("26 Jul 2024<|im_start|>user")


def test_a_template_that_ignores_add_generation_prompt_is_warned_about(rows: Path) -> None:
    """The warning has the prompt to set instead, which ends where the assistant begins."""
    [warning] = open_turn_warnings(section(system_text="Be brief."), tokenizer_with(IGNORES))
    whole = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"
    assert warning == (
        "warning: data.prompt_template: chat: the tokenizer's chat template ignores add_generation_prompt, so the "
        "prompts end before '<|im_start|>assistant\\n', with which an answer begins; set data.prompt_template: "
        f'{json.dumps(whole)} and data.eos_token: "<|im_end|>" instead'
    )
    report = load_problems(section(train=str(rows)), tokenizer_with(IGNORES), max_response_tokens=100).report
    assert sum("ignores add_generation_prompt" in line for line in report.lines()) == 1


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        OPENS_THE_THOUGHT,
        MISTRAL,  # it has no beginning of the assistant's turn
        IGNORES + "<|im_start|>assistant\n",  # it always opens the turn
        CHATML + "{% if not add_generation_prompt and messages[-1].role == 'user' %}{{ 1 // 0 }}{% endif %}",
    ],
)
def test_a_template_whose_prompts_end_where_the_assistant_begins_is_not_warned_about(template: str) -> None:
    assert open_turn_warnings(section(), tokenizer_with(template)) == ()


def test_a_prompt_that_is_written_out_has_no_turn_to_open() -> None:
    assert open_turn_warnings(DataSection(prompt_template="Q: {problem}"), tokenizer_with(IGNORES)) == ()


def test_its_own_template_is_never_warned_about(rows: Path) -> None:
    """Options change it, and it may leave out the BOS that the tokenizer puts in front of other texts."""
    tokenizer = tokenizer_with(CHATML, bos_token="<|endoftext|>")
    data = section(train=str(rows), template_options={"enable_thinking": False}, system_text="Be brief.")
    assert "warning: " not in "\n".join(load_problems(data, tokenizer, max_response_tokens=100).report.lines())
