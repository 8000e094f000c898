"""Evaluate on problems and benchmarks, and compare results."""

from pathlib import Path

REGISTRY = Path(__file__).with_name("benchmarks.yaml")
