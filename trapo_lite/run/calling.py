"""Say how the user calls the project's commands, for messages that name the next one."""

import sys
from pathlib import Path

import trapo_lite

PACKAGE = Path(trapo_lite.__file__).resolve().parent
NAME = "trapo-lite"
FILES = {"prepare": "prepare_data"}
"""Maps a command to the name of its script, if that is another."""


def command(name: str) -> str:
    """Return how to call a command in the way that this process was called: as a script, a module or the program.

    >>> command("export")
    'trapo-lite export'
    """
    called = Path(sys.argv[0])
    if called.resolve().parent == PACKAGE.parent / "scripts":
        return f"python {called.with_name(FILES.get(name, name))}.py"
    return f"{program()} {name}"


def program() -> str:
    """Return how this process's program is called: trapo-lite, or `python -m trapo_lite`."""
    return "python -m trapo_lite" if Path(sys.argv[0]).resolve() == PACKAGE / "__main__.py" else NAME
