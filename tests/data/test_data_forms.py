"""Rows in the forms of public data sets, written by hand, and data.columns: what is read from them, what is refused."""

import json
import os
from pathlib import Path

import pytest
from byte_model import byte_tokenizer

from trapo_lite.config import DataSection, validate
from trapo_lite.config.data import DataColumns
from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.loading import load_problems
from trapo_lite.data.rows import Example, read_example
from trapo_lite.data.sources import Row


def read(columns: dict[str, object] | None = None, *, takes_box: bool = False, **fields: object) -> Example:
    named = None if columns is None else DataColumns(**columns)  # type: ignore[arg-type]
    return read_example(Row("made.jsonl line 3", "made-2", fields), named, takes_box=takes_box)


def said(*texts: str, roles: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    """Return a conversation with `from` and `value`, in turns."""
    return [{"from": roles[place % 2], "value": text} for place, text in enumerate(texts)]


def test_deepmath_row_has_three_solutions():
    row = {f"r1_solution_{n}": f"<think>\nway {n}\n</think>\n\\boxed{{6}}" for n in (1, 2, 3)}
    example = read(question="2 + 4?", final_answer="6", difficulty=1.0, **row)
    assert (example.problem, example.answer) == ("2 + 4?", "6")
    assert example.solutions == (row["r1_solution_1"], row["r1_solution_2"], row["r1_solution_3"])
    assert read(question="2 + 4?", final_answer="6", **row | {"r1_solution_2": ""}).solutions[1] == row["r1_solution_3"]


@pytest.mark.parametrize(("index", "name"), [("d-17", "d-17"), (17, "dapo-17"), (" ", "made-2"), (None, "made-2")])
def test_dapo_row_has_the_id_of_its_index_although_it_is_text(index, name):
    prompt = [{"role": "user", "content": "2 + 4?"}]
    extra_info = {"index": index}
    example = read(data_source="dapo", prompt=prompt, reward_model={"ground_truth": "6"}, extra_info=extra_info)
    assert (example.id, example.id_is_given, example.solutions) == (name, False, ())


def test_open_reasoner_zero_row_is_a_list_of_turns(tmp_path):
    turns = [{"from": "human", "value": "2 + 4?"}, {"from": "assistant", "ground_truth": {"value": "6"}}]
    example = read(conversations=turns)
    assert (example.problem, example.answer, example.solutions) == ("2 + 4?", "6", ())
    file = tmp_path / "orz.json"
    file.write_text(json.dumps([turns, turns]))
    section = DataSection(train=str(file), prompt_template="{problem}")
    problems = load_problems(section, byte_tokenizer(), max_response_tokens=64).problems
    assert [problem.answer for problem in problems] == ["6", "6"]


def test_s1k_row_has_its_answer_in_solution():
    thoughts = ["Two and four.", "Four and two.", "not written out"]
    example = read(question="2 + 4?", solution="6", thinking_trajectories=thoughts, attempt=["It is 6.", "So 6."])
    assert example.answer == "6"
    assert example.solutions == (
        "<think>\nTwo and four.\n</think>\n\nIt is 6.",
        "<think>\nFour and two.\n</think>\n\nSo 6.",
    )
    one = {"deepseek_thinking_trajectory": thoughts[0], "deepseek_attempt": "It is 6."}
    assert read(question="2 + 4?", solution="6", **one).solutions == example.solutions[:1]


def test_thoughts_beside_an_answer_column_are_another_form():
    example = read(question="2 + 4?", answer="6", solution="Add.", thinking_trajectories=["t"], attempt="a")
    assert (example.answer, example.solutions) == ("6", ("Add.",))


def test_math_instruct_row_has_no_answer_of_its_own():
    row = {"source": "made", "instruction": "2 + 4?", "output": "2 + 4 is 6. The answer is 6"}
    with pytest.raises(BadRow, match=r'answer: found none of the columns .*set "data.columns={answer: COLUMN}"'):
        read(**row)
    example = read({"answer": "gold"}, **row, gold=6)
    assert (example.problem, example.answer, example.solutions) == ("2 + 4?", "6", (row["output"],))


def test_an_instruction_with_input_would_lose_a_part():
    with pytest.raises(BadRow, match=r"input: found '2 \+ 4' besides; write both into one text, or name the column"):
        read(instruction="Compute.", input="2 + 4", answer="6")
    assert read(instruction="2 + 4?", input="", answer="6").problem == "2 + 4?"
    assert read({"problem": "instruction"}, instruction="2 + 4?", input="unused", answer="6").problem == "2 + 4?"


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation", "prompt"])
@pytest.mark.parametrize(
    "turns",
    [
        said("2 + 4?", "It is 6."),
        said("2 + 4?", "It is 6.", roles=("user", "assistant")),
        [{"role": "user", "content": "2 + 4?"}, {"role": "assistant", "content": "It is 6."}],
    ],
    ids=["human-gpt", "user-assistant", "role-content"],
)
def test_conversations_of_both_kinds(column, turns):
    example = read(**{column: turns}, answer="6")
    assert (example.system, example.problem, example.solutions) == (None, "2 + 4?", ("It is 6.",))
    example = read(**{column: [{"from": "system", "value": "Be brief."}, *turns]}, answer="6", system="unused")
    assert (example.system, example.problem, example.solutions) == ("Be brief.", "2 + 4?", ("It is 6.",))


def test_open_thoughts_row_gets_the_tags_of_the_other_sets():
    reply = "<|begin_of_thought|>\n\nTwo, four.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n6\n<|end_of_solution|>"
    example = read(system="Think.", conversations=said("2 + 4?", reply), answer="6")
    assert (example.system, example.solutions) == ("Think.", ("<think>\nTwo, four.\n</think>\n\n6",))


def test_a_problem_beside_the_messages_is_the_problem():
    """NuminaMath-CoT and OpenR1-Math-220k say everything twice."""
    messages = said("2 + 4?", "other text")
    example = read(problem="2 + 4?", answer="6", solution="Add.", messages=messages)
    assert (example.problem, example.solutions) == ("2 + 4?", ("Add.",))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (said("2 + 4?", "6", "And 3 + 3?"), "found messages of human, gpt, human; give one question"),
        (said("2 + 4?", "6", "And 3 + 3?", "6"), "found messages of human, gpt, human, gpt; give one question"),
        ([{"from": "human"}], "found dict .*; give messages with role and content, or with from and value"),
        (said("", "6"), "conversations: found "),
    ],
)
def test_conversations_that_are_refused(turns, message):
    with pytest.raises(BadRow, match=f"conversations: {message}|{message}"):
        read(conversations=turns, answer="6")


