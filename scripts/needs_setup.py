"""End with one line if this Python lacks the packages, and on Ctrl-C. The scripts import this module first."""

import importlib.util
import sys
from pathlib import Path

NEEDED = ("trapo_lite", "pydantic", "yaml", "torch", "transformers")

if any(importlib.util.find_spec(name) is None for name in NEEDED):
    venv = Path(__file__).resolve().parents[1] / ".venv"
    stamp = venv / "setup.json"
    is_complete = stamp.is_file() and '"finished": true' in stamp.read_text()
    cure = f"use {venv}/bin/python, or activate .venv" if is_complete else "run `make setup`, then use .venv/bin/python"
    sys.exit(f"error: {sys.executable} lacks the packages of trapo_lite; {cure}")

from trapo_lite.run.interrupts import end_at_once  # noqa: E402 - the check above says that the package is there

end_at_once()
