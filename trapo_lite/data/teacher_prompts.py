"""Make the prompts that a teacher reads: problem, instruction and expert solution, by the template of all prompts."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import DataSection
from trapo_lite.config.teachers import SOLUTION, SolutionTeacher
from trapo_lite.core.errors import DataError
from trapo_lite.core.in_words import counted
from trapo_lite.data.chat import written_out
from trapo_lite.data.loading import Loaded
from trapo_lite.data.report import length_quantiles
from trapo_lite.data.rows import Example
from trapo_lite.data.tokens import encode, expert_text, prompt_text


def with_teacher_prompts(
    loaded: Loaded,
    data: DataSection,
    teacher: SolutionTeacher,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
) -> Loaded:
    """Return the problems that a teacher can judge, each with its `teacher_prompt_ids`; the report counts the others.

    A problem without a usable expert solution is left out, and so is one whose teacher's prompt is longer than
    `max_prompt_tokens`. Raises DataError if none is left, or if `solution_of: other` has no other problem to take one
    from.
    """
    solved = [pair for pair in zip(loaded.problems, loaded.examples, strict=True) if pair[0].expert_ids]
    left_out = Counter({"without an expert solution": len(loaded.problems) - len(solved)})
    problems, examples, lengths = [], [], []
    prompts = encode(tokenizer, list(_texts([example for _, example in solved], written_out(data, tokenizer), teacher)))
    for (problem, example), prompt_ids in zip(solved, prompts, strict=True):
        if len(prompt_ids) > max_prompt_tokens:
            left_out[f"over {max_prompt_tokens} tokens"] += 1
            continue
        problems.append(replace(problem, teacher_prompt_ids=prompt_ids))
        examples.append(example)
        lengths.append(len(prompt_ids))
    left_out = {reason: count for reason, count in left_out.items() if count}
    if not problems:
        found = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DataError(
            f"data {', '.join(loaded.report.files)}: no problem is left for a teacher ({found}); give the rows expert "
            "solutions, or raise algorithm.teacher.max_prompt_tokens"
        )
    report = replace(loaded.report, teacher_lengths=length_quantiles(lengths), teacher_left_out=left_out)
    return Loaded(problems, examples, report)


def _texts(examples: Sequence[Example], data: DataSection, teacher: SolutionTeacher) -> Iterator[str]:
    solutions = [expert_text(example.solutions[0], data.expert_text) for example in examples]
    if teacher.solution_of == "other":
        solutions = of_other_problems(solutions)
    for example, solution in zip(examples, solutions, strict=True):
        system = example.system if data.system == "row" else None
        text = example.problem + teacher.instruction.replace(SOLUTION, solution)
        yield prompt_text(data.prompt_template, text, system=system)


def of_other_problems(solutions: Sequence[str]) -> list[str]:
    """Return each problem's solution from another problem, drawn once for all: in a random cycle, the next one's.

    >>> of_other_problems(["a", "b", "c"])
    ['c', 'a', 'b']

    Every solution is used once. Raises DataError for a single problem.
    """
    if len(solutions) == 1:
        raise DataError(
            f"algorithm.teacher.solution_of: other, but only {counted(1, 'problem')} has an expert solution; give more "
            "problems, or take the same problem's"
        )
    cycle = list(range(len(solutions)))
    random.Random(0).shuffle(cycle)
    following = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [solutions[following[index]] for index in range(len(solutions))]
