"""Define the commands that evaluate, compare and export what was trained."""

import contextlib
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trapo_lite.cli.arguments import (
    ArgumentParser,
    add_benchmark_arguments,
    add_config_arguments,
    add_overrides,
    check_benchmark_options,
    without_overrides,
)
from trapo_lite.cli.endings import exit_on_user_error, exit_when_interrupted
from trapo_lite.config.paths import check_name
from trapo_lite.config.shipped import taken_lines
from trapo_lite.core.errors import ConfigError
from trapo_lite.evaluation import REGISTRY
from trapo_lite.run.folder import final_adapter, load_run_config

if TYPE_CHECKING:
    from trapo_lite.exporting.hub_card import CardScore


def evaluate(arguments: Sequence[str] | None = None, *, prog: str = "evaluate.py") -> None:
    """Evaluate a model, or a run's adapter."""
    args = _evaluate_parser(prog).parse_intermixed_args(arguments)
    folders: list[Path] = []  # of results that the same command resumes
    with exit_on_user_error(), exit_when_interrupted(lambda: any(map(_has_results, folders))):
        from trapo_lite.evaluation.target import target_from_arguments

        options = vars(without_overrides(args))
        others = [text for text in args.overrides if "=" not in text]
        if args.data is not None and others:
            raise ConfigError(
                f"--data: takes one file, found also {others[0]!r}; evaluate each file by itself, or join them"
            )
        folder = options.pop("regrade")
        if folder is not None:
            _check_regrade_options(options)
            from trapo_lite.evaluation.regrade import regrade

            regrade(folder, options["overrides"], out=options["out"])
        else:
            check_benchmark_options(args)
            options["registry"] = options["registry"] or REGISTRY
            target = target_from_arguments(**options)
            for line in taken_lines(args.config):
                print(line, file=sys.stderr, flush=True)
            check_name(target.config.model.name)
            from trapo_lite.evaluation.evaluate import evaluate as evaluate_job

            folders.append(target.out)
            evaluate_job(target)


def _has_results(folder: Path) -> bool:
    return any(folder.glob("*.partial.jsonl"))


def _evaluate_parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog,
        description="Evaluate a model, or a run's adapter on its base, on problems or benchmarks. An "
        "interrupted evaluation is resumed by the same command.",
        examples=[
            ("--run runs/first", "Evaluate a run's adapter on the problems of eval.data."),
            ("--run runs/first --base --data problems.jsonl", "Evaluate the run's base on problems of your own."),
            ("--model runs/first/merged --benchmarks aime24 math500", "Evaluate an exported checkpoint."),
        ],
    )
    group = parser.add_argument_group("what to evaluate (one of the first three)")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, metavar="DIR", help="a run's folder: its base with RUN/adapter, unmerged")
    which.add_argument("--model", metavar="PATH", help="a model's folder (a merged checkpoint, say) or hub id")
    which.add_argument("--regrade", type=Path, metavar="DIR", help="grade the answers in DIR again; sample nothing")
    group.add_argument("--adapter", type=Path, metavar="DIR", help="with --run: another adapter of the run")
    group.add_argument("--base", action="store_true", help="with --run: the base without an adapter")
    group = parser.add_argument_group("problems and results")
    group.add_argument("--data", metavar="FILE", help="problems; default: eval.data")
    group.add_argument("--num-samples", type=int, metavar="K", help="answers per problem; default: the benchmark's")
    group.add_argument("--out", type=Path, metavar="DIR", help="folder of results; default: RUN/eval/... or eval/...")
    group.add_argument("--restart", action="store_true", help="sample existing answers again")
    add_benchmark_arguments(parser)
    add_config_arguments(parser, required=False)
    return parser


def _check_regrade_options(options: dict) -> None:
    """Raise ConfigError if an option of sampling is given with --regrade."""
    drawing = ("benchmarks", "data", "adapter", "base", "restart", "num_samples", "allow_part")
    given = [name for name in (*drawing, "registry", "config") if options[name] not in (None, False, [])]
    if given:
        option = "--partial" if given[0] == "allow_part" else "--" + given[0].replace("_", "-")
        raise ConfigError(f"--regrade: samples nothing, so {option} has no effect; leave it out")


def compare(arguments: Sequence[str] | None = None, *, prog: str = "compare.py") -> None:
    """Compare results."""
    parser = ArgumentParser(
        prog=prog,
        description="Compare evaluations, with intervals and paired tests. Every row is tested against the first.",
        examples=[
            ("runs/first/eval/base runs/first/eval/adapter", "Compare a run's adapter with its base."),
            ("runs/first runs/second --published", "Compare two runs, beside published scores."),
        ],
    )
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


