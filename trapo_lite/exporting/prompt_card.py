"""Say in a card how the prompts of training were made, with code and requests to copy."""

import json
from collections.abc import Mapping

from trapo_lite.config import DataSection
from trapo_lite.data.chat import PROBLEM, messages_of

SERVED_AS = "trained"  # the name under which the cards' commands serve
CHAT = """\
## Prompt

The chat template makes the prompt. In transformers, with the text of a `problem`:

```python
messages = {messages}
prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True{keywords})
```

For `/v1/chat/completions` of vLLM, with the problem in the place of `{{problem}}`:

```json
{request}
```
"""
LITERAL = """\
## Prompt

The prompt is a text without a chat template. In transformers, with the text of a `problem`:

```python
prompt = {template}.replace("{{problem}}", problem)
input_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
```

For `/v1/completions` of vLLM, with the problem in the place of `{{problem}}`:

```json
{request}
```
"""
ROW_SYSTEM = """
Where a row of the data had a system message, it stood in the place of the one in this text.
"""
DEFAULTS = """
The chat template in this folder takes these values of {names} as defaults. A caller's own options replace them.
"""
NO_DEFAULTS = """
The chat template does not take these values of {names} as defaults. Give them with every request.
"""


def prompt_section(data: DataSection, ends: Mapping[int, str], *, has_defaults: bool) -> str:
    """Return the section of a card on prompts.

    ends: text of each token that ends an answer, by its id.   has_defaults: the chat template beside the card has
    `data.template_options` as defaults
    """
    model, stops = {"model": SERVED_AS}, {"stop_token_ids": list(ends)}
    if data.prompt_template != "chat":
        request = {**model, "prompt": data.prompt_template, "add_special_tokens": False, **stops}
        text = LITERAL.format(template=repr(data.prompt_template), request=_json(request))
        return text + (ROW_SYSTEM if data.system == "row" else "")
    messages = [{"role": role, "content": content} for role, content in messages_of(data).items()]
    options = data.template_options
    request = {**model, "messages": messages, **({"chat_template_kwargs": options} if options else {}), **stops}
    text = CHAT.format(
        messages=_with_problem(messages),
        keywords="".join(f", {name}={value!r}" for name, value in options.items()),
        request=_json(request),
    )
    if options:
        text += (DEFAULTS if has_defaults else NO_DEFAULTS).format(names=", ".join(f"`{name}`" for name in options))
    return text


def spelt_ends(ends: Mapping[int, str]) -> str:
    r"""Return the texts for a cell of a table.

    >>> print(spelt_ends({5: "<|end|>", 6: "\n"}))
    `<\|end\|>`, `\n`
    """
    return ", ".join(f"`{_json(text)[1:-1]}`" for text in ends.values()).replace("|", "\\|")


def _with_problem(messages: list[dict[str, str]]) -> str:
    """Return the messages as Python code in which the variable `problem` stands in the place of {problem}."""
    *system, user = messages
    instruction = user["content"].removeprefix(PROBLEM)
    content = f"problem + {instruction!r}" if instruction else "problem"
    return "[" + ", ".join([*map(repr, system), f"{{'role': 'user', 'content': {content}}}"]) + "]"


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False)
