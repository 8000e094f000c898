"""A changed file of a reward function is noticed without importing it."""

from pathlib import Path

import pytest
from reward_sections import section_of, write

from trapo_lite.reward.fingerprints import function_fingerprints


def test_a_changed_file_has_another_fingerprint(write) -> None:
    functions = section_of(write("def score(response): return 1")("score")).own_functions
    before = function_fingerprints(functions)
    write("def score(response): return 2")
    assert before.keys() == function_fingerprints(functions).keys() and before != function_fingerprints(functions)


def test_a_changed_module_of_the_working_folder_has_another_fingerprint_and_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "never_imported").mkdir()
    (tmp_path / "never_imported/__init__.py").write_text("raise SystemExit\n")
    (tmp_path / "never_imported/rewards.py").write_text("def score(response): return 1\n")
    functions = section_of({"type": "function", "path": "never_imported.rewards:score"}).own_functions
    [before] = function_fingerprints(functions).values()
    (tmp_path / "never_imported/rewards.py").write_text("def score(response): return 2\n")
    [after] = function_fingerprints(functions).values()
    assert "unknown" not in (before, after) and before != after
