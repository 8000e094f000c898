"""Run one of the project's commands: `trapo-lite COMMAND ...` or `python -m trapo_lite COMMAND ...`.

Only the standard library is imported before the command is known: `doctor` also runs where packages are missing.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import trapo_lite
from trapo_lite.run.calling import program
from trapo_lite.run.interrupts import ending_at_once

COMMANDS = {
    "quickstart": ("trapo_lite.cli", "Evaluate, train, merge and evaluate a tiny model, in minutes on two CPU cores."),
    "doctor": ("trapo_lite.doctor.command", "Check this machine, and what a configuration needs of it."),
    "configs": ("trapo_lite.cli", "List the shipped configurations, or copy one."),
    "prepare": ("trapo_lite.cli", "Show what the trainer reads from your data, or build a training set."),
    "plan": ("trapo_lite.cli", "Print the memory and time of a step without loading a model."),
    "train": ("trapo_lite.cli", "Train a LoRA adapter, or resume a run."),
    "evaluate": ("trapo_lite.cli", "Evaluate a model or a run's adapter on problems and benchmarks."),
    "compare": ("trapo_lite.cli", "Compare results, with intervals and paired tests."),
    "report": ("trapo_lite.cli", "Write a page about runs: curves, evaluations, rollouts to read."),
    "export": ("trapo_lite.cli", "Merge a run's adapter into its base, and check the checkpoint."),
}
"""Maps each command to its module, which has a function of that name, and to its line in the list."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names; list the commands if there is none."""
    with ending_at_once():
        _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> None:
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h", "help"):
        print(page())
        return
    if name == "--version":
        print(f"{program()} {trapo_lite.__version__}")
        return
    if name not in COMMANDS:
        end_with(f"{name!r} is no command; {hint(name)}")
    try:
        module = importlib.import_module(COMMANDS[name][0])
    except ModuleNotFoundError as error:
        end_with(f"{sys.executable} lacks the package {error.name}; run `make setup`, or pip install {error.name}")
    getattr(module, name)(rest, prog=f"{program()} {name}")


def page() -> str:
    """Return what `trapo-lite --help` prints."""
    lines = [f"  {name:10}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {program()} COMMAND ...",
            "",
            "Train a language model to reason by TRAPO with LoRA, on one machine.",
            "",
            "commands:",
            *lines,
            "",
            f"`{program()} COMMAND --help` shows the options of a command.",
        ]
    )


def hint(name: str) -> str:
    """Return what to do about an unknown command.

    >>> hint("tran")
    'did you mean train?'
    """
    near = difflib.get_close_matches(name.casefold().removesuffix(".py"), COMMANDS, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(COMMANDS)}"


def end_with(message: str) -> NoReturn:
    print(f"{program()}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
