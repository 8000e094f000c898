"""Find files that the package holds: its configurations, and the tiny world that one of them names.

A file of the same name in the current folder comes first, so that a user's own file is never replaced.
"""

from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = PACKAGE / "configs"
TINY_WORLD = ("trapo_lite", "tiny_world")


def config_names() -> list[str]:
    """Return the names of all shipped configurations, such as tiny_cpu.yaml and algorithm/sft.yaml."""
    files = sorted(CONFIGS.rglob("*.yaml"), key=lambda file: (file.parent != CONFIGS, file))
    return [file.relative_to(CONFIGS).as_posix() for file in files]


def config_file(name: str | Path) -> Path | None:
    """Return the shipped configuration of this name, or None. The name may begin with configs/.

    >>> config_file("configs/algorithm/sft.yaml") == config_file("algorithm/sft.yaml") == CONFIGS / "algorithm/sft.yaml"
    True
    """
    known = Path(name).as_posix().removeprefix("configs/")
    return CONFIGS / known if known in config_names() else None


def taken_lines(names: Sequence[str | Path]) -> list[str]:
    """Return a line for each --config that is no file here, with the shipped file that is read instead."""
    return [f"--config {name}: taken from {config_file(name)}" for name in names if not Path(name).is_file()]


def shipped_path(text: str) -> str:
    """Return where the package holds a file of the tiny world, if there is none of that path here; else the text."""
    in_package = PACKAGE.parent / text
    is_shipped = Path(text).parts[:2] == TINY_WORLD and not Path(text).exists() and in_package.exists()
    return str(in_package) if is_shipped else text
