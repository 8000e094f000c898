"""Run one script and record its phase: `phases.py RECORD train.py|export.py|... [ARGUMENTS ...]`.

Part of benchmarks/kill_resume.py. The package does not know it: the functions that are the phases are wrapped here, in
the process that will be killed. RECORD gets a line whenever a phase begins or ends:

    PID RANK SECONDS + update
    PID RANK SECONDS - update
"""

import functools
import importlib
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START = "start"
TRAINING = ("start", "publishing", "sampling", "grading", "update", "evaluation", "logging", "checkpoint", "finish")
SCRIPT_BY_JOB = {"export": "export.py", "evaluation job": "evaluate.py", "data building": "prepare_data.py"}

# Phase -> its function. `start` lasts from the beginning of the process until the first of the others.
FUNCTIONS = {
    "publishing": "trapo_lite.rollout.publisher:Publisher.publish",
    "sampling": "trapo_lite.rollout.phase:RolloutPhase.engine_step",
    "grading": "trapo_lite.rollout.phase:RolloutPhase.collect_verdicts",
    "update": "trapo_lite.training.update:Updater.update",
    "evaluation": "trapo_lite.training.rollouts:evaluate_problems",
    "logging": "trapo_lite.run.step_log:LogBook.write",
    "checkpoint": "trapo_lite.training.progress:save_checkpoint",
    "finish": "trapo_lite.training.trainer:Run.finish",
    "export": "trapo_lite.exporting.merge:export_run",
    "evaluation job": "trapo_lite.evaluation.evaluate:evaluate",
    "data building": "trapo_lite.curation.prepare:build_training_set",
}


def record(file: Path) -> None:
    """Make this process record its phases from now on."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    rank = os.environ.get("RANK", "0")

    def note(sign: str, phase: str) -> None:
        os.write(descriptor, f"{os.getpid()} {rank} {time.monotonic():.4f} {sign} {phase}\n".encode())

    note("+", START)
    is_starting = [True]
    for phase, target in FUNCTIONS.items():
        module_name, _, path = target.partition(":")
        owner: Any = importlib.import_module(module_name)
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, name, _recorded(getattr(owner, name), phase, note, is_starting))


def _recorded(
    function: Callable[..., Any], phase: str, note: Callable[[str, str], None], is_starting: list[bool]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if is_starting[0]:
            is_starting[0] = False
            note("-", START)
        note("+", phase)
        try:
            return function(*args, **kwargs)
        finally:
            note("-", phase)

    return wrapped


def run_script(name: str, arguments: list[str]) -> None:
    """Run a script as `python scripts/NAME ARGUMENTS` does."""
    sys.argv = [name, *arguments]
    sys.path.insert(0, str(ROOT / "scripts"))
    runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")


if __name__ == "__main__":
    record(Path(sys.argv[1]))
    run_script(sys.argv[2], sys.argv[3:])
