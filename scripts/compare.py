"""Results side by side, with intervals and paired tests: `python scripts/compare.py RUN ... [--published]`."""

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite.cli import compare

if __name__ == "__main__":
    compare()
