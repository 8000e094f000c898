"""Rows in, problems and a report out: what is kept, what is dropped and counted, what is an error."""

import json
from pathlib import Path

import pytest
import yaml
from byte_model import byte_tokenizer

from trapo_lite.config import DataSection
from trapo_lite.core.errors import DataError
from trapo_lite.core.types import Score, Verdict
from trapo_lite.data.loading import load_problems, require_experts

END = 257
ROWS = [
    {"id": "a", "problem": "1 + 1?", "answer": "2", "solutions": ["<think>one and one</think>\nIt is 2.", "2"]},
    {"id": "b", "problem": "2 + 2?", "answer": "4", "solutions": ["2 and 2 are 4"]},
    {"id": "c", "problem": "3 + 3?", "answer": "6"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def load(tokenizer, tmp_path):
    """load(rows, max_response_tokens=..., scorer=..., **data): rows (or the bytes of a file) written and loaded."""

    def load(rows, *, name="made.jsonl", max_response_tokens=64, scorer=None, **data):
        file = tmp_path / name
        text = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
        file.write_bytes(text)
        section = DataSection(**({"train": str(file), "prompt_template": "Q: {problem}"} | data))
        loaded = load_problems(section, tokenizer, max_response_tokens=max_response_tokens, scorer=scorer)
        return loaded.problems, loaded.report

    return load


def test_prompt_and_traces_are_tokenised_apart_and_traces_end_in_eos(load, tokenizer):
    problems, _ = load(ROWS)
    assert [problem.id for problem in problems] == ["a", "b", "c"]
    assert tokenizer.decode(problems[0].prompt_ids) == "Q: 1 + 1?"
    assert [tokenizer.decode(trace) for trace in problems[0].expert_ids] == [
        "one and one<|endoftext|>",
        "2<|endoftext|>",
    ]
    assert problems[2].expert_ids == ()


def test_full_expert_text_and_another_end_token(load, tokenizer):
    problems, _ = load(ROWS, expert_text="full", eos_token="<|im_end|>")
    expected = "<think>one and one</think>\nIt is 2.<|im_end|>"
    assert tokenizer.decode(problems[0].expert_ids[0]) == expected


def test_a_trace_with_an_end_of_its_own_is_cut_there(load):
    problems, _ = load([{"problem": "x", "answer": "2", "solution": "2<|endoftext|> and on"}])
    assert problems[0].expert_ids[0][1:] == (END,)


def test_a_trace_that_with_eos_exceeds_the_limit_is_dropped_and_counted(load):
    """ "2 and 2 are 4" is 13 bytes, 14 tokens with EOS; "one and one" 12; "2" 2."""
    problems, report = load(ROWS, max_response_tokens=14)
    assert [[len(trace) for trace in problem.expert_ids] for problem in problems] == [[12, 2], [14], []]
    assert report.traces_dropped == {}
    problems, report = load(ROWS, max_response_tokens=11)
    assert [[len(trace) for trace in problem.expert_ids] for problem in problems] == [[2], [], []]
    assert report.traces_dropped == {"over 11 tokens": 2}
    assert report.problems_by_traces == {0: 2, 1: 1}


def test_an_empty_thought_is_no_trace(load):
    problems, report = load([{"problem": "x", "answer": "2", "solution": "<think>\n</think>\n2"}])
    assert problems[0].expert_ids == ()
    assert report.traces_dropped == {"empty": 1}


def test_a_prompt_over_the_limit_is_an_error_or_skipped_and_counted(load):
    """ "Q: 1 + 1?" is 9 tokens."""
    rows = [*ROWS, {"id": "long", "problem": "10 + 10?", "answer": "20"}]
    with pytest.raises(DataError, match=r"line 4: problem: 11 tokens.*raise data.max_prompt_tokens.*on_bad_row: skip"):
        load(rows, max_prompt_tokens=9)
    problems, report = load(rows, max_prompt_tokens=9, on_bad_row="skip")
    assert [problem.id for problem in problems] == ["a", "b", "c"]
    assert report.rows_dropped == {"prompt over 9 tokens": 1}
    assert (report.num_rows, report.num_problems) == (4, 3)


def test_no_row_left_is_an_error_with_the_counts(load):
    with pytest.raises(DataError, match=r"none of the 3 rows is left \(3 prompt over 8 tokens\)"):
        load(ROWS, max_prompt_tokens=8, on_bad_row="skip")


def test_the_report_in_numbers_and_lines(load):
    _, report = load(ROWS)
    assert report.problems_by_traces == {0: 1, 1: 1, 2: 1}
    assert report.num_traces == 3
    assert report.trace_lengths == {"min": 2, "median": 12, "90 %": 14, "99 %": 14, "max": 14}
    assert report.lines()[0].endswith("made.jsonl: 3 problems of 3 rows")
    assert "  expert traces  3 (thought); problems: 1 with 0, 1 with 1, 1 with 2" in report.lines()


BOXES = [
    "<think>6 * 7</think> So \\boxed{42}.",  # the box stands behind the thought
    "<think>\\boxed{42}</think> So \\boxed{42}.",
    "<think>6 * 7</think> So 42.",
    "So \\boxed{42}.",
]


@pytest.mark.parametrize(("mode", "num_lost"), [("thought", 1), ("full", 0), ("opened", 0)])
def test_boxes_that_the_expert_text_cuts_off_are_counted_in_a_warning(load, mode, num_lost):
    rows = [{"problem": f"6 * 7, {index}?", "answer": "42", "solution": box} for index, box in enumerate(BOXES)]
    _, report = load(rows, expert_text=mode)
    warnings = [line.removeprefix("warning: ") for line in report.lines() if line.startswith("warning: ")]
    assert warnings == num_lost * [
        "data.expert_text: thought cuts off the boxed answer of 1 of 4 expert traces: set it to full, or to opened for "
        "a prompt that ends in <think>"
    ]


class EndsInGold:
    """Stands in for the verifier: right if the text ends in the gold answer."""

    def score(self, responses):
        found = [response.text.rstrip(".").endswith(response.problem.answer) for response in responses]
        return [Score(Verdict("correct" if is_right else "wrong"), float(is_right)) for is_right in found]


@pytest.mark.parametrize(("mode", "num_unverified"), [("thought", 1), ("full", 0)])
def test_the_share_of_traces_that_do_not_verify(load, mode, num_unverified):
    _, report = load(ROWS, expert_text=mode, scorer=EndsInGold())
    assert (report.num_graded, report.num_unverified) == (3, num_unverified)
    assert f"  expert traces that do not verify: {num_unverified} of 3 ({num_unverified / 3:.1%})" in report.lines()


def test_the_system_message_of_a_row_is_used_on_request(load, tokenizer):
    template = "<|im_start|>system\nBe kind.<|im_end|>\n{problem}"
    rows = [{"problem": "x", "answer": "1", "system": "Be brief."}, {"problem": "y", "answer": "1"}]
    problems, _ = load(rows, prompt_template=template, system="row")
    assert [tokenizer.decode(problem.prompt_ids) for problem in problems] == [
        "<|im_start|>system\nBe brief.<|im_end|>\nx",
        "<|im_start|>system\nBe kind.<|im_end|>\ny",
    ]
    problems, _ = load(rows, prompt_template=template)
    assert tokenizer.decode(problems[0].prompt_ids) == "<|im_start|>system\nBe kind.<|im_end|>\nx"


BAD_ROWS = [ROWS[0], {"problem": "no answer"}, {"answer": "1"}, {**ROWS[1], "id": "a"}, ROWS[2]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            BAD_ROWS[1],
            "made.jsonl line 2: answer: found none of the columns reward_model.ground_truth, answer, final_answer, "
            'only problem; set "data.columns={answer: COLUMN}" with the column that holds it, or set data.on_bad_row: '
            "skip",
        ),
        (BAD_ROWS[2], "made.jsonl line 2: problem: found none"),
        (BAD_ROWS[3], "made.jsonl line 2: id: 'a' is already the id of"),
    ],
)
def test_a_bad_row_is_an_error_that_names_file_line_and_field(load, bad, message):
    with pytest.raises(DataError) as caught:
        load([ROWS[0], bad])
    assert message in str(caught.value)