def test_a_conversation_without_an_answer():
    with pytest.raises(BadRow, match="answer: found none of the columns"):
        read(messages=said("2 + 4?"))


OWN = {"Question": "2 + 4?", "gold": {"values": ["6", "six"]}, "ways": [{"text": "Add."}, None], "key": 5, "more": "+"}
MAPPED = {"problem": "Question", "answer": "gold.values.0", "solutions": ["ways.0.text", "ways.7.text", "more"]}


def test_columns_are_read_by_dotted_paths():
    example = read(MAPPED | {"id": "key"}, **OWN)
    assert (example.problem, example.answer, example.solutions) == ("2 + 4?", "6", ("Add.", "+"))
    assert (example.id, example.id_is_given) == ("5", True)


def test_columns_win_over_the_known_names_and_leave_the_others():
    row = {"problem": "no", "answer": "0", "solution": "no", "id": "no", "uuid": "u-1"}
    example = read(MAPPED, **row, **OWN)
    assert (example.problem, example.answer, example.solutions) == ("2 + 4?", "6", ("Add.", "+"))
    assert read({"problem": "Question"}, **row, **OWN).answer == "0"
    assert read({"id": "uuid"}, **row).id == "u-1"


def test_a_column_whose_name_has_a_dot():
    assert read({"answer": "gold.text"}, **{"problem": "2 + 4?", "gold.text": "6"}).answer == "6"


def test_a_mapped_column_is_read_like_a_known_one():
    """Messages as the problem; GSM8K's answer; generations with their flags."""
    example = read({"problem": "chat"}, chat=said("2 + 4?", "It is 6."), answer="6")
    assert (example.problem, example.solutions) == ("2 + 4?", ("It is 6.",))
    example = read({"problem": "q", "answer": "a"}, q="2 + 4?", a="Add: <<2+4=6>>6.\n#### 6")
    assert (example.answer, example.solutions) == ("6", ("Add: 6.\n\nThe answer is \\boxed{6}.",))
    flagged = {"generations": ["right", "wrong"], "correctness_math_verify": [True, False]}
    assert read({"solutions": "generations"}, problem="x", answer="6", **flagged).solutions == ("right",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            MAPPED | {"problem": "question"},
            "data.columns.problem: there is no column 'question'; the row has Question, gold.values, key, more, ways; "
            "did you mean 'Question'?",
        ),
        (MAPPED | {"answer": "gold.value"}, "data.columns.answer: there is no column 'gold.value'; the row has"),
        (MAPPED | {"solutions": ["more", "less"]}, "data.columns.solutions: there is no column 'less'; the row has"),
        (
            MAPPED | {"answer": "none"},
            "data.columns.answer: there is no column 'none'; the row has Question, gold.values, key, more, ways; name "
            "one of these; data.columns is about all sources",
        ),
        (MAPPED | {"id": "key.x"}, "data.columns.id: there is no column 'key.x'; the row has"),
        (MAPPED | {"answer": "gold.values"}, "gold.values: found several"),
        (MAPPED | {"problem": "key"}, "key: found int 5; give text"),
    ],
)
def test_columns_that_are_not_there_or_hold_something_else(columns, message):
    with pytest.raises(BadRow) as caught:
        read(columns, **OWN)
    assert str(caught.value).startswith(message)


