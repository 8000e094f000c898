"""Functions that need no code give what their options say."""

from typing import Any

import pytest
from reward_sections import scored, section_of

from trapo_lite.core.types import Problem


@pytest.mark.parametrize(
    ("function", "values"),
    [
        ({"type": "exact"}, {"42": 1, " 42\n": 1, "It is 42": 0, "<think>7</think> 42": 1, "": 0}),
        ({"type": "exact", "text": "last_line"}, {"so\n42 ": 1, "42\nso": 0}),
        (
            {"type": "exact", "text": "box"},
            {r"so \boxed{42}.": 1, r"\boxed{42} or \boxed{4}": 0, "42": 0, r"<think>\boxed{42}</think> no": 0},
        ),
        ({"type": "regex", "pattern": r"answer: (\d+)"}, {"answer: 1, answer: 42!": 1, "answer: 42 answer: 1": 0}),
        ({"type": "regex", "pattern": r"\d+"}, {"1 then 42": 1, "none": 0}),
        ({"type": "regex", "pattern": "(a)|(b)"}, {"b": 0}),
        (
            {"type": "json_field", "field": "a.sum"},
            {
                '{"a": {"sum": 42}}': 1,
                '{"a": {"sum": "42"}}': 1,
                '{"a": {"sum": 42.0}}': 1,
                'Here:\n```json\n{"a": {"sum": 42}}\n```': 1,
                'so {"a": {"sum": 42}}': 0,
                '{"a": 42}': 0,
                "[1]": 0,
                "[" * 100_000: 0,
            },
        ),
        ({"type": "format", "pattern": "<think>.*</think>.+"}, {"<think>a\nb</think> 4": 1, "4": 0}),
    ],
    ids=["response", "last line", "box", "group", "whole match", "no group", "json", "format"],
)
def test_what_a_function_without_code_gives(function: dict[str, Any], values: dict[str, float]) -> None:
    assert [score.reward for score in scored(section_of(function), *values)] == list(values.values())


def test_case_counts_unless_it_is_told_otherwise() -> None:
    problem = Problem("p", (), "Paris")
    for function in ({"type": "exact"}, {"type": "regex", "pattern": r"\w+$"}):
        texts = scored(section_of(function), "paris", "Paris", problem=problem)
        assert [score.reward for score in texts] == [0, 1]
        [score] = scored(section_of({**function, "ignore_case": True}), "paris", problem=problem)
        assert score.reward == 1


@pytest.mark.parametrize(("num_tokens", "value"), [(0, 0.0), (100, 0.0), (150, -0.5), (200, -1.0), (900, -1.0)])
def test_the_soft_punishment_of_length_is_a_line_between_two_lengths(num_tokens: int, value: float) -> None:
    """DAPO gives 0, then (L_max - L_cache - |y|) / L_cache, then -1; L_max is most_tokens, L_cache the stretch."""
    [score] = scored(section_of({"type": "length", "free_tokens": 100, "most_tokens": 200}), "x", num_tokens=num_tokens)
    assert score.reward == pytest.approx(value)


def test_json_numbers_are_compared_exactly() -> None:
    problem = Problem("p", (), "9007199254740992")
    texts = {'{"n": 9007199254740992}': 1, '{"n": 9007199254740993}': 0, '{"n": 9007199254740992.0}': 1}
    scores = scored(section_of({"type": "json_field", "field": "n"}), *texts, problem=problem)
    assert [score.reward for score in scores] == list(texts.values())


def test_a_long_response_is_whole_for_all_but_math() -> None:
    text = "<think>" + "x" * 150_000 + "</think>42"
    section = section_of({"type": "format", "pattern": "<think>.*</think>.+"}, "exact", "math")
    assert [value for _, value in scored(section, text)[0].parts] == [1.0, 1.0, 1.0]
