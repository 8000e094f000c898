"""Evaluate a model, or a run's adapter: `evaluate.py (--run DIR | --model PATH) [--benchmarks NAME ...] [...]`."""

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite.cli import evaluate

if __name__ == "__main__":
    evaluate()
