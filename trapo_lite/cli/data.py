"""Define the command that reports on data and builds training sets."""

from collections.abc import Sequence
from pathlib import Path

from trapo_lite.cli.arguments import (
    ArgumentParser,
    add_benchmark_arguments,
    add_config_arguments,
    check_benchmark_options,
    read_config,
    without_overrides,
)
from trapo_lite.cli.endings import exit_on_user_error, exit_when_interrupted
from trapo_lite.config.overrides import sets
from trapo_lite.config.paths import check_sources
from trapo_lite.core.errors import ConfigError
from trapo_lite.evaluation import REGISTRY


def prepare(arguments: Sequence[str] | None = None, *, prog: str = "prepare_data.py") -> None:
    """Report on the data, or build a training set."""
    args = _prepare_parser(prog).parse_intermixed_args(arguments)
    work = None if args.out is None else Path(args.out).with_suffix(".work")
    with exit_on_user_error(), exit_when_interrupted(lambda: work is not None and work.is_dir()):
        if not args.config and not any(sets("model.name", [text]) for text in args.overrides):
            raise ConfigError("--config: is needed for its tokenizer; give the configuration that you train with")
        config = read_config(args)
        check_sources(config.data.train)  # before what takes seconds to import
        from trapo_lite.curation.prepare import prepare as prepare_job
        from trapo_lite.evaluation.registry import choose, load_registry

        args = without_overrides(args)
        if args.remove and not args.benchmarks:
            raise ConfigError("--remove: drops what --decontaminate finds; name benchmarks with that")
        check_benchmark_options(args, option="--decontaminate")
        if len(args.second) > 1:
            raise ConfigError(f"--second: found {len(args.second)} sources; give one, with all traces in it")
        overlap = choose(load_registry(args.registry or REGISTRY), args.benchmarks, option="--decontaminate")
        prepare_job(
            config,
            out=args.out,
            second=args.second[0] if args.second else None,
            overlap=overlap,
            remove_overlap=args.remove,
            allow_part=args.allow_part,
            restart=args.restart,
            verify=args.verify,
            inspect=args.inspect,
        )


def _prepare_parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog,
        description="Report what the trainer reads from data.train. With --out, write a training set of it.",
        examples=[
            ("--config tiny_cpu.yaml data.train=YOURS.jsonl --verify", "Check your data and its expert solutions."),
            ("--config tiny_cpu.yaml --inspect 0", "Show the first problem with its prefixes and losses."),
            ("--config tiny_cpu.yaml data.train=YOURS.jsonl --out SET.jsonl", "Build a training set."),
        ],
    )
    add_config_arguments(parser, required=False)
    group = parser.add_argument_group("report")
    group.add_argument("--verify", action="store_true", help="grade the expert solutions against the answers")
    group.add_argument("--inspect", metavar="ID_OR_INDEX", help="show one problem, its prefixes and its losses")
    group = parser.add_argument_group("training set")
    group.add_argument("--out", metavar="FILE.jsonl", help="build a training set; an interrupted build resumes")
    more = "with --out: more solutions of these problems"
    group.add_argument("--second", action="append", default=[], metavar="SOURCE", help=more)
    group.add_argument("--restart", action="store_true", help="with --out: start again, even if there is a set")
    group.add_argument("--remove", action="store_true", help="with --decontaminate: drop the rows it finds")
    add_benchmark_arguments(parser, option="--decontaminate")
    return parser
