"""Rows in every known form, written by hand: what problem, answer, expert and id are read from them."""

import datetime
import json

import pytest

from trapo_lite.core.types import Problem
from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.report import fingerprint
from trapo_lite.data.rows import Example, read_example
from trapo_lite.data.sources import Row

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}]


def read(**fields: object) -> Example:
    return read_example(Row("made.jsonl line 3", "made-2", fields))


def test_openr1_row():
    example = read(
        data_source="",
        prompt=MESSAGES,
        target=[{"content": "<think>\n42\n</think>\nIt is 42.", "role": "assistant"}],
        ability="math",
        reward_model={"style": "rule", "ground_truth": "42"},
        extra_info={"split": "default", "index": 7},
        __index_level_0__=99,
    )
    assert (example.id, example.problem, example.answer) == ("7", "6 * 7?", "42")
    assert example.solutions == ("<think>\n42\n</think>\nIt is 42.",)
    assert example.system == "Be brief."


def test_official_trapo_row_has_two_traces_and_a_uuid():
    extra_info = {"uuid": "u-1", "index": 0, "split": "default", "answer_list": ["first", "second"]}
    example = read(prompt=MESSAGES, target=None, reward_model={"ground_truth": "42"}, extra_info=extra_info)
    assert (example.id, example.solutions) == ("u-1", ("first", "second"))


def test_luffy_row_holds_several_conversations():
    both = [[{"role": "assistant", "content": "first"}], [{"role": "assistant", "content": "second"}]]
    assert read(prompt=MESSAGES, reward_model={"ground_truth": "42"}, target_lst=both).solutions == ("first", "second")


def test_uft_row_joins_the_steps_and_ignores_the_number_called_target():
    gold = {"target": 42, "numbers": [6, 7]}
    example = read(prompt=MESSAGES, target=42, hint=["6 * 7 = 42\n", "So 6 * 7"], reward_model={"ground_truth": gold})
    assert example.solutions == ("6 * 7 = 42\nSo 6 * 7",)
    assert example.answer == '{"numbers": [6, 7], "target": 42}'


def test_gsm8k_row():
    example = read(question="Half of 48?", answer="It is 48/2 = <<48/2=24>>24.\n#### 24")
    assert (example.problem, example.answer) == ("Half of 48?", "24")
    assert example.solutions == ("It is 48/2 = 24.\n\nThe answer is \\boxed{24}.",)


def test_gsm8k_answer_loses_its_thousands_separator():
    assert read(question="x", answer="Many.\n#### 1,000").answer == "1000"


def test_four_hashes_in_a_simple_row_are_text():
    assert read(problem="x", answer="a #### b", solutions=[]).answer == "a #### b"


@pytest.mark.parametrize("column", ["problem", "question", "prompt"])
@pytest.mark.parametrize("gold", ["answer", "final_answer"])
def test_simple_row(column, gold):
    example = read(**{column: "6 * 7?", gold: " 42 ", "solution": "6 * 7 = 42"})
    assert (example.id, example.problem, example.answer) == ("made-2", "6 * 7?", "42")
    assert example.solutions == ("6 * 7 = 42",)


def test_openr1_220k_row_keeps_generations_found_correct_and_complete():
    example = read(
        problem="6 * 7?",
        answer="42",
        generations=["right", "wrong", "cut off"],
        correctness_math_verify=[True, False, True],
        is_reasoning_complete=[True, True, False],
    )
    assert example.solutions == ("right",)


@pytest.mark.parametrize("solutions", [None, [], [""], ["  \n"], [None]])
def test_an_empty_trace_is_no_trace(solutions):
    assert read(problem="x", answer="1", solutions=solutions).solutions == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [(27.0, "27"), (27, "27"), (0.5, "0.5"), (["3"], "3"), ([3, "3 ", None], "3"), ('["32"]', "32"), (0, "0")],
)
def test_answers_that_are_not_text(value, text):
    assert read(problem="x", answer=value).answer == text


