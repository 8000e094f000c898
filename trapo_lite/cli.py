"""Implement the scripts' common command line. A user's mistake gives one message and exit code 2, no traceback."""

import argparse
import contextlib
import difflib
import errno
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from trapo_lite.config import Config, load_config
from trapo_lite.config.loading import keys_of, sets
from trapo_lite.config.paths import check_name, check_paths, check_sources
from trapo_lite.core.errors import ConfigError, TrapoLiteError
from trapo_lite.run.folder import load_run_config

FULL = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room and run the same command again to resume")
NOT_WRITABLE = (errno.ENOTDIR, errno.EACCES, errno.EROFS, errno.EPERM)
DISK_ERRORS = FULL | dict.fromkeys(NOT_WRITABLE, "choose a folder you may write to (run.dir=...)")

REGISTRY = Path(__file__).with_name("evaluation") / "benchmarks.yaml"


class ArgumentParser(argparse.ArgumentParser):
    """Parse arguments, and name the nearest option for each unknown one."""

    def error(self, message: str) -> NoReturn:
        head, is_unknown, given = message.partition("unrecognized arguments: ")
        if not head and is_unknown:
            names = " ".join(name for word in given.split() if (name := self._nearest(word.partition("=")[0])))
            message += f"; did you mean {names}?" if names else ""
        super().error(message)

    def _nearest(self, word: str) -> str | None:
        """Return the option of the configuration that this word is called like, or the nearest option of the script."""
        key = word.removeprefix("--").replace("-", "_")
        sections = [name for name, field in Config.model_fields.items() if key in keys_of(field)]
        sections.sort(key=lambda name: name != "eval" or self.prog != "evaluate.py")
        if word.startswith("--") and sections:
            return " or ".join(f"{section}.{key}=..." for section in sections)
        return next(iter(difflib.get_close_matches(word, self.options, n=1)), None)

    @property
    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--config", action="append", default=[], required=required, metavar="FILE.yaml", help="merged left to right"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as optim.lr=2e-5")


def train(arguments: Sequence[str] | None = None) -> None:
    """Run scripts/train.py."""
    parser = ArgumentParser(prog="train.py", description="Train a LoRA policy. An existing run is resumed.")
    add_config_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="validate, print the plan of a step and end")
    parser.add_argument("--restart", action="store_true", help="rename an existing run of this name and start again")
    args = parser.parse_intermixed_args(arguments)
    with exit_on_user_error():
        config = load_config(args.config, args.overrides)
        check_paths(config)  # before what takes seconds to import
        if args.dry_run:
            print("\n".join(_dry_run(config)))
            return
        with exit_when_stopped():
            from trapo_lite.run.launch import end_with_launcher

            end_with_launcher()  # before what takes seconds to import
            from trapo_lite.training.trainer import train as train_job

            train_job(config, restart=args.restart)


def _dry_run(config: Config) -> list[str]:
    """Check the model and its tokenizer, and return the plan of a step."""
    from trapo_lite.data.template import check_prompt
    from trapo_lite.data.tokens import load_tokenizer
    from trapo_lite.engines.start import check_served
    from trapo_lite.model.base import model_lines
    from trapo_lite.model.layout import check_model
    from trapo_lite.model.saved_adapter import check_start
    from trapo_lite.planning.report import plan_lines
    from trapo_lite.training.inputs import check_start_fits

    if not Path(config.model.name).is_dir():  # the hub is not asked
        if config.lora.init_from is not None:
            check_start(config.lora)
        return [
            *plan_lines(config),
            "          the model is no folder here, so it is taken for a hub id and was not checked",
        ]
    layout = check_model(config)
    if config.uses_engine:
        check_served(config)
    check_start_fits(config, reads_weights=False)
    prompt = check_prompt(config.data, load_tokenizer(config.model.name), model=config.model.name)
    return [*plan_lines(config), *model_lines(config.model), layout.line or "layout: tree", prompt]


