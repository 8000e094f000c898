"""Plain lines have the time, and a run without a terminal prints a line in each long silence, and none elsewhere."""

import io
import re
import threading
import time
from datetime import datetime

import pytest
from rich.console import Console

from trapo_lite.run.display import Display
from trapo_lite.run.lines import Lines

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def shown(capsys: pytest.CaptureFixture) -> list[str]:
    """Return the printed lines without the time, which each of them must have."""
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(f"{TIME}  ", line) for line in lines), lines
    return [line[21:] for line in lines]


def test_each_line_of_a_message_has_the_time_and_results_have_none(capsys: pytest.CaptureFixture) -> None:
    before = datetime.now().replace(microsecond=0)
    with Lines() as lines:
        lines.message("the data:\n  12 [rows]")
        lines.results(["a table", "1  2"])
    first, second, *table = capsys.readouterr().out.splitlines()
    assert before <= datetime.strptime(first[:19], "%Y-%m-%d %H:%M:%S") <= datetime.now()
    assert (first[19:], second[19:], table) == ("  the data:", "    12 [rows]", ["a table", "1  2"])


def test_a_terminal_gets_neither_times_nor_signs_of_life() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Lines(console=console, quiet_seconds=0.05) as lines:
        lines.message("begun")
        time.sleep(0.3)
    assert console.file.getvalue() == "begun\n"


def test_a_long_phase_tells_what_it_does_and_for_how_long(capsys: pytest.CaptureFixture) -> None:
    with Display(title="t", max_steps=4, is_main=True, quiet_seconds=0.3) as display:
        display.message("begun")
        display.step_phase(1, "sampling")
        display.rollouts(3, 8)
        time.sleep(1.0)
        display.step_phase(1, "updating the policy")
        time.sleep(1.0)
    begun, *lines = shown(capsys)
    assert begun == "begun" and len(lines) >= 2
    assert re.fullmatch(r"step 1/4: sampling, 3 of 8 rollouts, \d+ s so far", lines[0])
    assert re.fullmatch(r"step 1/4: updating the policy, \d+ s so far", lines[-1])


def test_from_the_second_step_on_a_sign_of_life_says_when_the_step_ends(capsys: pytest.CaptureFixture) -> None:
    """Step 1 took 100 s, of which 40 s are an evaluation, so step 2 ends 60 s after its beginning."""
    row = {"step": 1, "time/step": 100.0, "time/eval": 40.0, "speed/sampled_tokens_per_second": 1234.4}
    began = datetime.now()
    with Display(title="t", max_steps=4, is_main=True, quiet_seconds=0.2) as display:
        display.step_phase(1, "logging and saving")
        display.step(row)
        time.sleep(0.5)
        display.step_phase(2, "sampling")
        time.sleep(0.5)
        display.step(row | {"step": 2, "time/step": 0.1, "time/eval": None})
        display.step_phase(3, "sampling")
        time.sleep(0.5)
    lines = shown(capsys)
    [ended] = {line.partition(" so far")[2] for line in lines if line.startswith("step 1/4: logging")}
    assert ended == ""  # the step is over, and this one is not compared with itself
    second = next(line for line in lines if line.startswith("step 2/4: "))
    [end] = re.findall(
        r"s so far; step 1 sampled 1234 tokens/s; expected to end at (\S+), as step 1 took 60 s$", second
    )
    seconds = (datetime.combine(began.date(), datetime.strptime(end, "%H:%M:%S").time()) - began).total_seconds()
    assert 58 <= seconds % 86400 <= 65  # % for midnight
    assert lines[-1].endswith("; step 2 sampled 1234 tokens/s; step 2 took 0 s")  # it takes longer, so no end is named


def test_a_run_that_prints_is_not_interrupted_and_other_ranks_stay_silent(capsys: pytest.CaptureFixture) -> None:
    with Display(title="t", max_steps=4, is_main=True) as display:
        for number in range(8):
            display.message(f"line {number}")
            time.sleep(0.05)
    assert shown(capsys) == [f"line {number}" for number in range(8)]
    with Display(title="t", max_steps=4, is_main=False, quiet_seconds=0.05):
        time.sleep(0.2)
    assert shown(capsys) == []
    assert "signs-of-life" not in {thread.name for thread in threading.enumerate()}
