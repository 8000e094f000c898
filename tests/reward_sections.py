"""Sections of reward functions, modules that hold some, and the scores that real worker processes give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trapo_lite.config import RewardSection, validate
from trapo_lite.core.types import Problem, Response
from trapo_lite.reward import Scorer

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