def plan(arguments: Sequence[str] | None = None) -> None:
    """Run scripts/plan.py."""
    parser = ArgumentParser(prog="plan.py", description="Print the memory and time of a step; load no model.")
    add_config_arguments(parser)
    parser.add_argument("--gpu-memory", metavar="24GB", help="memory of each GPU that CUDA gives out; default: --gpu's")
    parser.add_argument("--gpu", metavar="NAME", help="such as A100, 3090 or 'RTX 4090' (default)")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="trainer processes, one for each GPU")
    parser.add_argument("--sharded", action="store_true", help="shard the base over the GPUs, by FSDP2")
    args = parser.parse_intermixed_args(arguments)
    with exit_on_user_error():
        config = load_config(args.config, args.overrides)
        from trapo_lite.planning.report import memory_report, parse_memory

        memory = None if args.gpu_memory is None else parse_memory(args.gpu_memory)
        if args.num_gpus < 1:
            raise ConfigError(f"--num-gpus: found {args.num_gpus}; give 1 or more")
        report = memory_report(
            config, gpu_name=args.gpu, gpu_memory=memory, num_gpus=args.num_gpus, is_sharded=args.sharded
        )
        print("\n".join(report.lines))
        if report.problem is not None:
            raise SystemExit(1)


def add_benchmark_arguments(parser: argparse.ArgumentParser, *, option: str = "--benchmarks") -> None:
    parser.add_argument(
        option, dest="benchmarks", action="extend", nargs="+", default=[], metavar="NAME[=FILE]", help="of --registry"
    )
    parser.add_argument("--registry", type=Path, metavar="FILE", help=f"default: {REGISTRY}")
    parser.add_argument(
        "--partial", dest="allow_part", action="store_true", help="FILE may hold fewer problems than the benchmark"
    )


def _check_benchmark_options(args: argparse.Namespace, *, option: str = "--benchmarks") -> None:
    if not args.benchmarks and (args.allow_part or args.registry is not None):
        given = "--partial" if args.allow_part else "--registry"
        raise ConfigError(f"{given}: is about benchmarks; name some with {option}, or leave it out")


def _without_overrides(args: argparse.Namespace) -> argparse.Namespace:
    """Move overrides behind NAME[=FILE] ..., which takes all arguments, to their place."""
    strays = [text for text in args.benchmarks if "=" in text and "." in text.partition("=")[0]]
    args.benchmarks = [text for text in args.benchmarks if text not in strays]
    args.overrides = [*args.overrides, *strays]
    return args


def evaluate(arguments: Sequence[str] | None = None) -> None:
    """Run scripts/evaluate.py."""
    parser = ArgumentParser(prog="evaluate.py", description="Evaluate a model, or a run's adapter.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, metavar="DIR", help="a run's folder: its base with RUN/adapter, unmerged")
    which.add_argument("--model", metavar="PATH", help="a model's folder (a merged checkpoint, say) or hub id")
    which.add_argument("--regrade", type=Path, metavar="DIR", help="grade the answers in DIR again; sample nothing")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="with --run: another adapter of the run")
    parser.add_argument("--base", action="store_true", help="with --run: the base without an adapter")
    parser.add_argument("--data", metavar="FILE", help="problems; default: eval.data")
    add_benchmark_arguments(parser)
    parser.add_argument("--num-samples", type=int, metavar="K", help="answers per problem; default: the benchmark's")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of results; default: RUN/eval/... or eval/...")
    parser.add_argument("--restart", action="store_true", help="sample existing answers again")
    add_config_arguments(parser, required=False)
    args = parser.parse_intermixed_args(arguments)
    with exit_on_user_error(), exit_when_interrupted():
        from trapo_lite.evaluation.target import target_from_arguments

        options = vars(_without_overrides(args))
        folder = options.pop("regrade")
        if folder is not None:
            drawing = ("benchmarks", "data", "adapter", "base", "restart", "num_samples", "allow_part")
            unused = (*drawing, "registry", "config")
            given = [name for name in unused if options[name] not in (None, False, [])]
            if given:
                option = "--partial" if given[0] == "allow_part" else "--" + given[0].replace("_", "-")
                raise ConfigError(f"--regrade: samples nothing, so {option} has no effect; leave it out")
            from trapo_lite.evaluation.regrade import regrade

            regrade(folder, options["overrides"], out=options["out"])
        else:
            _check_benchmark_options(args)
            options["registry"] = options["registry"] or REGISTRY
            target = target_from_arguments(**options)
            check_name(target.config.model.name)
            from trapo_lite.evaluation.evaluate import evaluate as evaluate_job

            evaluate_job(target)


