"""A run without a terminal prints a line in each long silence, and none where lines come anyway."""

import re
import threading
import time

import pytest

from trapo_lite.run.display import Display


def shown(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_long_phase_tells_what_it_does_and_for_how_long(capsys: pytest.CaptureFixture) -> None:
    with Display(title="t", max_steps=4, first_step=0, is_main=True, quiet_seconds=0.3) as display:
        display.message("begun")
        display.phase("step 1/4: sampling")
        display.rollouts(3, 8)
        time.sleep(1.0)
        display.phase("step 1/4: updating the policy")
        time.sleep(1.0)
    begun, *lines = shown(capsys)
    assert begun == "begun" and len(lines) >= 2
    assert re.fullmatch(r"step 1/4: sampling, 3 of 8 rollouts, \d+ s so far", lines[0])
    assert re.fullmatch(r"step 1/4: updating the policy, \d+ s so far", lines[-1])


def test_a_run_that_prints_is_not_interrupted_and_other_ranks_stay_silent(capsys: pytest.CaptureFixture) -> None:
    with Display(title="t", max_steps=4, first_step=0, is_main=True) as display:
        for number in range(8):
            display.message(f"line {number}")
            time.sleep(0.05)
    assert shown(capsys) == [f"line {number}" for number in range(8)]
    with Display(title="t", max_steps=4, first_step=0, is_main=False, quiet_seconds=0.05):
        time.sleep(0.2)
    assert shown(capsys) == []
    assert "signs-of-life" not in {thread.name for thread in threading.enumerate()}
