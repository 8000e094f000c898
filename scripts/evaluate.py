"""What a run's adapter, or any model, solves: `evaluate.py (--run runs/NAME | --model PATH) [--data FILE] [...]`."""

import argparse
from pathlib import Path

from trapo_lite import cli

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, metavar="DIR", help="a run's folder: its base with RUN/adapter, unmerged")
    which.add_argument("--model", metavar="PATH", help="a model's folder (a merged checkpoint, say) or hub id")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="with --run: another adapter of it")
    parser.add_argument("--base", action="store_true", help="with --run: the base without an adapter")
    parser.add_argument("--data", metavar="FILE", help="problems; default: eval.data")
    parser.add_argument("--num-samples", type=int, metavar="K", help="answers a problem; default: eval.num_samples")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: RUN/eval/... or eval/...")
    cli.add_config_arguments(parser, required=False)
    args = parser.parse_intermixed_args()
    with cli.exit_on_user_error():
        from trapo_lite.evaluate import evaluate, target_from_arguments

        evaluate(target_from_arguments(**vars(args)))
