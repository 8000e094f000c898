"""A run says after its first step how much time is left, and whether there is room on the disk."""

import re
from pathlib import Path

import pytest

from trapo_lite.config import validate
from trapo_lite.run import outlook
from trapo_lite.run.folder import bytes_of_checkpoints
from trapo_lite.run.outlook import disk_line, outlook_line


def test_the_time_left_counts_evaluations_by_their_number(tmp_path: Path) -> None:
    config = validate(
        {"train": {"max_steps": 101}, "eval": {"every": 25, "data": "x.jsonl"}, "run": {"dir": str(tmp_path)}}
    )
    row = {"step": 1, "time/step": 95.0, "time/eval": 35.0}
    # 100 steps of 60 s and 4 evaluations of 35 s are 102.3 minutes; 101 files of 1 MiB and 99 MiB are 200 MiB.
    line = outlook_line(row, config, rollout_bytes=2**20, checkpoint_bytes=99 * 2**20)
    assert line == (
        f"about 103 minutes left at the pace of this step (100 steps); the run will take about 0.20 GiB in {tmp_path}/"
        "run"
    )
    line = outlook_line(row | {"time/eval": None}, config, rollout_bytes=0, checkpoint_bytes=0)
    assert line.startswith("about 3 hours left at the pace of this step (100 steps without evaluations); ")


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (None, r"warning: run.dir: .* cannot be written"),
        (2.0**20, r"warning: run.dir: checkpoints take 3.00 MiB in .*/run, but 1.00 MiB are free; make room"),
        (2.0**40, r"disk      checkpoints take 3.00 MiB in .*/run, 1024.00 GiB are free"),
    ],
)
def test_room_for_checkpoints(
    free: float | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook, "free_bytes", lambda folder: free)
    line = disk_line(validate({"run": {"dir": str(tmp_path)}}), 3 * 2.0**20)
    assert re.match(expected, line), line


def test_checkpoints_that_are_replaced_count_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook, "free_bytes", lambda folder: 2.0**20)
    config = validate({"run": {"dir": str(tmp_path)}})
    for name in ("step-000001", "damaged-step-000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "optimizer.safetensors").write_bytes(bytes(2**21))
    (tmp_path / "step-000001" / "dangling").symlink_to(tmp_path / "nothing")
    written = bytes_of_checkpoints(tmp_path)
    assert written == 2**21
    assert re.match(
        "disk .* of which 2.00 MiB are there already", disk_line(config, 3 * 2.0**20, written_bytes=written)
    )
    assert disk_line(config, 3 * 2.0**20 + 1, written_bytes=written).startswith("warning: ")
