"""Define the arguments that several commands take, and a parser whose `--help` is a page."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from trapo_lite.config import Config, load_config
from trapo_lite.config.overrides import keys_of
from trapo_lite.config.shipped import taken_lines
from trapo_lite.core.errors import ConfigError
from trapo_lite.evaluation import REGISTRY
from trapo_lite.run.help_page import HelpPage, examples_text

MAX_RUNS = 5  # named in a message


class ArgumentParser(argparse.ArgumentParser):
    """Parse arguments, and name the nearest option for each unknown one.

    examples: arguments of the command, and what it does with them, for the end of the page
    """

    def __init__(self, *, prog: str, description: str = "", examples: Sequence[tuple[str, str]] = ()) -> None:
        epilog = examples_text(examples)
        self._given: list[str] = []
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=HelpPage, allow_abbrev=False
        )

    def parse_known_intermixed_args(self, args=None, namespace=None):
        """Parse the arguments, and keep them for messages."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        head, is_unknown, given = message.partition("unrecognized arguments: ")
        files = [word for word in self._given if word.endswith((".yaml", ".yml"))]
        if "required: --config" in message and files:
            message += f"; did you mean {' '.join(f'--config {file}' for file in files)}?"
        elif "required: --config" in message:
            message += "; `trapo-lite configs` lists those that come with it, such as --config tiny_cpu.yaml"
        if "required" in message and "--run" in message:
            message += _runs_here()
        if not head and is_unknown and (override := self._as_override(given.split()[0])) is not None:
            message += f"; write {override}"
        elif not head and is_unknown:
            names = " ".join(name for word in given.split() if (name := self._nearest(word.partition("=")[0])))
            message += f"; did you mean {names}?" if names else ""
        super().error(message)

    def _as_override(self, word: str) -> str | None:
        """Return --section.key VALUE or --section.key=VALUE as an override; None if it is not one of these."""
        key, _, value = word.removeprefix("--").partition("=")
        section, _, option = key.partition(".")
        field = Config.model_fields.get(section)
        if not word.startswith("--") or field is None or option not in keys_of(field):
            return None
        following = self._given[self._given.index(word) + 1 :] if word in self._given else []
        is_value = bool(following) and not following[0].startswith("--") and "=" not in following[0]
        return f"{key}={value or (following[0] if is_value else '...')}"

    def _nearest(self, word: str) -> str | None:
        """Return the option of the configuration that this word is called like, or the command's nearest option."""
        key = word.removeprefix("--").replace("-", "_")
        sections = [name for name, field in Config.model_fields.items() if key in keys_of(field)]
        sections.sort(key=lambda name: name != "eval" or "evaluate" not in self.prog)
        if word.startswith("--") and sections:
            return " or ".join(f"{section}.{key}=..." for section in sections)
        return next(iter(difflib.get_close_matches(word, self.options, n=1)), None)

    @property
    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--config",
        action="append",
        default=[],
        required=required,
        metavar="FILE.yaml",
        help="a YAML file; several are merged from left to right",
    )
    add_overrides(group)


def read_config(args: argparse.Namespace) -> Config:
    """Load the configuration. Lines on stderr say which shipped file was taken, and which keys were dropped."""

    def say(line: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            print(line, file=sys.stderr, flush=True)

    config = load_config(args.config, args.overrides, notify=say)
    for line in taken_lines(args.config):
        say(line)
    return config


def add_overrides(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="an option, such as optim.lr=2e-5")


def add_benchmark_arguments(parser: argparse.ArgumentParser, *, option: str = "--benchmarks") -> None:
    group = parser.add_argument_group("benchmarks")
    group.add_argument(
        option,
        dest="benchmarks",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME[=FILE]",
        help="benchmarks of --registry, such as aime24 or math500; NAME=FILE reads the problems from another file",
    )
    group.add_argument("--registry", type=Path, metavar="FILE", help=f"define benchmarks; default: {REGISTRY}")
    group.add_argument(
        "--partial", dest="allow_part", action="store_true", help="FILE may hold fewer problems than the benchmark"
    )


def check_benchmark_options(args: argparse.Namespace, *, option: str = "--benchmarks") -> None:
    """Raise ConfigError if an option about benchmarks is given without any."""
    if not args.benchmarks and (args.allow_part or args.registry is not None):
        given = "--partial" if args.allow_part else "--registry"
        raise ConfigError(f"{given}: is about benchmarks; name some with {option}, or leave it out")


def without_overrides(args: argparse.Namespace) -> argparse.Namespace:
    """Move overrides behind NAME[=FILE] ..., which takes all arguments, to their place."""
    strays = [text for text in args.benchmarks if "=" in text and "." in text.partition("=")[0]]
    args.benchmarks = [text for text in args.benchmarks if text not in strays]
    args.overrides = [*args.overrides, *strays]
    return args


def _runs_here() -> str:
    """Return the end of a message that lacks a run: the newest ones in runs/."""
    folders = [file.parent for file in Path("runs").glob("*/config.yaml")]
    newest = sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)[:MAX_RUNS]
    return f"; the newest here are {', '.join(map(str, newest))}" if newest else "; there is none in runs/ here"
