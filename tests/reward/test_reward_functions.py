"""Reward functions give what their options and code say, in real worker processes, and are added up."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trapo_lite.config import RewardSection, validate
from trapo_lite.config.rewards import reward_bounds
from trapo_lite.core.errors import ConfigError, RewardError
from trapo_lite.core.types import Problem, Response
from trapo_lite.reward import Scorer
from trapo_lite.reward.fingerprints import function_fingerprints
from trapo_lite.reward.start_check import start_lines

PROBLEM = Problem("p1", (), "42", text="6 * 7?", row={"level": 3, "tags": ["easy"]})


def section_of(*functions: dict[str, Any] | str, **options: Any) -> RewardSection:
    options = {"num_workers": 1, "deadline_seconds": 5.0} | options
    return validate({"reward": {"functions": list(functions), **options}}).reward


def scored(section: RewardSection, *texts: str, problem: Problem = PROBLEM, **values: Any) -> list[Any]:
    with Scorer(section) as scorer:
        return scorer.score([Response(problem, text, **values) for text in texts])


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Callable[[str], dict[str, Any]]]:
    """Write the source of a module; the result names one of its functions as an option."""

    def module(source: str) -> Callable[[str], dict[str, Any]]:
        (tmp_path / "mine.py").write_text(source)
        return lambda name: {"type": "function", "path": f"{tmp_path / 'mine.py'}:{name}"}

    return module


# ----- functions that need no code


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


# ----- functions of the user's


def test_a_function_gets_what_it_names_as_plain_values(write) -> None:
    mine = write(
        "import json\n"
        "def all_of_it(problem, answer, response, row, is_truncated, num_tokens, step):\n"
        "    same = [problem, answer, response, row, is_truncated, num_tokens, step]\n"
        "    return float(same == ['6 * 7?', '42', 'text', {'level': 3, 'tags': ['easy']}, True, 9, 4])\n"
        "def some(response, *, row, unused=3, **others): return row['level'] + len(others)\n"
        "async def later(response):\n"
        "    import asyncio\n"
        "    await asyncio.sleep(0.01)\n"
        "    return 0.5\n"
        "class Judge:\n"
        "    def call(self, response): return 7\n"
        "judge = Judge()\n"
    )
    section = section_of(mine("all_of_it"), mine("some"), mine("later"), mine("judge.call"))
    [score] = scored(section, "text", is_truncated=True, num_tokens=9, step=4)
    assert score.parts == (("all_of_it", 1.0), ("some", 3.0 + 5), ("later", 0.5), ("call", 7.0))
    assert score.verdict.kind == "correct" and score.reward == 16.5


@pytest.mark.parametrize(
    ("returned", "kind", "value"),
    [
        ("1", "correct", 1.0),
        ("True", "correct", 1.0),
        ("-3", "wrong", -3.0),
        ("numpy.float32(0.25)", "wrong", 0.25),
        ("numpy.int64(2)", "correct", 2.0),
        ("numpy.array([1.0])", "correct", 1.0),
        ("fractions.Fraction(1, 2)", "wrong", 0.5),
        ("None", "unjudged", None),
        ("float('nan')", "failed", None),
        ("float('inf')", "failed", None),
        ("1e39", "failed", None),
        ("'1'", "failed", None),
        ("[1]", "failed", None),
        ("numpy.array([1.0, 2.0])", "failed", None),
        ("1 / 0", "failed", None),
        ("sys.exit(3)", "failed", None),
        ("os._exit(3)", "crash", None),
    ],
)
def test_what_may_be_returned(write, returned: str, kind: str, value: float | None) -> None:
    mine = write(f"import fractions, numpy, os, sys\ndef score(response): return {returned}\n")
    [score] = scored(section_of(mine("score")), "x")
    assert (score.verdict.kind, score.reward) == (kind, value)


def test_a_function_that_hangs_or_eats_memory_is_ended_and_the_next_response_is_scored(write) -> None:
    mine = write(
        "def score(response):\n"
        "    while response == 'hang': pass\n"
        "    if response == 'eat':\n"
        "        eaten = [bytearray(1 << 26) for _ in range(100)]\n"
        "    return 1\n"
    )
    for response, deadline, kind in (("hang", 1.0, "timeout"), ("eat", 60.0, "crash")):
        section = section_of(mine("score"), deadline_seconds=deadline, memory_mb=512)
        before = time.monotonic()
        bad, good = scored(section, response, "good")
        assert (bad.verdict.kind, bad.reward) == (kind, None) and good.reward == 1.0
        assert time.monotonic() - before < 30.0


def test_the_memory_limit_is_about_what_a_function_takes_beside_its_imports(write) -> None:
    """The address space of large libraries would be above the limit before the first call."""
    mine = write(
        "import mmap\nspace = mmap.mmap(-1, 1 << 30)\ndef score(response): return len(bytearray(1 << 27)) / (1 << 27)\n"
    )
    [score] = scored(section_of(mine("score"), memory_mb=512), "x")
    assert score.reward == 1.0


def test_printing_reading_threads_and_processes_do_no_harm(write, tmp_path: Path) -> None:
    mine = write(
        "import os, subprocess, sys, threading, time\n"
        "def loud(response):\n"
        "    for stream in (sys.stdout, sys.stderr):\n"
        "        stream.write('x' * 10_000_000)\n"
        "    os.write(1, b'y' * 100_000); os.write(2, b'y' * 100_000)\n"
        "    return 1\n"
        "def reads(response): return len(sys.stdin.read()) + len(os.read(0, 10)) + 1\n"
        "def threads(response):\n"
        "    for _ in range(5): threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "    return 1\n"
        "def child(response):\n"
        f"    child = subprocess.Popen(['sleep', '600']); open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "    return 1\n"
    )
    section = section_of(mine("loud"), mine("reads"), mine("threads"), mine("child"))
    assert [score.reward for score in scored(section, "a", "b")] == [4.0, 4.0]
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.02)
    else:
        os.kill(child, 9)
        pytest.fail("a process that a function started outlived its worker")


def test_what_a_function_imports_beside_itself_is_found(write, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("BONUS = 0.5\n")
    mine = write("from helper import BONUS\ndef score(response): return BONUS\n")
    [score] = scored(section_of(mine("score")), "x")
    assert score.reward == 0.5


def test_files_of_one_name_and_of_a_standard_modules_name(tmp_path: Path) -> None:
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "json.py").write_text(f"def score(response): return {value}\n")
    paths = [{"type": "function", "path": f"{tmp_path / folder / 'json.py'}:score", "name": folder} for folder in "ab"]
    [score] = scored(section_of(*paths, "math"), "x")
    assert score.parts == (("a", 1.0), ("b", 2.0), ("math", 0.0))


def test_a_function_of_a_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").write_text("")
    (tmp_path / "my_package/rewards.py").write_text("def score(response): return 2\n")
    monkeypatch.chdir(tmp_path)
    [score] = scored(section_of({"type": "function", "path": "my_package.rewards:score"}), "x")
    assert score.reward == 2.0


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("def score(response): return 1", "scroe", r"there is no 'scroe'; it has score$"),
        ("x = 1", "score", r"there is no 'score'; it has no function$"),
        ("score = {'a': 1}", "score", r"is a dict, not a function$"),
        ("class score: pass", "score", r"is a class, not a function$"),
        (
            "def score(prompts, completions): return 1",
            "score",
            r"it takes prompts, completions; .*may take.*problem \(",
        ),
        ("def score(completions, **others): return 1", "score", r"it takes completions; a reward function may take"),
        ("def score(response, /): return 1", "score", r"it takes response; a reward function may take, by these names"),
        ("def score(): return 1", "score", r"it takes nothing; a reward function may take"),
        (
            "import no_such_module",
            "score",
            r"cannot be imported: (.|\n)*line 1(.|\n)*No module named 'no_such_module'$",
        ),
        ("def score(response) return 1", "score", r"cannot be imported: (.|\n)*SyntaxError"),
        ("raise SystemExit(3)", "score", r"cannot be imported: (.|\n)*SystemExit: 3$"),
    ],
)
def test_a_path_that_is_no_reward_function_is_refused_with_what_there_is(
    write, source: str, name: str, message: str
) -> None:
    with pytest.raises(RewardError, match=r"^reward\.functions: .*mine\.py(.|\n)*" + message):
        scored(section_of(write(source)(name)), "x")


# ----- the sum


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


# ----- the options


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([], r"functions: the list is empty"),
        ([{"type": "math"}, {"type": "math"}], r"functions: two have the name 'math'; give one of them another `name`"),
        ([{"type": "math", "weight": 0}], r"functions: the weights sum to 0"),
        ([{"type": "matth"}], r"functions\.0: found 'matth'; did you mean 'math'\?"),
        ([{"path": "a.py:f"}], r"functions\.0: has no type; write \{type: \.\.\., parameter"),
        ([{"type": "function", "path": "a.py"}], r"functions\.0\.path: found 'a\.py'; give FILE\.py:NAME or"),
        ([{"type": "function", "path": "a.py:1f"}], r"functions\.0\.path: found 'a\.py:1f'; give"),
        ([{"type": "regex", "pattern": "("}], r"functions\.0\.pattern: found '\(', which is no regular expression"),
        ([{"type": "math", "wieght": 1}], r"functions\.0\.wieght: unknown key; did you mean 'weight'\?"),
        ([{"type": "math", "weight": math.nan}], r"functions\.0\.weight: "),
        (
            [{"type": "length", "free_tokens": 9, "most_tokens": 4}],
            r"functions\.0\.free_tokens: found 9, most_tokens 4",
        ),
        (3, r"functions: input should be a valid list; found 3"),
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


def test_a_changed_file_has_another_fingerprint(write) -> None:
    functions = section_of(write("def score(response): return 1")("score")).own_functions
    before = function_fingerprints(functions)
    write("def score(response): return 2")
    assert before.keys() == function_fingerprints(functions).keys() and before != function_fingerprints(functions)


def test_a_changed_module_of_the_working_folder_has_another_fingerprint_and_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "never_imported").mkdir()
    (tmp_path / "never_imported/__init__.py").write_text("raise SystemExit\n")
    (tmp_path / "never_imported/rewards.py").write_text("def score(response): return 1\n")
    functions = section_of({"type": "function", "path": "never_imported.rewards:score"}).own_functions
    [before] = function_fingerprints(functions).values()
    (tmp_path / "never_imported/rewards.py").write_text("def score(response): return 2\n")
    [after] = function_fingerprints(functions).values()
    assert "unknown" not in (before, after) and before != after


# ----- the check at the start


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


def test_json_numbers_are_compared_exactly() -> None:
    problem = Problem("p", (), "9007199254740992")
    texts = {'{"n": 9007199254740992}': 1, '{"n": 9007199254740993}': 0, '{"n": 9007199254740992.0}': 1}
    scores = scored(section_of({"type": "json_field", "field": "n"}), *texts, problem=problem)
    assert [score.reward for score in scores] == list(texts.values())


def test_a_long_response_is_whole_for_all_but_math() -> None:
    text = "<think>" + "x" * 150_000 + "</think>42"
    section = section_of({"type": "format", "pattern": "<think>.*</think>.+"}, "exact", "math")
    assert [value for _, value in scored(section, text)[0].parts] == [1.0, 1.0, 1.0]