@pytest.mark.parametrize(
    ("fields", "reason", "named"),
    [
        ({"answer": "1"}, "no problem text", "problem: found none"),
        ({"problem": " ", "answer": "1"}, "no problem text", "problem: found ' '; give the problem"),
        ({"prompt": [], "answer": "1"}, "no problem text", "prompt: found []; give the problem"),
        ({"prompt": ["6 * 7?"], "answer": "1"}, "wrong type", "prompt: found str '6 * 7?'"),
        ({"prompt": [{"role": "user"}], "answer": "1"}, "wrong type", "prompt: found dict"),
        ({"problem": 3, "answer": "1"}, "wrong type", "problem: found int 3"),
        ({"problem": "x"}, "no gold answer", "answer: found none"),
        ({"problem": "x", "answer": ""}, "no gold answer", "answer: found ''; give the answer"),
        ({"problem": "x", "answer": float("nan")}, "no gold answer", "answer: found nan"),
        ({"problem": "x", "answer": float("inf")}, "wrong type", "answer: found float inf"),
        ({"problem": "x", "answer": True}, "wrong type", "answer: found bool True"),
        ({"problem": "x", "reward_model": "42"}, "wrong type", "reward_model: found str '42'"),
        ({"problem": "x", "reward_model": {"ground_truth": None}}, "no gold answer", "reward_model.ground_truth"),
        ({"problem": "x", "answer": "1", "solutions": 5}, "wrong type", "solutions: found int 5"),
        ({"problem": "x", "answer": "1", "target": 5}, "wrong type", "target: found int 5"),
        ({"problem": "half \ud83d", "answer": "1"}, "not Unicode text", "problem: found half of a surrogate pair"),
        (
            {"problem": "x", "answer": "1", "generations": ["a"], "is_reasoning_complete": []},
            "wrong type",
            "is_reasoning_complete: found 0 flags for 1 generations",
        ),
    ],
)
def test_rows_that_cannot_be_used(fields, reason, named):
    with pytest.raises(BadRow) as caught:
        read(**fields)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(named)


def conversation(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(roles)]


def test_the_reply_at_the_end_of_the_prompt_is_the_expert_solution():
    """A chat export: before, what the assistant said was taken for the problem."""
    example = read(prompt=conversation("system", "user", "assistant"), answer="2")
    assert (example.system, example.problem, example.solutions) == ("system 0", "user 1", ("assistant 2",))
    example = read(prompt=conversation("user", "assistant"), answer="2", solutions=[], target=None)
    assert (example.system, example.problem, example.solutions) == (None, "user 0", ("assistant 1",))


def test_an_empty_reply_is_none():
    reply = {"role": "assistant", "content": " "}
    assert read(prompt=[*MESSAGES, reply], answer="2").solutions == ()
    assert read(prompt=[*MESSAGES, reply], answer="2", solution="two").solutions == ("two",)


@pytest.mark.parametrize("own", [{"solution": "42"}, {"target": conversation("assistant")}, {"answer": "So.\n#### 2"}])
def test_a_reply_beside_a_solution_is_refused(own):
    with pytest.raises(BadRow, match=r"prompt: its messages end in the assistant's reply, .*; keep one of them"):
        read(prompt=conversation("user", "assistant"), **{"answer": "2", **own})


@pytest.mark.parametrize(
    "roles",
    [
        ("user", "assistant", "user"),
        ("system", "user", "user"),
        ("user", "system"),
        ("system", "system", "user"),
        ("user", "assistant", "assistant"),
        ("assistant",),
        ("system",),
        ("user", "tool"),
        ("user", ""),
        ("",),
    ],
)
def test_a_prompt_of_which_a_part_would_be_lost_is_refused(roles):
    with pytest.raises(BadRow) as caught:
        read(prompt=conversation(*roles), answer="2")
    assert caught.value.reason == "other messages than one question"
    named = ", ".join(role or "nobody" for role in roles)
    assert str(caught.value).startswith(f"prompt: found messages of {named}; give one question of the user's")


@pytest.mark.parametrize("field", ["target", "target_lst"])
@pytest.mark.parametrize("roles", [("user",), ("assistant", "user"), ("user", "assistant", "user", "assistant")])
def test_a_solution_that_is_not_one_reply_is_refused(field, roles):
    messages = conversation(*roles)
    with pytest.raises(BadRow, match=f"{field}: found messages of {', '.join(roles)}; give one message of the assist"):
        read(prompt=MESSAGES, answer="2", **{field: messages if field == "target" else [messages]})