def test_a_line_that_is_no_json_is_a_bad_row_too(load):
    rows = json.dumps(ROWS[0]).encode() + b'\n{"problem": \n'
    with pytest.raises(
        DataError, match=r"made.jsonl line 2: not JSON \(Expecting value at character 12\).*on_bad_row: skip"
    ):
        load(rows)
    assert load(rows + b"[1]\n", on_bad_row="skip")[1].rows_dropped == {"not a JSON object": 2}


def test_different_faults_have_a_line_each(load, tmp_path):
    rows = [{"answer": "1"}, {"problem": "1?"}, {"answer": "2"}, {"problem": 1, "answer": "2"}]
    with pytest.raises(DataError) as caught:
        load(rows)
    _, *named = str(caught.value).splitlines()
    assert [line.split("made.jsonl ")[1].split(": ")[0] for line in named] == ["line 1", "line 2", "line 4"]
    assert named[0].endswith("(the same in 1 more row)")


@pytest.mark.parametrize(
    ("row", "cure"),
    [
        ({"dialog": [{"role": "user", "content": "1?"}], "answer": "1"}, "{problem: dialog}"),
        ({"Problem": "1?", "answer": "1"}, "{problem: Problem}"),
        ({"problem": "1?", "anwser": "1"}, "{answer: anwser}"),
        ({"question_text": "1?", "goldLabel": 1}, "{problem: question_text, answer: goldLabel}"),
        (
            {"Question": "1?", "gold": "1", "reasoning": {"text": "a"}, "level": 3},
            "{problem: Question, answer: gold, solutions: reasoning.text}",
        ),
        ({"problem": "1?", "Gold solution": "a", "gold: x": 1}, "{answer: 'gold: x', solutions: Gold solution}"),
        ({"problem_id": "1", "answer": "1"}, "{problem: COLUMN}"),
        ({"text": "1?", "answer": "1"}, "{problem: COLUMN}"),
        ({"problem": "1?", "is_result": True}, "{answer: COLUMN}"),
    ],
)
def test_the_error_names_the_option_that_maps_the_rows_own_columns(load, row, cure):
    with pytest.raises(DataError) as caught:
        load([row])
    assert f'set "data.columns={cure}"' in str(caught.value)
    columns = yaml.safe_load(cure)
    if "COLUMN" not in columns.values():
        [problem], _ = load([row], columns=columns)
        assert problem.answer == "1"