def test_a_row_may_have_null_in_a_named_column():
    assert read(MAPPED, **OWN | {"ways": None, "more": None}).solutions == ()
    with pytest.raises(BadRow, match="Question: found none; give the problem"):
        read(MAPPED, **OWN | {"Question": None})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"problm": "x"}, "data.columns.problm: unknown key; did you mean 'problem'?"),
        ({"problem": ""}, "data.columns.problem: "),
        ({"solutions": []}, "data.columns.solutions: "),
        ({"problem": ["a"]}, "data.columns.problem: "),
        ("Question", "data.columns: "),
    ],
)
def test_a_map_of_columns_that_is_none(columns, message):
    with pytest.raises(ConfigError) as caught:
        validate({"data": {"columns": columns}})
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_other_files_are_read_by_the_columns_only_if_they_have_them(tmp_path):
    """An evaluation set often has the known names, where the training set has own ones."""
    rows = {"train": OWN, "own": OWN, "known": {"problem": "3 + 3?", "answer": "6"}}
    files = {name: tmp_path / f"{name}.jsonl" for name in rows}
    for name, row in rows.items():
        files[name].write_text(json.dumps(row))
    data = DataSection(train=str(files["train"]), columns=DataColumns(**MAPPED), prompt_template="{problem}")
    for name in ("own", "known"):
        loaded = load_problems(data, byte_tokenizer(), max_response_tokens=64, files=str(files[name]))
        assert loaded.problems[0].answer == "6"
    data = data.model_copy(update={"train": str(files["known"])})
    with pytest.raises(DataError, match="there is no column 'Question'; the row has answer, problem"):
        load_problems(data, byte_tokenizer(), max_response_tokens=64)


SHARED = Path(os.environ.get("TRAPO_LITE_SHARED", Path(__file__).parents[3] / "shared"))
PROOF = "8 is 2 times 4."


def test_the_answer_is_taken_from_the_last_box_on_request():
    """NuminaMath-CoT, MATH, OpenThoughts and chats have no answer column."""
    solution = r"First \boxed{2}, then $\boxed{\frac{1}{2}}$."
    for row in ({"problem": "1/2?", "solution": solution}, {"messages": said("1/2?", solution)}):
        example = read(takes_box=True, **row)
        assert (example.answer, example.answer_is_boxed, example.solutions) == (r"\frac{1}{2}", True, (solution,))
        with pytest.raises(BadRow, match=r"answer: found none of the columns .*; set data.answer_from: box to take"):
            read(**row)


def test_a_box_in_the_thought_counts_only_if_there_is_none_behind_it():
    assert read(takes_box=True, problem="x", solution=r"<think>\boxed{1}</think>\boxed{2} so").answer == "2"
    assert read(takes_box=True, problem="x", solution=r"<think>\boxed{1}</think>Done.").answer == "1"


def test_an_answer_of_its_own_wins_over_the_box():
    example = read(takes_box=True, problem="x", answer="6", solution=r"\boxed{7}")
    assert (example.answer, example.answer_is_boxed) == ("6", False)
    assert read(takes_box=True, problem="x", answer=None, solution=r"\boxed{7}").answer == "7"
    assert read({"answer": "gold"}, takes_box=True, problem="x", gold="", solution=r"\boxed{7}").answer == "7"


def test_the_first_solution_with_a_box_gives_the_answer():
    assert read(takes_box=True, problem="x", solutions=[PROOF, r"\boxed{1}", r"\boxed{2}"]).answer == "1"


