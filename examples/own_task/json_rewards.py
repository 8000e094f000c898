"""Reward a response that is a JSON object with the steps and the right sum, and nothing else."""

import json


def score(response: str, row: dict) -> float:
    """Return 1 for the right object, 0.1 for an object with another sum, 0 for anything else.

    Nothing here may raise an error: a response that is no JSON is a bad response and must count as one.
    """
    try:
        found = json.loads(response)
    except ValueError:
        return 0.0
    if not isinstance(found, dict) or found.keys() != {"steps", "sum"}:
        return 0.0
    return 1.0 if found["sum"] == row["total"] else 0.1
