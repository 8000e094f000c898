"""Implement the commands: one function each, which scripts/ and `trapo-lite` call.

`runs`, `results`, `pages`, `data` and `shipped` hold the commands, `arguments` what they parse, `endings` how they end.
"""

from trapo_lite.cli.arguments import ArgumentParser
from trapo_lite.cli.data import prepare
from trapo_lite.cli.endings import exit_on_user_error, exit_when_interrupted, exit_when_stopped
from trapo_lite.cli.pages import report
from trapo_lite.cli.results import compare, evaluate, export
from trapo_lite.cli.runs import plan, quickstart, train
from trapo_lite.cli.shipped import configs

__all__ = [
    "ArgumentParser",
    "compare",
    "configs",
    "evaluate",
    "exit_on_user_error",
    "exit_when_interrupted",
    "exit_when_stopped",
    "export",
    "plan",
    "prepare",
    "quickstart",
    "report",
    "train",
]