def compare(arguments: Sequence[str] | None = None) -> None:
    """Run scripts/compare.py."""
    parser = ArgumentParser(prog="compare.py", description="Compare results, with intervals and paired tests.")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of results (NAME.json); a run's: all in RUN/eval"
    )
    parser.add_argument("--published", action="store_true", help="add rows with published scores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and tests here")
    args = parser.parse_args(arguments)
    with exit_on_user_error():
        from trapo_lite.evaluation.compare import PUBLISHED
        from trapo_lite.evaluation.compare import compare as compare_job

        compare_job(args.runs, published=PUBLISHED if args.published else None, out=args.json)


def export(arguments: Sequence[str] | None = None) -> None:
    """Run scripts/export.py."""
    parser = ArgumentParser(prog="export.py", description="Merge a run's adapter into its base, and compare the two.")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="default: RUN/adapter")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/merged")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: model.dtype of the run")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = vars(parser.parse_intermixed_args(arguments))
    with exit_on_user_error():
        load_run_config(args["run"])  # before what takes seconds to import
        from trapo_lite.exporting.merge import export_run

        report = export_run(args.pop("run"), args.pop("overrides"), adapter_dir=args.pop("adapter"), **args)
    print("\n".join(report.lines()))


def prepare(arguments: Sequence[str] | None = None) -> None:
    """Run scripts/prepare_data.py."""
    parser = ArgumentParser(prog="prepare_data.py", description="Report what the trainer reads from data.train.")
    add_config_arguments(parser, required=False)
    parser.add_argument("--out", metavar="FILE.jsonl", help="build a training set; an interrupted build resumes")
    more = "with --out: more solutions of these problems"
    parser.add_argument("--second", action="append", default=[], metavar="SOURCE", help=more)
    parser.add_argument("--restart", action="store_true", help="with --out: start again, even if there is a set")
    add_benchmark_arguments(parser, option="--decontaminate")
    parser.add_argument("--remove", action="store_true", help="with --decontaminate: drop the rows it finds")
    parser.add_argument("--verify", action="store_true", help="grade the expert solutions against the answers")
    parser.add_argument("--inspect", metavar="ID_OR_INDEX", help="show one problem, its prefixes and its losses")
    args = parser.parse_intermixed_args(arguments)
    with exit_on_user_error(), exit_when_interrupted():
        if not args.config and not any(sets("model.name", [text]) for text in args.overrides):
            raise ConfigError("--config: is needed for its tokenizer; give the configuration that you train with")
        config = load_config(args.config, args.overrides)
        check_sources(config.data.train)  # before what takes seconds to import
        from trapo_lite.curation.prepare import prepare as prepare_job
        from trapo_lite.evaluation.registry import choose, load_registry

        args = _without_overrides(args)
        if args.remove and not args.benchmarks:
            raise ConfigError("--remove: drops what --decontaminate finds; name benchmarks with that")
        _check_benchmark_options(args, option="--decontaminate")
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


@contextlib.contextmanager
def exit_when_interrupted() -> Iterator[None]:
    """End with one line and exit code 130 on Ctrl-C inside."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped by SIGINT; run the same command again to resume", file=sys.stderr)
        raise SystemExit(130) from None


@contextlib.contextmanager
def exit_when_stopped() -> Iterator[None]:
    """End the process as a shell expects, after a SIGTERM or SIGINT that the trainer handled inside."""
    from trapo_lite.run.launch import Stopped

    try:
        with exit_when_interrupted():  # before the loop began, or the second signal
            yield
    except Stopped as stopped:
        print(f"{stopped}; run the same command again to resume from the last checkpoint", file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn the project's own errors inside into one message on stderr and exit code 2."""
    try:
        yield
    except TrapoLiteError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        written = error.filename2 or error.filename or "the run folder"  # filename2 is the target of a copy
        print(f"error: {written}: {error.strerror}; {DISK_ERRORS[error.errno]}", file=sys.stderr)
        raise SystemExit(2) from None
