"""A run's folder tells whether the run before was killed, and only then."""

import json
import os
from pathlib import Path

import pytest

from trapo_lite.config import Config, validate
from trapo_lite.run.folder import RunFolder


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return validate({"run": {"name": "run", "dir": str(tmp_path)}})


def test_a_run_that_ends_itself_leaves_no_mark(config: Config) -> None:
    with RunFolder.open(config, restart=False) as folder:
        folder.mark.set()
        mark = json.loads((folder.path / "process.json").read_text())
        assert mark["process"] == os.getpid() and mark["host"] == os.uname().nodename
    with RunFolder.open(config, restart=False) as folder, pytest.raises(KeyError):
        assert folder.notes == []
        folder.mark.set()
        raise KeyError("a run that fails says why")
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize(
    ("metrics", "when"),
    [("", "before its first step was done"), ('{"step": 1}\n{"step": 2}\n{"st', "after step 2")],
)
def test_a_mark_that_was_left_is_told_until_a_start_is_accepted(config: Config, metrics: str, when: str) -> None:
    path = config.run.folder
    path.mkdir()
    (path / "metrics.jsonl").write_text(metrics)
    (path / "process.json").write_text('{"host": "alpha", "process": 12, "begun": "2026-11-29 14:03:07 +0100"}\n')
    with RunFolder.open(config, restart=False) as folder:
        assert folder.notes == [
            f"warning: {path}: the run before (process 12 on host alpha, begun 2026-11-29 14:03:07 +0100) ended {when} "
            "without a message: it was killed, memory ran out, or the machine stopped"
        ]
    with RunFolder.open(config, restart=False) as folder:  # the start before was refused, so nobody read the note
        assert len(folder.notes) == 1
        folder.mark.set()
    with RunFolder.open(config, restart=False) as folder:
        assert folder.notes == []


@pytest.mark.parametrize("text", ["", "[]", '{"host": 1}', "\x00", "[" * 100_000])
def test_a_damaged_mark_is_told_too(config: Config, text: str) -> None:
    config.run.folder.mkdir()
    (config.run.folder / "process.json").write_text(text)
    with RunFolder.open(config, restart=False) as folder:
        [note] = folder.notes
    assert "the run before (process not known) ended before its first step was done without a message" in note


def test_the_mark_of_a_run_that_is_renamed_goes_with_it(config: Config) -> None:
    config.run.folder.mkdir()
    (config.run.folder / "process.json").write_text("{}")
    with RunFolder.open(config, restart=True) as folder:
        [note] = folder.notes
    [old] = [path for path in folder.path.parent.iterdir() if ".old-" in path.name]
    assert note.endswith(f"is now in {old}") and (old / "process.json").read_text() == "{}"
