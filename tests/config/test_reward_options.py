"""The options of reward functions are checked, and bound the reward."""

import math
from typing import Any

import pytest
from reward_sections import section_of

from trapo_lite.config import validate
from trapo_lite.config.rewards import reward_bounds
from trapo_lite.core.errors import ConfigError


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([], r"functions: the list is empty"),
        ([{"type": "math"}, {"type": "math"}], r"functions: two have the name 'math'; give one of them another `name`"),
        ([{"type": "math", "weight": 0}], r"functions: the weights sum to 0"),
        ([{"type": "matth"}], r"functions\[0\]: found 'matth'; did you mean 'math'\?"),
        ([{"path": "a.py:f"}], r"functions\[0\]: has no type; write \{type: \.\.\., parameter"),
        ([{"type": "function", "path": "a.py"}], r"functions\[0\]\.path: found 'a\.py'; give FILE\.py:NAME or"),
        ([{"type": "function", "path": "a.py:1f"}], r"functions\[0\]\.path: found 'a\.py:1f'; give"),
        ([{"type": "regex", "pattern": "("}], r"functions\[0\]\.pattern: found '\(', which is no regular expression"),
        ([{"type": "math", "wieght": 1}], r"functions\[0\]\.wieght: unknown key; did you mean 'weight'\?"),
        ([{"type": "math", "weight": math.nan}], r"functions\[0\]\.weight: "),
        (
            [{"type": "length", "free_tokens": 9, "most_tokens": 4}],
            r"functions\[0\]\.free_tokens: found 9, most_tokens 4",
        ),
        (3, r"functions: found 3; write reward\.functions=\[VALUE"),
    ],
)
def test_bad_options_are_named_with_what_to_write(functions: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^reward\." + message):
        validate({"reward": {"functions": functions}})


def test_one_function_may_stand_alone_and_a_name_for_its_defaults() -> None:
    assert section_of("math") == validate({"reward": {"functions": "math", "num_workers": 1}}).reward
    assert validate({"reward": {"functions": {"type": "exact"}}}).reward.functions[0].label == "exact"
    with pytest.raises(ConfigError, match=r"require_box: has no effect here: it acts with a function of type math"):
        validate({"reward": {"functions": "exact", "require_box": True}})


def test_the_bounds_of_a_reward() -> None:
    length = {"type": "length", "free_tokens": 1, "most_tokens": 2, "weight": 0.5}
    mine = {"type": "function", "path": "a.py:f"}
    assert reward_bounds(section_of("math").functions) == (0.0, 1.0)
    assert reward_bounds(section_of("math", length, {"type": "exact", "weight": 2}).functions) == (-0.5, 3.0)
    assert reward_bounds(section_of(length).functions) == (-0.5, 0.0)
    assert reward_bounds(section_of("math", mine).functions) == (-math.inf, math.inf)
    assert reward_bounds(section_of("math", {**mine, "weight": 0}).functions) == (0.0, 1.0)