@pytest.mark.parametrize("solution", [PROOF, r"\boxed{", r"\boxed{ }"])
def test_a_solution_without_a_box_is_a_bad_row(solution):
    with pytest.raises(BadRow, match=r"solution: found no complete \\boxed{} in it; remove the row, or name") as caught:
        read(takes_box=True, problem="x", solution=solution)
    assert caught.value.reason == "no boxed answer"


def test_a_row_without_solution_is_told_what_is_looked_for():
    for takes_box in (False, True):
        with pytest.raises(BadRow, match=r'answer: found none of the columns .*; set "data.columns=') as caught:
            read(takes_box=takes_box, problem="x")
        assert "answer_from" not in str(caught.value)


def test_answers_from_boxes_are_counted(tmp_path):
    rows = [{"problem": "1?", "solution": r"\boxed{1}"}, {"problem": "2?", "answer": "2"}]
    rows += [{"problem": "3?", "solution": PROOF}]
    file = tmp_path / "made.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSection(train=str(file), prompt_template="{problem}", answer_from="box", on_bad_row="skip")
    report = load_problems(data, byte_tokenizer(), max_response_tokens=64).report
    assert (report.num_boxed_answers, report.rows_dropped) == (1, {"no boxed answer": 1})
    assert "  answers        1 from the last box of a solution" in report.lines()


USER_FILES = SHARED / "data" / "user_files"
OPTIONS = {
    "math_train.jsonl": {"answer_from": "box"},
    "messages.jsonl": {"answer_from": "box"},
    "numina_cot.jsonl": {"answer_from": "box", "on_bad_row": "skip"},  # row 2 is a proof
    "open_thoughts.jsonl": {"answer_from": "box"},
    "own_columns.jsonl": {"columns": {"problem": "Question", "answer": "gold", "solutions": "reasoning.text"}},
}
"""These are the options without which a file is an error that names them."""


@pytest.mark.skipif(not USER_FILES.is_dir(), reason="the samples of public data sets' forms are not on this machine")
@pytest.mark.parametrize(
    ("name", "answers", "num_solutions"),
    [
        ("acereason.jsonl", ["99"], 0),
        ("big_math.jsonl", ["42"], 0),
        ("dapo.jsonl", ["5"], 0),
        ("deepmath.jsonl", ["42"], 3),
        ("gsm8k.jsonl", ["10"], 1),
        ("limo.jsonl", ["9"], 1),
        ("math_train.jsonl", ["1"], 1),
        ("messages.jsonl", ["15"], 1),
        ("numina_cot.jsonl", ["43"], 1),
        ("open_thoughts.jsonl", ["23"], 1),
        ("openr1_220k.jsonl", ["16"], 1),
        ("orz.json", ["25"], 0),
        ("own.csv", ["4", "6"], 1),
        ("own_columns.jsonl", ["5"], 1),
        ("polaris.jsonl", ["3"], 0),
        ("s1k.jsonl", ["9"], 1),
        ("skywork_or1.jsonl", ["32"], 0),  # a JSON list with one answer, as text
    ],
)
def test_forms_of_public_data_sets(name, answers, num_solutions):
    raw = {"train": str(USER_FILES / name), "prompt_template": "{problem}"}
    options = OPTIONS.get(name, {})

    def load(options):
        data = validate({"data": raw | options}).data
        return load_problems(data, byte_tokenizer(), max_response_tokens=2048)

    loaded = load(options)
    problems = loaded.problems
    assert [problem.answer for problem in problems] == answers
    assert [len(problem.expert_ids) for problem in problems] == [num_solutions] * len(answers)
    if "columns" in options:
        with pytest.raises(DataError, match=r'set "data.columns={problem: Question, answer: gold, solutions: reas'):
            load({})
    if "answer_from" in options:
        assert loaded.report.num_boxed_answers == 1
        with pytest.raises(DataError, match=r"set data\.answer_from: box"):
            load({})
    if name == "numina_cot.jsonl":
        assert loaded.report.rows_dropped == {"no boxed answer": 1}


@pytest.mark.skipif(not USER_FILES.is_dir(), reason="the samples of public data sets' forms are not on this machine")
@pytest.mark.parametrize("options", [{}, {"answer_from": "box"}])
def test_a_set_without_answers_or_boxes_is_an_error_that_names_the_option(options):
    data = DataSection(train=str(USER_FILES / "math_instruct.jsonl"), prompt_template="{problem}", **options)
    with pytest.raises(DataError, match=r'(set|name) .*"data.columns={answer: COLUMN}"'):
        load_problems(data, byte_tokenizer(), max_response_tokens=2048)
