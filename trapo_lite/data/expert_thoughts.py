"""Check that the thought of each expert solution is opened once and closed once, together with the prompt."""

from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import DataSection
from trapo_lite.core.errors import ConfigError
from trapo_lite.data.chat import written_out
from trapo_lite.data.rows import Example
from trapo_lite.data.tokens import expert_text

NUM_CHECKED = 1000  # rows whose solutions are compared with the prompt: 0.4 ms for one of 20,000 characters


def require_fitting_experts(data: DataSection, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if, behind the prompt, a thought would be opened twice, never opened or never closed.

    Only the first solutions are looked at. Those that no value of data.expert_text fits are an error only if they are
    all; the data report has a warning about some.
    """
    template = written_out(data, tokenizer).prompt_template
    is_opened = template.rstrip().endswith("<think>")
    unclosed = unclosed_thoughts(template, examples[:NUM_CHECKED])
    if unclosed and len(unclosed) == sum(len(example.solutions) for example in examples[:NUM_CHECKED]):
        raise ConfigError(
            f"data.prompt_template: the prompt ends in <think>, but no expert solution has </think> (the first is in "
            f"{unclosed[0]}), so that the policy would learn never to close a thought; "
            f"{how_to_close_the_thought(data, tokenizer)}"
        )

    def fits(solution: str, mode: Literal["thought", "full", "opened"]) -> bool:
        before, closing, _ = expert_text(solution, mode).partition("</think>")
        opens = "<think>" in before
        return (closing != "" and not opens) if is_opened else (closing == "" or opens)

    for example in examples[:NUM_CHECKED]:
        for solution in example.solutions:
            fitting = [mode for mode in ("thought", "full", "opened") if fits(solution, mode)]
            if not fitting or data.expert_text in fitting:
                continue
            if is_opened:
                found = f"ends in <think>, which the solution in {example.where} would then open again or never close"
            else:
                found = f"does not end in <think>, so that the solution in {example.where} would close no open thought"
            raise ConfigError(
                f"data.expert_text: {data.expert_text}, but the prompt {found}; set data.expert_text: "
                f"{' or '.join(fitting)}"
            )


def unclosed_thoughts(prompt_template: str, examples: Sequence[Example]) -> list[str]:
    """Return where the expert solutions are that never close the thought that the prompt opens."""
    if not prompt_template.rstrip().endswith("<think>"):
        return []
    return [example.where for example in examples for text in example.solutions if "</think>" not in text]


def how_to_close_the_thought(data: DataSection, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return advice for a prompt that opens a thought which expert solutions do not close."""
    cure = "write the thought before the solution, closed by </think>"
    if data.prompt_template != "chat":
        return f"remove <think> from the end of data.prompt_template, or {cure}"
    is_known = tokenizer.chat_template and "enable_thinking" in tokenizer.get_chat_template()
    if is_known and data.template_options.get("enable_thinking") is not False:
        return f"set data.template_options: {{enable_thinking: false}}, or {cure}"
    return f"{cure}, or write data.prompt_template without <think>"
