"""The start of a run shows what the functions give, and refuses those that cannot work."""

from dataclasses import replace

import pytest
from reward_sections import PROBLEM, section_of, write

from trapo_lite.config import RewardSection
from trapo_lite.core.errors import RewardError
from trapo_lite.reward import Scorer
from trapo_lite.reward.fingerprints import function_fingerprints
from trapo_lite.reward.start_check import start_lines


def lines_of(section: RewardSection, solution: str | None) -> list[str]:
    """Return the lines of the start; the solution's tokens are its characters."""
    expert_ids = () if solution is None else (tuple(map(ord, solution)),)
    with Scorer(section) as scorer:
        problems = [replace(PROBLEM, id="p0"), replace(PROBLEM, expert_ids=expert_ids)] if expert_ids else [PROBLEM]
        return start_lines(section, scorer, problems, lambda token_ids: "".join(map(chr, token_ids)))


def test_the_start_shows_what_solution_and_empty_response_score(write) -> None:
    mine = write("import json\ndef score(response): return 2.5 * len(json.loads(response))\n")
    lines = lines_of(section_of({"type": "regex", "pattern": r"\d+"}, mine("score")), "[42]")
    assert lines[0] == "reward regex: problem p1: 1 for its expert solution, 0 for an empty response"
    assert lines[1] == "reward score: problem p1: 2.5 for its expert solution, failed for an empty response"
    assert lines[2].startswith(
        "warning: reward score: fails on an empty response: json.decoder.JSONDecodeError: Expecting value"
    )
    assert "no advantage" in lines[2] and len(lines) == 3


def test_the_start_warns_of_a_solution_that_earns_nothing_and_refuses_a_function_that_always_fails(write) -> None:
    assert lines_of(section_of("math"), r"\boxed{41}")[1] == (
        "warning: reward math: gives the expert solution no more than an empty response"
    )
    assert len(lines_of(section_of("math"), None)) == 1
    mine = write("def score(response): raise ValueError(json)\n")
    with pytest.raises(RewardError, match=r"(?s)score fails on problem p1, with its expert solution and with an empty"):
        lines_of(section_of(mine("score")), "42")


def test_a_function_that_returns_none_for_both_is_warned_of(write) -> None:
    mine = write("def score(response): len(response)\n")
    lines = lines_of(section_of("math", mine("score")), r"\boxed{42}")
    assert lines[2].startswith("warning: reward score: returns None for both") and "`return` missing" in lines[2]
    assert len(lines) == 3


def test_the_refusal_names_where_the_problems_come_from(write) -> None:
    section = section_of(write("def score(response, row): return row['total']\n")("score"))
    problem = replace(PROBLEM, expert_ids=((65,),))
    with Scorer(section) as scorer, pytest.raises(RewardError, match=r"or name data that it can judge in eval\.data\."):
        start_lines(section, scorer, [problem], lambda token_ids: "A", option="eval.data")


def test_functions_of_one_file_name_are_told_apart_by_their_own_names(tmp_path) -> None:
    functions = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(f"def score(response): return '{folder}'\n")
        functions.append({"type": "function", "path": f"{tmp_path}/{folder}/own.py:score", "name": folder})
    before = function_fingerprints(section_of(*functions).own_functions)
    (tmp_path / "a" / "own.py").write_text("def score(response): return 1\n")
    after = function_fingerprints(section_of(*functions).own_functions)
    assert before.keys() == after.keys() == {"a", "b"} and before["a"] != after["a"] and before["b"] == after["b"]