def test_of_several_bad_rows_the_first_five_are_named_and_all_are_counted(load, tmp_path):
    """Lines 2 to 8 have no answer, 9 no problem; skipping them would leave line 1."""
    rows = [ROWS[0], *[{"problem": f"{n}?"} for n in range(7)], {"answer": "1"}]
    with pytest.raises(DataError) as caught:
        load(rows)
    first, *named = str(caught.value).splitlines()
    assert first == (
        "data: 8 of 9 rows read cannot be used (7 no gold answer, 1 no problem text); correct them, or set "
        "data.on_bad_row: skip"
    )
    assert named[0].startswith(f"  {tmp_path}/made.jsonl line 2: answer: found none of the columns")
    assert named[0].endswith("(the same in 4 more rows)") and named[1:] == ["  and 3 rows not listed here"]
    _, report = load(rows, on_bad_row="skip")
    listed = ", ".join(f"{tmp_path}/made.jsonl line {number}" for number in range(2, 7))
    assert f"  rows dropped   no gold answer 7, no problem text 1; first: {listed}" in report.lines()


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"max_prompt_tokens": 3}, {"require_expert": True}])
def test_skipping_is_not_advised_where_it_would_leave_nothing(load, num_rows, settings):
    row = {"problem": "long enough", "answer": "1"} if settings else {"gold": "1", "Question": "?"}
    with pytest.raises(DataError, match=r"made\.jsonl line 1: (answer|problem|solutions): ") as caught:
        load([row] * num_rows, **settings)
    assert "on_bad_row" not in str(caught.value)
    with pytest.raises(
        DataError, match=rf"none of the {num_rows} rows is left .*\n.*made\.jsonl line 1: \w+: (found|14)"
    ):
        load([row] * num_rows, on_bad_row="skip", **settings)


