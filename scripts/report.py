"""A page about runs, with curves and rollouts to read: `python scripts/report.py RUN ... [--out FILE]`."""

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite.cli import report

if __name__ == "__main__":
    report()
