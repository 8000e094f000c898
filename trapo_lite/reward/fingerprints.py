"""Identify the rules and functions that decide rewards, so that a change of them is noticed."""

import hashlib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from trapo_lite.config.rewards import Function


def verifier_fingerprint() -> str:
    """Return math-verify's version and a hash of trapo_lite.reward, which identify the grading rules."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return f"math-verify {version('math-verify')}, rules {digest.hexdigest()[:12]}"


def function_fingerprints(functions: Sequence[Function]) -> dict[str, str]:
    """Return a hash of the file that holds each function, by the function's name. What it imports is not included."""
    return {function.label: _hash_of(function.path.rpartition(":")[0]) for function in functions}


def _hash_of(where: str) -> str:
    file = Path(where).expanduser() if where.endswith(".py") else _file_of_module(where)
    if file is None or not file.is_file():  # the workers say what is wrong with it
        return "unknown"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _file_of_module(name: str) -> Path | None:
    """Return the file of a module where a worker would find it. Nothing is imported, as `find_spec` would do."""
    path = Path(*name.split("."))
    for folder in (Path.cwd(), *map(Path, sys.path)):
        for file in (folder / path / "__init__.py", folder / path.with_suffix(".py")):
            if file.is_file():
                return file
    return None
