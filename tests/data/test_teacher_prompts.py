"""A teacher reads problem and solution in the template of all prompts; some problems have no teacher."""

import json
from collections.abc import Callable

import pytest
from byte_model import CHATML, byte_tokenizer

from trapo_lite.config import Config, validate
from trapo_lite.core.errors import DataError
from trapo_lite.core.types import Problem
from trapo_lite.data.loading import load_problems
from trapo_lite.data.report import DataReport
from trapo_lite.data.teacher_prompts import of_other_problems
from trapo_lite.training.inputs import read_problems

ROWS = [
    {"id": "a", "problem": "1 + 1?", "answer": "2", "solutions": ["<think>one and one</think>\nIt is 2.", "2"]},
    {"id": "b", "problem": "2 + 2?", "answer": "4", "solutions": ["2 and 2 are 4"]},
    {"id": "c", "problem": "3 + 3?", "answer": "6"},
    {"id": "d", "problem": "4 + 4?", "answer": "8", "solution": "four more than four"},
]
INSTRUCTION = " Read: {solution} Go."
Load = Callable[..., tuple[list[Problem], DataReport]]


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def load(tokenizer, tmp_path) -> Load:
    """Load(rows, data={...}, **teacher): the problems that are trained, and the report."""

    def load(rows=ROWS, *, data=None, **teacher):
        file = tmp_path / "made.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = make_config(str(file), data or {}, teacher)
        problems, report, _ = read_problems(config, tokenizer)
        return problems, report

    return load


def make_config(train: str, data: dict, teacher: dict) -> Config:
    return validate(
        {
            "data": {"train": train, "prompt_template": "Q: {problem} A:", "max_prompt_tokens": 30} | data,
            "rollout": {"num_problems": 1, "max_response_tokens": 40},
            "algorithm": {
                "schedule": [{"num_rollouts": 2}],
                "prefix_loss": "none",
                "completion_loss": "none",
                "teacher": {"type": "solution", "instruction": INSTRUCTION} | teacher,
            },
        }
    )


def test_the_teacher_reads_problem_and_first_solution_in_the_prompts_template(load: Load, tokenizer) -> None:
    problems, _ = load()
    assert {p.id: tokenizer.decode(p.teacher_prompt_ids) for p in problems} == {
        "a": "Q: 1 + 1? Read: one and one Go. A:",
        "b": "Q: 2 + 2? Read: 2 and 2 are 4 Go. A:",
        "d": "Q: 4 + 4? Read: four more than four Go. A:",
    }
    assert tokenizer.decode(problems[0].prompt_ids) == "Q: 1 + 1? A:"
    full, _ = load(data={"expert_text": "full"})
    assert "<think>one and one</think>\nIt is 2. Go." in tokenizer.decode(full[0].teacher_prompt_ids)


def test_the_chat_template_has_the_text_in_the_users_message(load: Load, tokenizer) -> None:
    tokenizer.chat_template = CHATML
    problems, _ = load(data={"prompt_template": "chat", "instruction": " Box it.", "max_prompt_tokens": 100})
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 + 1? Read: one and one Go. Box it."}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert tokenizer.decode(problems[0].teacher_prompt_ids) == expected


def test_problems_without_a_solution_or_with_a_longer_prompt_are_left_out_and_counted(load: Load) -> None:
    """The prompts have 34, 36 and 42 bytes."""
    problems, report = load(max_prompt_tokens=36)
    assert [problem.id for problem in problems] == ["a", "b"]
    warning = "warning: algorithm.teacher: 2 of 4 problems are left out, because it has no prompt for them: raise "
    assert any(line.startswith(warning) for line in report.lines())
    [line] = [line for line in report.lines() if "teacher tokens" in line]
    assert line == (
        "  teacher tokens min 34, median 34, 90 % 36, 99 % 36, max 36; problems left out: without an expert solution "
        "1, over 36 tokens 1"
    )


def test_by_default_no_prompt_is_too_long(load: Load, tokenizer) -> None:
    """The longest problem and the longest solution that fit, and every byte of the instruction a token."""
    row = {"problem": "x" * 24, "answer": "1", "solution": "y" * 39}  # with the template 30, with EOS 40
    [problem], report = load([row])
    assert len(problem.teacher_prompt_ids) == 30 + 39 + len(" Read:  Go.")
    config = make_config("x", {}, {})
    assert config.teacher_prompt_tokens == 30 + 40 + len(INSTRUCTION)
    assert config.longest_computed == config.teacher_prompt_tokens + 40 and config.longest_sequence == 70
    assert report.teacher_left_out == {}


def test_the_control_reads_another_problems_solution_every_time(load: Load, tokenizer) -> None:
    solutions = {"a": "one and one", "b": "2 and 2 are 4", "d": "four more than four"}
    once, again = ({p.id: tokenizer.decode(p.teacher_prompt_ids) for p in load(solution_of="other")[0]} for _ in "ab")
    assert once == again
    read = {name: next(s for s in solutions.values() if s in text) for name, text in once.items()}
    assert all(read[name] != solutions[name] for name in solutions)
    assert sorted(read.values()) == sorted(solutions.values())
    assert once["b"].startswith("Q: 2 + 2? Read: ")


@pytest.mark.parametrize("number", [2, 3, 10, 101])
def test_each_solution_goes_to_another_problem(number: int) -> None:
    given = of_other_problems([str(index) for index in range(number)])
    assert sorted(given, key=int) == [str(index) for index in range(number)]
    assert all(solution != str(index) for index, solution in enumerate(given))


def test_what_leaves_no_problem_is_an_error_that_says_why(load: Load) -> None:
    with pytest.raises(DataError, match=r"no problem is left for a teacher \(1 without .*, 3 over 20 tokens\); give"):
        load(max_prompt_tokens=20)
    with pytest.raises(DataError, match="no expert trace in 1 problem, but the algorithm learns from expert solutions"):
        load([ROWS[2]])
    with pytest.raises(DataError, match="solution_of: other, but only 1 problem has an expert solution"):
        load([ROWS[0]], solution_of="other")


def test_without_a_teacher_no_problem_has_a_prompt_for_one(load: Load, tokenizer, tmp_path) -> None:
    load()
    section = validate({"data": {"train": str(tmp_path / "made.jsonl"), "prompt_template": "{problem}"}}).data
    loaded = load_problems(section, tokenizer, max_response_tokens=40)
    assert not any(problem.teacher_prompt_ids for problem in loaded.problems)
    assert not any("teacher tokens" in line for line in loaded.report.lines())