def export(arguments: Sequence[str] | None = None, *, prog: str = "export.py") -> None:
    """Merge a run's adapter into its base, and upload the result if that is asked for."""
    args = _export_parser(prog).parse_intermixed_args(arguments)
    with exit_on_user_error(), exit_when_interrupted():
        _check_export_options(args)
        config = load_run_config(args.run)  # before what takes seconds to import; overrides are about merging
        load_run_config(args.run, overrides=args.overrides)
        if args.push_to_hub is None:
            _merge(args)
            return
        from trapo_lite.exporting.hub import ADAPTER_FILES, Target, adapter_folder, push, steps_of

        target = Target(args.push_to_hub, private=args.private)
        target.check_name()
        folder = adapter_folder(args.run, args.adapter) if args.adapter_only else args.out or args.run / "merged"
        if not args.dry_run:
            target.create()
        if not args.adapter_only:
            _merge_if_needed(args, folder)
        names = ADAPTER_FILES if args.adapter_only else None
        lines = push(
            folder,
            target,
            config,
            steps=steps_of(args.run, args.adapter),
            names=names,
            scores=_scores_of(args.run, args.adapter),
            dry_run=args.dry_run,
        )
    print("\n".join(lines))


NOT_OF_MERGING = {"algorithm", "lora", "optim", "reward", "train"}  # sections of the configuration


def _export_parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog,
        description="Merge a run's adapter into its base, and write a checkpoint that transformers and vLLM load. "
        "It is refused if its log-probs are not those of base and adapter.",
        examples=[
            ("--run runs/first", "Write runs/first/merged."),
            ("--run runs/first --adapter runs/first/checkpoints/step-000020 --out step-20", "Export a checkpoint."),
            ("--run runs/first --push-to-hub OWNER/NAME --dry-run", "Merge, and show what would be uploaded."),
            ("--run runs/first --push-to-hub OWNER/NAME --adapter-only", "Upload the adapter alone."),
        ],
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="default: RUN/adapter")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/merged")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: model.dtype of the run")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")
    group = parser.add_argument_group("the Hugging Face hub")
    group.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the checkpoint, with a card")
    group.add_argument("--adapter-only", action="store_true", help="upload the adapter alone; merge nothing")
    group.add_argument("--private", action="store_true", help="make a new repository private")
    group.add_argument("--dry-run", action="store_true", help="upload nothing; print the files and the card")
    add_overrides(parser)
    return parser


def _check_export_options(args: Namespace) -> None:
    """Raise ConfigError for an option without effect."""
    for option in ("adapter_only", "private", "dry_run"):
        if args.push_to_hub is None and getattr(args, option):
            raise ConfigError(
                f"--{option.replace('_', '-')}: has no effect without --push-to-hub; add that, or leave it out"
            )
    for option in ("out", "dtype", "overwrite"):
        if args.adapter_only and getattr(args, option):
            raise ConfigError(f"--{option}: has no effect with --adapter-only, which merges nothing; leave it out")
    if idle := next((text for text in args.overrides if text.partition(".")[0] in NOT_OF_MERGING), None):
        raise ConfigError(f"{idle}: has no effect, because nothing is trained or graded here; leave it out")
    if args.adapter_only and args.overrides:
        raise ConfigError(f"{args.overrides[0]}: has no effect with --adapter-only, which merges nothing; leave it out")


def _merge(args: Namespace) -> None:
    from trapo_lite.exporting.merge import export_run

    report = export_run(
        args.run, args.overrides, adapter_dir=args.adapter, out=args.out, dtype=args.dtype, overwrite=args.overwrite
    )
    print("\n".join(report.lines()))


def _merge_if_needed(args: Namespace, out: Path) -> None:
    """Merge, unless the checkpoint is there and --overwrite was not given, so that an upload can be repeated."""
    from trapo_lite.exporting.hub import is_exported

    if args.overwrite or not is_exported(args.run, args.adapter, out):
        _merge(args)
    elif args.dtype or args.overrides:
        option = f"--dtype {args.dtype}" if args.dtype else args.overrides[0]
        raise ConfigError(f"{option}: has no effect on {out}, which is there already; add --overwrite to merge again")
    else:
        print(f"{out}: is there already; it is uploaded as it is (--overwrite merges again)")


def _scores_of(run: Path, adapter: Path | None) -> "list[CardScore]":
    """Return the results of the run's evaluations of this adapter and of the base, for a card."""
    from trapo_lite.evaluation.compare import read_rows
    from trapo_lite.exporting.hub_card import CardScore
    from trapo_lite.model.base import weights_fingerprint

    weights = weights_fingerprint(str(adapter or final_adapter(run)))
    rows = []
    if (run / "eval").is_dir():
        with contextlib.suppress(ConfigError):  # no finished evaluation
            rows = read_rows(run)
    return [
        CardScore(Path(row.name).name, name, len(score.result.groups), score.result.accuracy, score.result.interval_95)
        for row in rows
        for name, score in row.scores.items()
        if score.summary.get("adapter_weights") in (None, weights)
    ]
