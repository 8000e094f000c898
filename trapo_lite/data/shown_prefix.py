"""Make prompts that show the beginning of an expert solution, behind the problem and by the usual template."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import DataSection
from trapo_lite.config.micro_groups import PREFIX
from trapo_lite.core.types import Problem
from trapo_lite.data.chat import written_out
from trapo_lite.data.tokens import encode, prompt_text, text_of


def prompt_maker(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, instruction: str
) -> Callable[[Problem, Sequence[int]], tuple[int, ...]]:
    """Return a function of a problem and the tokens of a prefix, which gives the prompt that shows the prefix.

    instruction: the text behind the problem, with {prefix} where the prefix goes
    """
    template = written_out(data, tokenizer).prompt_template

    def make(problem: Problem, prefix_ids: Sequence[int]) -> tuple[int, ...]:
        shown = problem.text + instruction.replace(PREFIX, text_of(tokenizer, prefix_ids))
        system = problem.system if data.system == "row" else None
        return next(encode(tokenizer, [prompt_text(template, shown, system=system)]))

    return make
