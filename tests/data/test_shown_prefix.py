"""The prompt that shows a prefix: problem, instruction and prefix, by the template of all prompts."""

from pathlib import Path

import pytest

from trapo_lite.config import DataSection, load_config
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.types import Problem
from trapo_lite.data.shown_prefix import prompt_maker
from trapo_lite.data.tokens import load_tokenizer, text_of

BASE = str(Path("trapo_lite/tiny_world/base"))
WITH_SYSTEM = "<|im_start|>system\nUsual<|im_end|>\n<|im_start|>user\n{problem}<|im_end|>\n"


def test_the_prompt_is_the_template_with_problem_instruction_and_prefix() -> None:
    tokenizer = load_tokenizer(BASE)
    prefix = tuple(tokenizer("Start carefully at 12", add_special_tokens=False)["input_ids"])
    make = prompt_maker(DataSection(prompt_template=WITH_SYSTEM), tokenizer, " Begin: {prefix} Go on.")
    made = make(Problem("a", (1,), "1", text="What is 12 (a) + 7?", system="Row's"), prefix)
    assert text_of(tokenizer, made, with_special=True) == WITH_SYSTEM.format(
        problem="What is 12 (a) + 7? Begin: Start carefully at 12 Go on."
    )


def test_a_rows_system_message_is_kept() -> None:
    tokenizer = load_tokenizer(BASE)
    data = DataSection(prompt_template=WITH_SYSTEM, system="row")
    made = prompt_maker(data, tokenizer, "{prefix}")(Problem("a", (1,), "1", text="x", system="Row's"), (5,))
    assert text_of(tokenizer, made, with_special=True).startswith("<|im_start|>system\nRow's<|im_end|>")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.prefix_instruction=Go on", "algorithm.prefix_instruction: must contain {prefix} exactly once"),
        ("algorithm.prefix_instruction={problem} {prefix}", "algorithm.prefix_instruction: must contain {prefix}"),
        (
            "algorithm.schedule=[{num_rollouts: 1, prefix_ratio: 1.0, help_below: null, prefix_in: prompt}]",
            "algorithm.schedule[0].prefix_in: prompt, with prefix_ratio 1",
        ),
        ("algorithm.prefix_loss=nll", "algorithm.prefix_loss: nll, but no answer begins with a prefix that is trained"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(["tiny_cpu.yaml", "algorithm/pope.yaml"], [override])
    assert str(raised.value).startswith(message)
