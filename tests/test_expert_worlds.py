"""The worlds of experts hold what their names say; the sums are worked out again from the texts."""

import re
from pathlib import Path

import pytest
from expert_worlds import SOLVERS, WORDS, held_out_sets, training_rows

from trapo_lite.config import load_config
from trapo_lite.data.loading import load_problems
from trapo_lite.data.tokens import load_tokenizer
from trapo_lite.tiny_world.problems import jsonl

BASE = Path("trapo_lite/tiny_world/base")
STEP = re.compile(r"([+-]) (\d+)")


def value_of(text: str) -> int:
    """The value of a sum written with letters, read from left to right."""
    start = re.search(r"\d+", text)
    assert start is not None
    return int(start[0]) + sum(int(f"{sign}{size}") for sign, size in STEP.findall(text[start.end() :]))


def boxed(solution: str) -> int:
    [answer] = re.findall(r"\\boxed\{(-?\d+)\}$", solution)
    return int(answer)


def first_wrong_step(solution: str) -> int | None:
    """The number of the first paragraph whose total is not what the one before and its terms give."""
    start, *steps, _ = solution.split("\n\n")
    total = int(start.removeprefix("Start carefully at "))
    for number, step in enumerate(steps):
        terms, shown = re.split(r" makes |, now ", step)
        if total + sum(int(f"{sign}{size}") for sign, size in STEP.findall(terms)) != int(shown):
            return number
        total = int(shown)
    return None


def rows_of(world: str, num_rows: int = 400) -> list[dict]:
    return [row for row, _ in zip(training_rows(world, seed=0), range(num_rows), strict=False)]


@pytest.mark.parametrize("world", sorted(SOLVERS))
def test_rows_are_the_same_problems_with_their_right_answers_in_every_world(world: str) -> None:
    rows = rows_of(world)
    assert rows == rows_of(world)
    assert all(int(str(row["answer"])) == value_of(row["problem"]) for row in rows)
    if not world.startswith("few_"):
        assert [row["problem"] for row in rows] == [row["problem"] for row in rows_of("perfect")]


@pytest.mark.parametrize("world", ["perfect", "leaps_2", "leaps_3", "leaps_4", "wordy", "few_16"])
def test_right_experts_are_right_in_every_step(world: str) -> None:
    for row in rows_of(world):
        for solution in row["solutions"]:
            assert first_wrong_step(solution) is None and boxed(solution) == int(row["answer"])


@pytest.mark.parametrize("num_steps", [2, 3, 4])
def test_leaps_show_every_nth_total(num_steps: int) -> None:
    for row in rows_of(f"leaps_{num_steps}"):
        terms = len(STEP.findall(row["problem"]))
        for solution in row["solutions"]:
            assert len(solution.split("\n\n")) - 2 == -(-terms // num_steps)


def test_a_wordy_step_has_two_words_more() -> None:
    for wordy, plain in zip(rows_of("wordy"), rows_of("perfect"), strict=True):
        for long, short in zip(wordy["solutions"], plain["solutions"], strict=True):
            words = re.findall("|".join(WORDS), long)
            assert len(words) == 2 * (len(short.split("\n\n")) - 2)
            assert re.sub("|".join(WORDS), "", long) == short


@pytest.mark.parametrize("percent", [10, 30, 50])
def test_wrong_experts_are_wrong_in_one_step_as_often_as_their_name_says(percent: int) -> None:
    rows = rows_of(f"wrong_{percent}", 1800)
    wrong = [row for row in rows if boxed(row["solutions"][0]) != int(row["answer"])]
    assert len(wrong) / len(rows) == pytest.approx(percent / 100, abs=0.035)  # three standard deviations of 50 %
    for row in rows:
        are_wrong = [first_wrong_step(solution) is not None for solution in row["solutions"]]
        assert are_wrong == [row in wrong] * 2


def test_a_foreign_step_is_the_sum_behind_its_total() -> None:
    for row in rows_of("foreign"):
        *steps, end = row["solutions"][1].split("\n\n")
        for step in steps:
            total, terms = step.split(" = ")
            assert value_of(terms) == int(total)
        assert end == f"Finally \\boxed{{{row['answer']}}}"


def test_few_and_absent_experts() -> None:
    for number in (16, 64, 256):
        rows = rows_of(f"few_{number}", 1800)
        assert len(rows) == number and {row["kind"] for row in rows} == {"hard"}
    assert {(row["kind"], "solutions" in row) for row in rows_of("absent")} == {("hard", False), ("easy", True)}


@pytest.mark.parametrize("seed", [0, 1])
def test_test_sets_are_apart_from_the_training_set(seed: int) -> None:
    sets = held_out_sets(seed=seed)
    num_terms = {name: {len(problem.terms) for problem in chosen} for name, chosen in sets.items()}
    assert num_terms == {"dev": {6, 7, 8}, "hard": {6, 7, 8}, "longer": {9}, "easy": {2, 3, 4}}
    sums = [{re.sub(r"^\D+", "", row["problem"]).rstrip("?.") for row in training_rows("perfect", seed=seed)}]
    sums += [{re.sub(r"^\D+", "", problem.text).rstrip("?.") for problem in chosen} for chosen in sets.values()]
    assert sum(map(len, sums)) == len(set.union(*sums)) == 1800 + 4 * 200


@pytest.mark.parametrize("world", sorted(SOLVERS))
def test_a_run_reads_every_row_and_no_solution_is_too_long(world: str, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(jsonl(rows_of(world, 200)))
    config = load_config(["tiny_cpu.yaml"], [f"data.train={file}"])
    limit = config.rollout.max_response_tokens
    loaded = load_problems(config.data, load_tokenizer(str(BASE)), max_response_tokens=limit, rewards=config.reward)
    assert len(loaded.problems) == len(rows_of(world, 200)) and not loaded.report.traces_dropped
    have_experts = [bool(problem.expert_ids) for problem in loaded.problems]
    assert have_experts == ["solutions" in row for row in rows_of(world, 200)]
