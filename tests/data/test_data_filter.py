"""data.filter: which rows are kept, how the others are counted, and what an error says."""

import json

import pytest
from byte_model import byte_tokenizer

from trapo_lite.config import load_config, validate
from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.data.loading import load_problems

ROWS = [
    {"problem": "1?", "answer": "1", "rate": 0.0, "level": 1, "domain": ["algebra"], "meta": {"solved": "0/8"}},
    {"problem": "2?", "answer": "2", "rate": 0.1, "level": 3, "domain": ["numbers"], "meta": {"solved": "1/8"}},
    {"problem": "3?", "answer": "3", "rate": 0.5, "level": "4", "domain": [], "meta": {"solved": "4/8"}},
    {"problem": "4?", "answer": "4", "rate": 0.9, "level": 5.0, "domain": ["algebra", "numbers"], "meta": None},
    {"problem": "5?", "answer": "5", "rate": 1.0, "level": None, "domain": "algebra", "meta": {"solved": "8/8"}},
]


@pytest.fixture
def load(tmp_path):
    """load(filter, rows=..., files=..., **data): the answers that are left, and the report."""

    def load(filter, *, rows=ROWS, files=None, **data):
        file = tmp_path / "made.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        raw = {"train": str(file), "prompt_template": "{problem}", "filter": filter}
        section = validate({"data": raw | data}).data
        loaded = load_problems(section, byte_tokenizer(), max_response_tokens=64, files=files)
        return [problem.answer for problem in loaded.problems], loaded.report

    return load


@pytest.mark.parametrize(
    ("filter", "kept"),
    [
        ({}, "12345"),
        ({"rate": [0.1, 0.9]}, "234"),
        ({"rate": [0.5, None]}, "345"),
        ({"rate": [None, 0.1]}, "12"),
        ({"rate": 0.5}, "3"),
        ({"level": [3, 4, 5]}, "234"),
        ({"level": ["3", "5"]}, "24"),
        ({"level": [3, 5]}, "234"),
        ({"domain": "algebra"}, "145"),
        ({"domain": ["numbers", "geometry"]}, "24"),
        ({"meta.solved": [0.1, 0.9]}, "23"),
        ({"meta.solved": "8/8"}, "5"),
        ({"rate": [0.1, 1], "level": [4, 5]}, "34"),
    ],
)
def test_what_is_kept(load, filter, kept):
    answers, report = load(filter)
    assert "".join(answers) == kept
    assert (report.num_rows, sum(report.rows_filtered.values())) == (5, 5 - len(kept))


def test_rows_are_counted_by_the_first_column_that_leaves_them_out(load):
    _, report = load({"rate": [0.1, 1], "level": [4, 5]})
    assert report.rows_filtered == {"rate": 1, "level": 2}
    assert "  rows filtered  rate 1, level 2 (data.filter)" in report.lines()


def test_a_truth_value_is_one(load):
    rows = [{"problem": "1?", "answer": "1", "ok": ok} for ok in (True, False, "true", 1, None)]
    assert load({"ok": True}, rows=rows)[1].num_problems == 2
    assert load({"ok": [1]}, rows=rows)[1].num_problems == 1


def test_a_row_that_is_left_out_need_not_be_good(load):
    rows = [*ROWS, {"problem": "a proof", "rate": 1.0}]
    assert load({"rate": [0.1, 0.9]}, rows=rows)[0] == ["2", "3", "4"]


def test_a_filter_that_leaves_nothing_says_what_the_column_holds(load):
    with pytest.raises(DataError) as caught:
        load({"level": ["Level 4", "Level 5"]})
    assert "leave none of the 5 rows (level leaves out 5, the first with 1, 3, '4', 5.0, None)" in str(caught.value)
    with pytest.raises(DataError, match=r"rate leaves out 1, .* with 0\.0\); allow more .* 4 prompt over 1 tokens"):
        load({"rate": [0.1, 1]}, max_prompt_tokens=1, on_bad_row="skip")


def test_a_column_that_is_missing_or_no_number(load):
    with pytest.raises(DataError, match=r"data\.filter\.rte: there is no column 'rte'; the row has answer, domain,"):
        load({"rte": [0.1, 0.9]})
    rows = [{**ROWS[0], "level": "Level 3"}]
    with pytest.raises(DataError, match=r"level: found str 'Level 3', but \[3, 5\] is a range of numbers; list the"):
        load({"level": [3, 5]}, rows=rows)
    assert load({"level": ["Level 3", "Level 4"]}, rows=rows)[0] == ["1"]


def test_other_files_are_not_filtered(load, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"problem": "6?", "answer": "6"}))
    assert load({"rate": [0.1, 0.9]}, files=str(other))[0] == ["6"]


def test_a_filter_may_be_an_override():
    config = load_config([], ["data.filter={rate: [0.1, null], level: 5}"])
    assert config.data.filter == {"rate": [0.1, None], "level": [5]}


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ([3, 4], r"data\.filter: found \[3, 4\]; give columns with what to keep"),
        ({"level": []}, r"'level' keeps nothing"),
        ({"level": None}, r"'level' has None; give texts or numbers"),
        ({"level": [None, None]}, r"'level' has None"),
        ({"level": [[3]]}, r"'level' has \[3\]"),
        ({"level": {"min": 3}}, r"'level' has {'min': 3}; give texts or numbers, or the two ends of a range"),
        ({"rate": [0.9, 0.1]}, r"the range \[0\.9, 0\.1\] is empty; give the lower end first"),
        ({"rate": [float("nan"), 1]}, r"'rate' has nan"),
    ],
)
def test_filters_without_a_meaning(filter, message):
    with pytest.raises(ConfigError, match=message) as caught:
        validate({"data": {"filter": filter}})
    assert len(str(caught.value).splitlines()) == 1
