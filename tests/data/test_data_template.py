"""Prompt templates against tokenizers of several families, made by hand: tags, chat template, first token."""

import json

import pytest
from byte_model import byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trapo_lite.config import DataSection, load_config
from trapo_lite.core.errors import DataError
from trapo_lite.data.loading import load_problems
from trapo_lite.data.template import require_known_tags, template_warnings
from trapo_lite.data.tokens import load_tokenizer

QWEN = DataSection().prompt_template
CHATML = "<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"
LLAMA = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{problem}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA_TAGS = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
CHATML_CHAT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Qwen.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_SYSTEM_CHAT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{{ '<start_of_turn>model\\n' }}"
)


def tokenizer_of(tags, *, bos: str = "", puts_bos=False, chat=None) -> PreTrainedTokenizerFast:
    """Bytes 0 to 255, then `<eos>` and the tags; puts_bos: by itself, in front of every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(tag, special=True) for tag in ("<eos>", *tags)])
    if puts_bos:
        special = [(bos, core.token_to_id(bos))]
        core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", bos_token=bos or None)
    made.chat_template = chat
    return made


def llama(**options) -> PreTrainedTokenizerFast:
    return tokenizer_of(LLAMA_TAGS, **{"bos": "<|begin_of_text|>", **options})


def warnings(template: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    ids = tokenizer(template.replace("{problem}", "1 + 1?"), add_special_tokens=False)["input_ids"]
    return template_warnings(template, tokenizer, tuple(ids))


def test_tags_of_another_family_are_refused_with_the_tokenizers_own():
    with pytest.raises(DataError) as caught:
        require_known_tags(QWEN, llama())
    message = str(caught.value)
    assert message.startswith(
        "data.prompt_template: '<|im_start|>', '<|im_end|>': not known to the tokenizer of the model"
    )
    assert "which reads '<|im_start|>' as '<' 27, '|' 91, 'i' 72, 'm' 76, '_' 62," in message  # bytes less 33
    assert message.endswith(f"write the template with its own tags, such as <eos>, {', '.join(LLAMA_TAGS)}")
    with pytest.raises(DataError, match=r"'<\|begin_of_text\|>', '<\|start_header_id\|>', '<\|end_header_id\|>'"):
        require_known_tags(LLAMA, byte_tokenizer())


@pytest.mark.parametrize("tags", [(), ("<s>", "</s>")], ids=["gpt-2", "with-bos"])
def test_a_tokenizer_without_tags_for_a_chat_is_told_to_write_plain_text(tags: tuple[str, ...]):
    """GPT-2 has one special token, which begins and ends a text: no template is written with it."""
    tokenizer = tokenizer_of(tags, bos="<s>" if tags else "<eos>")
    if tags:
        tokenizer.eos_token, tokenizer.unk_token = "</s>", "<eos>"
    with pytest.raises(DataError) as caught:
        require_known_tags(QWEN, tokenizer)
    assert str(caught.value).endswith(
        "; it has no tags for a chat, so set data.prompt_template to a text of your own, such as "
        "'Problem: {problem}\\nAnswer:'"
    )
    require_known_tags("Problem: {problem}\nAnswer:", tokenizer)


def test_the_error_gives_the_chat_template_to_take_over():
    with pytest.raises(DataError) as caught:
        require_known_tags(QWEN, llama(chat=LLAMA_CHAT))
    _, _, own = str(caught.value).rpartition("take over its chat template: data.prompt_template: ")
    assert json.loads(own) == LLAMA
    assert DataSection(prompt_template=json.loads(own)).prompt_template == LLAMA
    assert (
        load_config(overrides=[f"data.prompt_template={own}"]).data.prompt_template == LLAMA
    )  # as YAML, to the letter


def test_tags_that_the_chat_template_itself_spells_in_letters_are_a_warning():
    """Zephyr's and TinyLlama's chat templates write <|user|>, which is no token of theirs."""
    tokenizer = tokenizer_of(("<s>",), chat="<|user|>\n{{ messages[0].content }}<s>")
    require_known_tags("<|user|>\n{problem}<s>", tokenizer)
    warning, prompt = warnings("<|user|>\n{problem}<s>", tokenizer)
    assert warning.startswith(
        "warning: data.prompt_template: '<|user|>': not known to the tokenizer, which spells it in"
    )
    assert prompt.startswith("first prompt, 16 tokens: '<' 27, '|' 91, 'u' 84,")
    with pytest.raises(DataError, match=r"'<\|assistant\|>': not known"):
        require_known_tags("<|user|>\n{problem}<s><|assistant|>", tokenizer)


@pytest.mark.parametrize(
    ("template", "tag"),
    [
        ("<start_of_turn>user\n{problem}", "<start_of_turn>"),
        ("<s>{problem}</s>", "<s>"),
        ("<bos>{problem}", "<bos>"),
        ("<|turn>user\n{problem}", "<|turn>"),
        ("{problem}<turn|>", "<turn|>"),
        ("<\uff5cUser\uff5c>{problem}", "<\uff5cUser\uff5c>"),
    ],
)
def test_tags_without_bars_are_tags_too(template, tag):
    with pytest.raises(DataError) as caught:
        require_known_tags(template, llama())
    assert str(caught.value).startswith(f"data.prompt_template: {tag!r}")
    require_known_tags(
        template, tokenizer_of(("<start_of_turn>", "<s>", "</s>", "<bos>", "<\uff5cUser\uff5c>", "<|turn>", "<turn|>"))
    )


@pytest.mark.parametrize("template", ["Think in <think></think>. {problem}", "|x| < 1: {problem} <|", "<|{problem}|>"])
def test_text_that_is_no_tag_is_text(template):
    require_known_tags(template, llama())


def test_an_unknown_tag_of_a_tokenizer_with_an_unknown_token():
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"?": 0, "<s>": 1}, unk_token="?")), unk_token="?"
    )
    require_known_tags("<s>{problem}", words)
    with pytest.raises(DataError, match=r"'</s>': not known .* as '\?' 0"):
        require_known_tags("<s>{problem}</s>", words)


@pytest.mark.parametrize(
    ("template", "tokenizer"),
    [
        (QWEN, byte_tokenizer()),
        (CHATML, byte_tokenizer()),
        ("Q: {problem}\nA:", byte_tokenizer()),
        (QWEN, tokenizer_of(("<|im_start|>", "<|im_end|>"), chat=CHATML_CHAT)),
        (LLAMA, llama(puts_bos=True, chat=LLAMA_CHAT)),
        (LLAMA.replace("{problem}", "{problem}\nBox it."), llama(chat=LLAMA_CHAT)),
        (LLAMA, llama()),
        ("Q: {problem}\nA:", llama()),  # it has a BOS, but puts it nowhere
        (
            "<s><start_of_turn>user\nSolve: {problem}<end_of_turn>\n<start_of_turn>model\n",
            tokenizer_of(("<s>", "<start_of_turn>", "<end_of_turn>"), bos="<s>", chat=NO_SYSTEM_CHAT),
        ),
    ],
)
def test_a_template_that_fits_is_not_spoken_of(template, tokenizer):
    require_known_tags(template, tokenizer)
    assert warnings(template, tokenizer) == ()


@pytest.mark.parametrize(
    "template", [CHATML, "Q: {problem}\nA:", QWEN + "Let me see", QWEN.replace("<|im_end|>", "", 1)]
)
def test_a_template_that_differs_from_the_chat_template(template):
    """CHATML lacks the system message that this chat template would put in."""
    first, last = warnings(template, tokenizer_of(("<|im_start|>", "<|im_end|>"), chat=CHATML_CHAT))
    own = "<|im_start|>system\nYou are Qwen.<|im_end|>\n" + CHATML
    assert first == (
        "warning: data.prompt_template: differs from the tokenizer's chat template, which would be " + json.dumps(own)
    )
    assert last.startswith("first prompt, ")


@pytest.mark.parametrize("options", [{"puts_bos": True}, {"chat": LLAMA_CHAT}, {"puts_bos": True, "chat": LLAMA_CHAT}])
def test_a_prompt_without_the_bos_that_belongs_there(options):
    """`<|start_header_id|>` is token 259: 256 bytes, `<eos>`, BOS and `<|eot_id|>` stand before it. A printable byte is
    its value less 33. 4 + 6 + 9 letters, 5 tags, 4 line breaks."""
    first, last = warnings(LLAMA.removeprefix("<|begin_of_text|>"), llama(**options))
    assert first == (
        "warning: data.prompt_template: the prompts do not begin with '<|begin_of_text|>', which the tokenizer puts in "
        "front of a text; begin the template with it"
    )
    assert last.startswith("first prompt, 28 tokens: '<|start_header_id|>' 259, 'u' 84, 's' 82, 'e' 68, 'r' 81, ")
    assert ", ..., " in last and last.endswith(" 't' 83, '<|end_header_id|>' 260, '\\n' 198, '\\n' 198")


def test_the_warnings_stand_in_the_report_and_an_unknown_tag_stops_loading(tmp_path):
    file = tmp_path / "made.jsonl"
    file.write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    tokenizer = llama(puts_bos=True)
    with pytest.raises(DataError, match=r"data\.prompt_template: '<\|im_start\|>'"):
        load_problems(DataSection(train=str(file)), tokenizer, max_response_tokens=64)
    section = DataSection(train=str(file), prompt_template="Q: {problem}")
    report = load_problems(section, tokenizer, max_response_tokens=64).report
    warning, prompt, _ = report.lines()[-3:]
    assert warning.startswith("warning: data.prompt_template: the prompts do not begin with '<|begin_of_text|>'")
    assert prompt.startswith("first prompt, 9 tokens: 'Q' 48, ':' 25,")


def test_a_saved_chat_template_is_found(tmp_path):
    llama(chat=LLAMA_CHAT).save_pretrained(tmp_path)
    assert len(warnings("Q: {problem}", load_tokenizer(str(tmp_path)))) == 3
