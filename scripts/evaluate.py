"""Evaluate a model, or a run's adapter: `evaluate.py (--run DIR | --model PATH) [--benchmarks NAME ...] [...]`."""

from pathlib import Path

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite import cli

if __name__ == "__main__":
    parser = cli.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, metavar="DIR", help="a run's folder: its base with RUN/adapter, unmerged")
    which.add_argument("--model", metavar="PATH", help="a model's folder (a merged checkpoint, say) or hub id")
    which.add_argument("--regrade", type=Path, metavar="DIR", help="grade the answers in DIR again; nothing is drawn")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="with --run: another adapter of it")
    parser.add_argument("--base", action="store_true", help="with --run: the base without an adapter")
    parser.add_argument("--data", metavar="FILE", help="problems; default: eval.data")
    cli.add_benchmark_arguments(parser)
    parser.add_argument("--num-samples", type=int, metavar="K", help="answers a problem; default: the benchmark's")
    parser.add_argument("--out", type=Path, metavar="DIR", help="of the results; default: RUN/eval/... or eval/...")
    parser.add_argument("--restart", action="store_true", help="draw again what is already there")
    cli.add_config_arguments(parser, required=False)
    cli.evaluate(parser.parse_intermixed_args())