def test_prompts_and_traces_that_fail_are_counted_too(load):
    with pytest.raises(DataError, match=r"data: 2 of 3 rows read cannot be used \(2 prompt over 8 tokens\); .*skip\n"):
        load([{"problem": "1?", "answer": "2"}, *ROWS[1:]], max_prompt_tokens=8)
    rows = [{**row, "solutions": []} for row in ROWS[:2]]
    with pytest.raises(DataError, match=r"data: 2 of 3 rows read cannot be used \(2 no expert trace\); .*skip\n"):
        load([*rows, {**ROWS[2], "solution": "3 and 3"}], require_expert=True)


def test_two_files_of_one_name_have_ids_of_their_own(load, tmp_path):
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "train.jsonl")
        files[-1].write_text('{"problem": "p", "answer": "1"}\n')
    problems, _ = load([], train=[str(file) for file in files])
    assert [problem.id for problem in problems] == ["train-0-0", "train-1-0"]


def test_bad_rows_are_skipped_and_counted_on_request(load):
    problems, report = load(BAD_ROWS, on_bad_row="skip")
    assert [problem.id for problem in problems] == ["a", "c"]
    assert report.rows_dropped == {"no gold answer": 1, "no problem text": 1, "repeated id": 1}


def test_rows_without_a_usable_trace_where_one_is_required(load):
    with pytest.raises(
        DataError, match=r"line 3: solutions: found none; give a non-empty one of at most 64 .* target,"
    ):
        load(ROWS, require_expert=True)
    with pytest.raises(DataError, match="line 1: solutions: 2 in the row, none usable"):
        load(ROWS, require_expert=True, max_response_tokens=1)
    problems, report = load(ROWS, require_expert=True, on_bad_row="skip")
    assert [problem.id for problem in problems] == ["a", "b"]
    assert report.rows_dropped == {"no expert trace": 1}


def test_a_guiding_schedule_needs_at_least_one_trace(load):
    require_experts(load(ROWS)[1])
    with pytest.raises(
        DataError, match=r"no expert trace in 3 problems \(3 over 1 tokens\).*; raise rollout\.max_response_tokens, or"
    ):
        require_experts(load(ROWS, max_response_tokens=1)[1])
    bare = [{"problem": row["problem"], "answer": row["answer"]} for row in ROWS]
    with pytest.raises(
        DataError, match=r"no expert trace in 3 problems, but .* columns .*hint, .*, or name its column"
    ):
        require_experts(load(bare)[1])


def test_the_fingerprint_sees_any_change_that_matters(load):
    changed = [
        ROWS,
        ROWS[::-1],
        [{**ROWS[0], "id": "z"}, *ROWS[1:]],
        [{**ROWS[0], "answer": "3"}, *ROWS[1:]],
        [{**ROWS[0], "problem": "1 + 2?"}, *ROWS[1:]],
        [{**ROWS[0], "solutions": ROWS[0]["solutions"][:1]}, *ROWS[1:]],
    ]
    prints = [load(rows)[1].fingerprint for rows in changed]
    assert len(set(prints)) == len(changed)
    assert load([{**row, "note": "new"} for row in ROWS])[1].fingerprint == prints[0]