def test_a_solution_may_stand_in_the_whole_conversation():
    example = read(prompt=MESSAGES, answer="2", target=conversation("system", "user", "assistant"))
    assert example.solutions == ("assistant 2",)


@pytest.mark.parametrize("answers", [["3", "three"], ["3", "3.0"], [3, 4], '["3", "three"]', [["3"], ["4"]]])
def test_different_answers_are_refused(answers):
    """Joined, as "3, three", they graded every rollout as wrong."""
    with pytest.raises(BadRow, match=r"answer: found several, .*; keep the one to grade by") as caught:
        read(problem="x", answer=answers)
    assert caught.value.reason == "several answers"


@pytest.mark.slow
@pytest.mark.parametrize("nest", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["lists", "objects"])
def test_an_answer_that_is_nested_without_end_is_a_bad_row(nest):
    answer = "3"
    for _ in range(100_000):
        answer = nest(answer)
    with pytest.raises(BadRow, match="answer: found values in values, hundreds deep; give text"):
        read(problem="x", answer=answer)


def test_answers_that_are_all_asked_for():
    """OlympiadBench's rows say so."""
    assert read(question="x", final_answer=["2", "$-3$"], is_multiple_answer=True).answer == "2, $-3$"
    assert read(question="x", final_answer=["2"], is_multiple_answer=False).answer == "2"
    with pytest.raises(BadRow, match="final_answer: found several"):
        read(question="x", final_answer=["2", "3"], is_multiple_answer=False)


@pytest.mark.parametrize("text", ["[3, 4]", "[a]", '["3", 4]', '["3"', "[]"])
def test_brackets_in_an_answer_are_text(text):
    assert read(problem="x", answer=text).answer == text


def test_a_missing_column_is_told_with_the_names_that_are_looked_for():
    accepted = "prompt, problem, question, messages, conversations, conversation"
    with pytest.raises(BadRow, match=f"problem: found none of the columns {accepted}, only gold, text;"):
        read(text="x", gold="1")
    with pytest.raises(BadRow) as caught:
        read(question="x", gold="1", reasoning="...")
    assert str(caught.value) == (
        "answer: found none of the columns reward_model.ground_truth, answer, final_answer, only gold, question, "
        'reasoning; set "data.columns={answer: gold, solutions: reasoning}"'
    )


def test_a_kept_row_is_plain_json_and_counts_in_the_fingerprint() -> None:
    fields = {
        "problem": "1?",
        "day": datetime.date(2026, 1, 2),
        "none": float("nan"),
        "raw": b"x",
        "nested": [{"a": (1, 2.5)}],
    }
    row = read_example(Row("w", "k", fields), needs_answer=False, keeps_row=True).row
    assert row == {"problem": "1?", "day": "2026-01-02", "none": None, "raw": "b'x'", "nested": [{"a": [1, 2.5]}]}
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert read_example(Row("w", "k", fields), needs_answer=False).row is None
    plain, other = (Problem("k", (1,), "", row=kept) for kept in (row, {**row, "raw": "y"}))
    assert fingerprint([plain]) != fingerprint([other])
    assert fingerprint([Problem("k", (1,), "")]) == fingerprint([Problem("k", (1,), "", row={})])


@pytest.mark.parametrize("shape", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["lists", "objects"])
def test_a_row_for_reward_functions_may_hold_a_hundred_levels(shape):
    """Some hundreds more end json and repr, wherever a function needs them."""

    def row(levels: int) -> Row:
        value = 1
        for _ in range(levels):
            value = shape(value)
        return Row("made.jsonl line 3", "made-2", {"problem": "1+1", "answer": "2", "tree": value})

    assert json.loads(json.dumps(read_example(row(100), keeps_row=True).row)) == row(100).fields
    for levels in (101, 500, 900):
        with pytest.raises(BadRow, match=r"^tree: found more than 100 lists and objects inside of each other; write"):
            read_example(row(levels), keeps_row=True)
        assert read_example(row(levels)).row is None
