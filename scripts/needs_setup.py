"""Imported first by the scripts: ends with one line where this Python lacks the project's packages."""

import importlib.util
import sys
from pathlib import Path

NEEDED = ("trapo_lite", "pydantic", "yaml", "torch", "transformers")

if any(importlib.util.find_spec(name) is None for name in NEEDED):
    python = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"
    cure = f"use {python}" if python.exists() else "run `make setup` once, then use .venv/bin/python"
    sys.exit(f"error: {sys.executable} lacks the packages of trapo_lite; {cure}, or activate .venv")