def test_indexes_that_repeat_give_way_to_row_numbers(load):
    rows = [{"prompt": "x", "answer": "1", "data_source": "s", "extra_info": {"index": i}} for i in (3, 8, 8, -1)]
    assert [problem.id for problem in load(rows)[0]] == ["s-3", "made-1", "made-2", "made-3"]


def test_several_files_are_one_data_set_and_files_overrides_train(tokenizer, tmp_path):
    for name, rows in (("one.jsonl", ROWS[:1]), ("two.jsonl", ROWS[1:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    loaded = load_problems(DataSection(train="absent.jsonl"), tokenizer, max_response_tokens=64, files=files)
    assert [problem.id for problem in loaded.problems] == [example.id for example in loaded.examples] == ["a", "b", "c"]
    assert loaded.report.files == tuple(files)


@pytest.mark.parametrize(("content", "name"), [(b"\n\n", "made.jsonl"), (b"[]", "made.json")])
def test_a_file_without_rows(load, content, name):
    with pytest.raises(DataError, match="holds no rows; give a file or split that does"):
        load(content, name=name)


SHARED = Path(__file__).parents[3] / "shared" / "data" / "train"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the sample of real rows is not on this machine")
@pytest.mark.parametrize(
    ("name", "num_rows", "num_traces", "first_id"),
    [
        ("gsm8k_train512_openr1_schema", 512, 1, "openai/gsm8k-train-0"),
        ("gsm8k_train64_trapo_answer_list_schema", 64, 2, "gsm8k-train-0"),
        ("countdown512_uft_hints", 512, 1, "countdown-0"),
    ],
)
def test_real_rows(tokenizer, name, num_rows, num_traces, first_id):
    section = DataSection(train=str(SHARED / f"{name}.parquet"), require_expert=True)
    loaded = load_problems(section, tokenizer, max_response_tokens=2048)
    problems, report = loaded.problems, loaded.report
    assert len(problems) == num_rows == len({problem.id for problem in problems})
    assert problems[0].id == first_id
    assert report.problems_by_traces == {num_traces: num_rows}
    assert report.rows_dropped == report.traces_dropped == {}
    for problem in problems:
        assert tokenizer.decode(problem.prompt_ids).startswith(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>"
        )
        for trace in problem.expert_ids:
            assert trace[-1] == END and END not in trace[:-1]
            assert "<think>" not in tokenizer.decode(trace)


def test_special_tokens_in_the_texts_of_rows_are_counted_and_the_first_row_is_named(load):
    rows = [
        {"problem": "1 + 1?", "answer": "2", "solution": "Add.<|endoftext|>\n"},  # nothing is lost
        {"problem": "2 + 1?", "answer": "3", "solution": "Add.<|endoftext|>\\boxed{3}"},
        {"problem": "3 + 1?", "answer": "4", "solution": "<|im_start|>Add."},
        {"problem": "<|im_end|> 4 + 1?", "answer": "5", "solution": "Add."},
        {"problem": "5 + <|im_start|> 1?", "answer": "6", "solution": "Add.<|endoftext|>It is 6."},
    ]
    warnings = [line for line in load(rows)[1].lines() if "warning: " in line]
    assert ["'<|endoftext|>'" in warnings[0], *("special tokens" in line for line in warnings[1:])] == [True] * 3
    assert [line.partition(" holds ")[0].split()[-2:] for line in warnings] == [
        ["expert", "solutions"],
        ["expert", "solutions"],
        ["of", "problems"],
    ]
    assert [(line.rpartition("(")[2][0], line.split()[-1]) for line in warnings] == [
        ("2", "2)"),
        ("1", "3)"),
        ("2", "4)"),
    ]
    assert not any("warning: " in line for line in load(ROWS)[1].lines())
