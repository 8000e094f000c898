"""What functions return is added up, and their failures are counted."""

import time

import pytest
from reward_sections import PROBLEM, scored, section_of, write

from trapo_lite.core.errors import RewardError
from trapo_lite.core.types import Response
from trapo_lite.reward import Scorer


def test_the_reward_is_the_weighted_sum_and_each_part_has_its_name(write) -> None:
    mine = write("def score(response): return len(response)\n")
    section = section_of(
        "math",
        {**mine("score"), "weight": 0.5},
        {"type": "exact", "weight": 0},
        {"type": "regex", "pattern": "x+", "name": "xs"},
    )
    right, wrong = scored(section, r"\boxed{42}", "xxxx")
    assert right.parts == (("math", 1.0), ("score", 10.0), ("exact", 0.0), ("xs", 0.0)) and right.reward == 6.0
    assert (right.verdict.kind, right.verdict.answer) == ("correct", "42")
    assert wrong.reward == 2.0 and wrong.verdict.kind != "correct"


def test_none_is_left_out_of_the_sum_and_a_failure_leaves_no_reward(write) -> None:
    mine = write(
        "def maybe(response): return None if 'none' in response else 1\n"
        "def strict(response): return 1 / ('fail' not in response)\n"
    )
    section = section_of(mine("maybe"), {**mine("strict"), "weight": 2.0})
    assert [score.reward for score in scored(section, "x", "none", "fail", "none fail")] == [3.0, 2.0, None, None]
    logged_only = section_of(mine("maybe"), {**mine("strict"), "weight": 0})
    assert [score.reward for score in scored(logged_only, "x", "none", "fail")] == [1.0, 0.0, 1.0]


def test_a_failure_is_told_once_with_its_traceback_and_the_row(write) -> None:
    mine = write("def score(response):\n    return {}[response]\n")
    told: list[str] = []
    with Scorer(section_of(mine("score")), notify=told.append) as scorer:
        scorer.score([Response(PROBLEM, "first"), Response(PROBLEM, "second")])
        [line] = told
        assert "score failed for problem p1" in line and "mine.py" in line and "line 2" in line
        assert "KeyError: 'first'" in line and "own.py" not in line and "gets no advantage" in line
        with pytest.raises(RewardError, match=r"(?s)score failed on all of 2 responses.*KeyError"):
            scorer.require_success()


def test_a_function_that_fails_now_and_then_does_not_stop_the_run(write) -> None:
    mine = write("def score(response): return 1 / len(response)\n")
    with Scorer(section_of(mine("score"), "math")) as scorer:
        scorer.score([Response(PROBLEM, ""), Response(PROBLEM, "x")])
        scorer.require_success()


def test_a_function_that_fails_from_some_step_on_stops_the_run_then(write) -> None:
    """Each call looks at what came since the one before; a function that is only logged stops nothing."""
    mine = write("def score(response): return 1 / len(response)\n")
    with Scorer(section_of(mine("score"))) as scorer:
        scorer.score([Response(PROBLEM, "x")])
        scorer.require_success()
        scorer.score([Response(PROBLEM, ""), Response(PROBLEM, "")])
        with pytest.raises(RewardError, match=r"score failed on all of 2 responses"):
            scorer.require_success()
        scorer.require_success()  # nothing since then
    with Scorer(section_of("math", {**mine("score"), "weight": 0})) as scorer:
        scorer.score([Response(PROBLEM, "")])
        scorer.require_success()


def test_a_function_is_given_up_only_if_it_fails_in_all_processes(write) -> None:
    mine = write("def score(response): return 1 / len(response)\n")
    with Scorer(section_of(mine("score"))) as scorer:
        scorer.score([Response(PROBLEM, "x")])
        good = scorer.take_failures()
        scorer.score([Response(PROBLEM, "")])
        bad = scorer.take_failures()
        scorer.require_success([good, bad])
        with pytest.raises(RewardError, match=r"failed on all of 2 responses.*(.|\n)*ZeroDivisionError"):
            scorer.require_success([bad, bad])


def test_cancelling_a_score_cancels_what_waits_for_a_worker(write) -> None:
    mine = write("import time\ndef score(response):\n    time.sleep(float(response))\n    return 1\n")
    with Scorer(section_of(mine("score"))) as scorer:
        assert scorer.score([Response(PROBLEM, "0")])[0].reward == 1
        running = scorer.submit(Response(PROBLEM, "1"))
        waiting = [scorer.submit(Response(PROBLEM, "3")) for _ in range(10)]
        before = time.monotonic()
        assert all(ticket.cancel() for ticket in waiting)
        assert running.result().reward == 1
        assert scorer.score([Response(PROBLEM, "0")])[0].reward == 1
        assert time.monotonic() - before < 3.0


def test_a_function_that_has_only_failed_is_given_up_after_64_responses(write) -> None:
    mine = write("def score(response): return 1 / len(response)\n")
    empty = Response(PROBLEM, "")
    with Scorer(section_of(mine("score"))) as scorer:
        assert {score.reward for score in scorer.score([empty] * 63)} == {None}
        with pytest.raises(RewardError, match=r"(?s)failed on all of 64 responses.*problem p1.*ZeroDivision"):
            scorer.score([empty])
    with Scorer(section_of(mine("score"))) as scorer:
        scorer.score([empty] * 40 + [Response(PROBLEM, "x")])
        scorer.take_failures()
        assert {score.reward for score in scorer.score([empty] * 70)} == {None}
    with Scorer(section_of("math", {**mine("score"), "weight": 0})) as scorer:
        assert {score.reward for score in scorer.score([empty] * 70)} == {0.0}
