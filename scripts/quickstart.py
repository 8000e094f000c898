"""Evaluate, train, merge and evaluate again, on the tiny world: `quickstart.py [--seed N] [--restart]`."""

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite.cli import quickstart

if __name__ == "__main__":
    quickstart()
