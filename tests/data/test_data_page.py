"""The complete example of docs/data.md is run as it stands there."""

import re
from pathlib import Path

from byte_model import byte_tokenizer

from trapo_lite.config import load_config
from trapo_lite.data.forms import ANSWER_COLUMNS, INSTRUCTION, PROBLEM_COLUMNS, SOLUTION_NAMES
from trapo_lite.data.loading import load_problems

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    [text] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


def test_the_complete_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(block("json"))
    Path("mine.yaml").write_text(block("yaml"))
    loaded = load_problems(load_config(["mine.yaml"]).data, byte_tokenizer(), max_response_tokens=64)
    [problem] = loaded.problems
    assert (problem.answer, len(problem.expert_ids)) == ("5", 1)
    for line in block("text").splitlines():
        assert line in loaded.report.lines()


def test_the_table_names_the_columns_in_the_order_in_which_they_are_tried():
    table = dict(re.findall(r"^\| (problem|answer|expert solutions) .*?\| (.*) \|$", PAGE, re.MULTILINE))
    listed = {what: re.findall(r"`([\w.]+)`", names) for what, names in table.items()}
    assert listed["problem"] == [*PROBLEM_COLUMNS, *INSTRUCTION.problem]
    assert listed["answer"] == list(ANSWER_COLUMNS)
    assert [name for name in listed["expert solutions"] if name in SOLUTION_NAMES] == [
        name for name in SOLUTION_NAMES if name != "r1_solution_2"
    ]
