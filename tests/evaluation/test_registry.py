"""The registry of benchmarks, and rows of each form that the sets come in."""

import json
from pathlib import Path

import pytest
from conftest import OFFICIAL_FILES

from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.data.bad_row import BadRow
from trapo_lite.evaluation import REGISTRY
from trapo_lite.evaluation.multiple_choice import OptionColumns, choice_problem
from trapo_lite.evaluation.registry import Benchmark, Columns, choose, load_registry, read_benchmark

NUM_PROBLEMS = {
    "aime24": 30,
    "aime25": 30,
    "amc": 83,
    "math500": 500,
    "minerva": 272,
    "olympiad": 675,
    "gsm8k": 1319,
    "arc": 1172,
}


def lines(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def made(file: Path, **options) -> Benchmark:
    return Benchmark(title="Made", source=str(file), **options)


@pytest.mark.parametrize(("name", "file"), OFFICIAL_FILES.items())
def test_the_official_files_hold_the_sets(shared_benchmarks: Path, name: str, file: str) -> None:
    """Each problem once, though some stand in them 32 times."""
    registry = load_registry(REGISTRY)
    benchmark = choose(registry, [f"{name}={shared_benchmarks / file}"])[name]
    pairs, num_of_whole = read_benchmark(name, benchmark, allow_part=name == "mmlu_pro")
    assert num_of_whole == (12032 if name == "mmlu_pro" else None)
    assert len(pairs) == {**NUM_PROBLEMS, "mmlu_pro": 140}[name] and len(set(pairs)) == len(pairs)
    if benchmark.options is not None:
        assert all(len(gold) == 1 and f"{gold}) " in problem and "\\boxed{}" in problem for problem, gold in pairs)


def test_repeated_rows_are_one_problem_and_a_part_is_refused(tmp_path: Path) -> None:
    rows = [{"problem": f"{n} + 1?", "answer": str(n + 1)} for n in (1, 2, 1, 2)]
    file = lines(tmp_path / "made.jsonl", rows)
    assert read_benchmark("made", made(file, num_problems=2)) == ([("1 + 1?", "2"), ("2 + 1?", "3")], None)
    with pytest.raises(DataError, match=r"holds 2 different problems, Made has 5 or 6; give the whole set"):
        read_benchmark("made", made(file, num_problems=[5, 6]))
    pairs, num_of_whole = read_benchmark("made", made(file, num_problems=[5, 6]), allow_part=True)
    assert (len(pairs), num_of_whole) == (2, 5)
    for allow_part in (False, True):  # a set that repeats itself, whole
        assert read_benchmark("made", made(file, num_problems=4), allow_part=allow_part) == (pairs, None)
    with pytest.raises(DataError, match=r"Made has 1; give the whole set$"):
        read_benchmark("made", made(file, num_problems=1), allow_part=True)


def test_the_template_stands_around_the_problem(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "made.jsonl", [{"question": " {x}? ", "final_answer": ["1", "2"], "is_multiple_answer": True}]
    )
    assert read_benchmark("made", made(file, num_problems=1, template="Q: {problem}!"))[0] == [("Q: {x}?!", "1, 2")]


def test_columns_of_any_name_can_be_named(tmp_path: Path) -> None:
    file = lines(tmp_path / "made.jsonl", [{"aufgabe": {"text": "1 + 1?"}, "loesung": 2}])
    columns = Columns(problem="aufgabe.text", answer="loesung")
    assert read_benchmark("made", made(file, num_problems=1, columns=columns))[0] == [("1 + 1?", "2")]
    official = {"prompt": [{"role": "user", "content": "2 + 1?"}], "reward_model": {"ground_truth": "3"}}
    file = lines(tmp_path / "official.jsonl", [official])
    assert read_benchmark("made", made(file, num_problems=1, columns=columns))[0] == [("2 + 1?", "3")]
    file = lines(tmp_path / "made.jsonl", [{"aufgabe": {"text": "1 + 1?"}, "loesung": 2}])
    with pytest.raises(DataError, match="line 1: lsg: found aufgabe, loesung; name another"):
        read_benchmark("made", made(file, num_problems=1, columns=Columns(problem="aufgabe.text", answer="lsg")))


def test_a_file_that_is_no_registry_is_not_printed_whole(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("\n".join(f"section{n}: {{key: {n}}}" for n in range(20)))
    with pytest.raises(ConfigError, match=r"and 75 more; is it a registry\?") as error:
        load_registry(tmp_path / "own.yaml")
    assert str(error.value).count("\n") == 5


def test_options_with_labels_of_their_own_get_letters() -> None:
    """ARC's rows: 22 of them are labelled 1 to 4."""
    columns = OptionColumns(question="question", texts="choices.text", labels="choices.label", answer="answerKey")
    row = {"question": "Which?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    assert choice_problem(row, columns) == ("Which?\n\nA) x\nB) y\nC) z", "C")
    with pytest.raises(BadRow, match="answerKey: found '4'; give a label"):
        choice_problem(row | {"answerKey": "4"}, columns)
    with pytest.raises(BadRow, match=r"choices\.text"):
        choice_problem({"question": "Which?", "answerKey": "A"}, columns)


def test_the_right_option_of_separate_columns_lands_anywhere() -> None:
    """GPQA's rows: always in the first place, a model would be right that always says A."""
    columns = OptionColumns(question="q", correct="right", incorrect=("w1", "w2", "w3"))
    golds = []
    for number in range(80):
        row = {"q": f"number {number}?", "right": "yes", "w1": "no", "w2": "never", "w3": "not"}
        problem, gold = choice_problem(row, columns)
        assert f"{gold}) yes" in problem and (problem, gold) == choice_problem(row, columns)
        golds.append(gold)
    assert all(8 <= golds.count(letter) <= 36 for letter in "ABCD")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["math501"], "found 'math501'; did you mean math500?"),
        (["imo"], "known are aime24"),
        (["aime24,amc"], "separate names by blanks: aime24 amc"),
        (["AIME24"], "did you mean aime24?"),
        (["data/imo.parquet"], "write NAME=FILE without blanks, where NAME is one of aime24"),
        (["amc23", "="], "write NAME=FILE without blanks"),
        (["amc", "amc"], "amc is named twice"),
        (["amc="], "names no file"),
    ],
)
def test_names_that_are_not_known(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        choose(load_registry(REGISTRY), names, option="--decontaminate")
    assert message in str(error.value) and str(error.value).startswith("--decontaminate: ")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"--benchmarks amc: nowhere\.parquet: no such file"):
        choose(load_registry(REGISTRY), ["amc=nowhere.parquet"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("made: {title: Made, source: a/b}", "made.num_problems"),
        ("made: {title: Made, source: a/b, num_problems: 3, kk: 1}", "made.kk"),
        ("made: {title: M, source: a/b, num_problems: 3, template: no slot}", "exactly once"),
        ("made: {title: M, source: a/b, num_problems: 3, options: {question: q}}", "give texts and answer"),
        (
            "made: {title: M, source: a/b, num_problems: 3, columns: {problem: p, answer: a}, "
            "options: {question: q, texts: t, answer: a}}",
            "give columns, or for multiple choice options; not both",
        ),
        ("../made: {title: M, source: a/b, num_problems: 3}", "found the name '../made'"),
        ("", "holds no benchmarks"),
        ("made: [", "not valid YAML"),
    ],
)
def test_a_registry_with_a_mistake(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_registry(tmp_path / "own.yaml")
    assert message in str(error.value) and "own.yaml" in str(error.value)
