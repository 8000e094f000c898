"""Results side by side, with intervals and paired tests: `python scripts/compare.py RUN ... [--published]`."""

from pathlib import Path

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite import cli

if __name__ == "__main__":
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of results (NAME.json); a run's: all in RUN/eval"
    )
    parser.add_argument("--published", action="store_true", help="scores of the literature as rows below")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and tests here")
    args = parser.parse_args()
    with cli.exit_on_user_error():
        from trapo_lite.evaluation.compare import PUBLISHED, compare

        compare(args.runs, published=PUBLISHED if args.published else None, out=args.json)
