"""Define the commands that show runs in a browser."""

from collections.abc import Sequence
from pathlib import Path

from trapo_lite.cli.arguments import ArgumentParser
from trapo_lite.cli.endings import exit_on_user_error, exit_when_interrupted


def report(arguments: Sequence[str] | None = None, *, prog: str = "report.py") -> None:
    """Write a page about runs."""
    parser = ArgumentParser(
        prog=prog,
        description="Write one HTML file about runs: what was reached, curves, evaluations, rollouts to read and "
        "options. It needs no network and no server. Of several runs it shows the curves together, and what differs.",
        examples=[
            ("runs/first", "Write runs/first/report.html."),
            ("runs/first runs/second --out both.html", "Compare two runs on one page."),
        ],
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, runs/NAME")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: RUN/report.html; of several runs comparison.html, here"
    )
    args = parser.parse_args(arguments)
    with exit_on_user_error(), exit_when_interrupted():
        from trapo_lite.report.page import report as report_job

        file = report_job(args.runs, args.out)
    print(f"{file}: open it in a browser")
