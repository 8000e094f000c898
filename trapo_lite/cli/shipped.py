"""Define the command that lists and copies the shipped configurations."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from trapo_lite.cli.arguments import ArgumentParser
from trapo_lite.cli.endings import exit_on_user_error
from trapo_lite.config.loading import nearest_files
from trapo_lite.config.shipped import CONFIGS, config_file, config_names
from trapo_lite.core.errors import ConfigError


def configs(arguments: Sequence[str] | None = None, *, prog: str = "configs") -> None:
    """List the shipped configurations, or copy one."""
    parser = ArgumentParser(
        prog=prog,
        description="List the configurations that the package holds. --config takes each by its name, from any folder. "
        "To change one, copy it.",
        examples=[
            ("", "List the configurations."),
            ("copy 8xA100_lora.yaml", "Write ./8xA100_lora.yaml, which --config 8xA100_lora.yaml then takes."),
            ("copy tiny_cpu.yaml mine.yaml", "Write it to another file."),
        ],
    )
    actions = parser.add_subparsers(dest="action", metavar="{copy}", parser_class=ArgumentParser)
    copying = actions.add_parser("copy", prog=f"{prog} copy", description="Copy a configuration. No file is replaced.")
    copying.add_argument("name", metavar="NAME", help="a name in the list, such as 8xA100_lora.yaml")
    copying.add_argument("to", metavar="TO", nargs="?", type=Path, help="a file or folder; default: this folder")
    args = parser.parse_args(arguments)
    with exit_on_user_error():
        if args.action == "copy":
            print(f"wrote {copy(args.name, args.to or Path())}")
        else:
            print("\n".join(list_lines()))


def list_lines() -> list[str]:
    """Return a line for each shipped configuration: its name, and the first line of its file."""
    names = config_names()
    width = max(map(len, names))
    return [f"{name:{width}}  {description(CONFIGS / name)}" for name in names]


def description(file: Path) -> str:
    """Return the first line of a configuration, which is a comment that says what it is for."""
    with file.open(encoding="utf-8") as lines:
        return next(lines).removeprefix("# ").strip()


def copy(name: str, to: Path) -> Path:
    """Copy a shipped configuration to a file, or into a folder, and return the new file.

    Raises ConfigError if there is no such configuration, if the file exists, or if it cannot be written.
    """
    source = config_file(name)
    if source is None:
        raise ConfigError(f"{name}: is no shipped configuration; {nearest_files(Path(name))}")
    target = to / source.name if to.is_dir() else to
    try:
        with source.open("rb") as read, target.open("xb") as written:
            shutil.copyfileobj(read, written)
    except FileExistsError:
        raise ConfigError(f"{target}: exists already; give another name, or remove it first") from None
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror}; give a file in a folder that you may write to") from None
    return target
