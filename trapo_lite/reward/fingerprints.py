"""Identify the rules and functions that decide rewards, so that a change of them is noticed."""

import hashlib
import importlib.util
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
    """Return a hash of the file that holds each function, by the function's path. What it imports is not included."""
    return {function.path: _hash_of(function.path.rpartition(":")[0]) for function in functions}


def _hash_of(where: str) -> str:
    try:
        if where.endswith(".py"):
            file = Path(where).expanduser()
        else:
            spec = importlib.util.find_spec(where)
            if spec is None or spec.origin is None:
                return "unknown"
            file = Path(spec.origin)
        return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    except Exception:  # of a package that is imported to find its module, too; the workers say what is wrong with it
        return "unknown"
