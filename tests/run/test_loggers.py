"""The trackers get every step once, also where a resumed run repeats steps, and never lose a run.

wandb and trackio run in processes of their own, offline, and are read back from their files.
"""

import importlib.metadata
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from trapo_lite.config import Config, validate
from trapo_lite.core.errors import ConfigError
from trapo_lite.run import loggers
from trapo_lite.run.loggers import COLUMNS, MAX_SHOWN, TensorBoardLogger, check_loggers, open_loggers
from trapo_lite.run.processes import Ranks

ROOT = Path(__file__).parents[2]
ROLLOUT = {
    "problem_id": "p|1", "prompt": "1+1?", "prefix": "One\nand", "completion": "2", "reward": 1.0, "verdict": "correct",
    "advantage": 0.5,
}  # fmt: skip
SECOND = {**ROLLOUT, "problem_id": "p2", "reward": None, "completion": "x" * (MAX_SHOWN - 1) + "yz"}

# Arguments: configuration, first step, last step, and what is done before each step.
PROGRAM = f"""
import json, os, signal, subprocess, sys
from trapo_lite.config import load_config
from trapo_lite.run.loggers import open_loggers
from trapo_lite.run.processes import Ranks

def kill_children():
    for line in subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True).stdout.splitlines()[1:]:
        pid, parent, name = line.split(maxsplit=2)
        if int(parent) == os.getpid() and "wandb" in name:
            os.kill(int(pid), signal.SIGKILL)

file, first, last, disturb = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
Ranks()
opened = open_loggers(load_config(file), first_step=first, notify=print)
for step in range(first, last + 1):
    if step == 3 and disturb == "kill":
        kill_children()
    row = {{"step": step, "reward/mean": first + step / 8, "eval/accuracy": None}}
    for logger in opened:
        logger.log(row, {[ROLLOUT, SECOND]!r}, step)
for logger in opened:
    logger.flush()
    logger.close()
"""


def config_of(folder: Path, **run: Any) -> Config:
    return validate({"run": {"name": "first", "dir": str(folder), **run}})


def log_steps(folder: Path, first: int, last: int, disturb: str = "", **run: Any) -> str:
    """Log steps first to last in a new process, with the value first + step / 8. Return what it printed."""
    config = config_of(folder, **run)
    config.run.folder.mkdir(exist_ok=True)
    file = config.run.folder / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    environment = os.environ | {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file), str(first), str(last), disturb],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def needs(package: str) -> None:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed; `pip install {package}` to run this")


def events(folder: Path) -> EventAccumulator:
    """Return what TensorBoard shows; it reads scalars and texts as tensors."""
    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def scalars(read: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, make_ndarray(event.tensor_proto).item()) for event in read.Tensors(tag)]


@pytest.mark.long
def test_tensorboard_hides_the_steps_that_are_repeated(tmp_path: Path) -> None:
    for first, last in ((1, 3), (2, 4)):
        log_steps(tmp_path, first, last, trackers=["tensorboard"])
    folder = tmp_path / "first/tensorboard"
    read = events(folder)
    assert scalars(read, "reward/mean") == [
        (1, 1 + 1 / 8), (2, 2 + 2 / 8), (3, 2 + 3 / 8), (4, 2 + 4 / 8),
    ]  # fmt: skip
    assert set(read.Tags()["tensors"]) == {"reward/mean", "rollouts/text_summary"}
    texts = read.Tensors("rollouts/text_summary")
    assert [event.step for event in texts] == [1, 2, 3, 4]
    text = texts[0].tensor_proto.string_val[0].decode()
    assert "p|1: correct, reward 1.0, advantage 0.5\n\n" in text and "prefix:\n\n    One\n    and\n\n" in text
    [settings] = [yaml.safe_load(file.read_text()) for file in folder.glob("*/hparams.yml")]  # stored once
    assert settings["optim.lr"] == 2e-5 and settings["run.trackers"] == '["tensorboard"]'


@pytest.mark.long
def test_trackio_gets_every_step_once_and_a_new_run_folder_is_a_new_run(tmp_path: Path) -> None:
    needs("trackio")
    for first, last in ((1, 3), (2, 4)):
        log_steps(tmp_path, first, last, trackers=["trackio"], project="sums")
    (tmp_path / "first").rename(tmp_path / "first.old")  # as --restart does
    log_steps(tmp_path, 1, 1, trackers=["trackio"], project="sums")
    program = (
        "import json, trackio; from trackio.sqlite_storage import SQLiteStorage as s; print(json.dumps("
        "[[run.name, run.config, s.get_logs('sums', run.name, run_id=run.id)] for run in trackio.Api().runs('sums')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    runs = sorted(json.loads(done.stdout), key=lambda run: -len(run[2]))
    assert len({name for name, _, _ in runs}) == 2 and all(name.startswith("first-") for name, _, _ in runs)
    _, settings, rows = runs[0]
    # The first value of a repeated step stays.
    assert [(row["step"], row["reward/mean"]) for row in rows] == [
        (1, 1 + 1 / 8), (2, 1 + 2 / 8), (3, 1 + 3 / 8), (4, 2 + 4 / 8),
    ]  # fmt: skip
    table = rows[3]["rollouts"]["_value"]
    assert table[0] == {"step": 4, **ROLLOUT} and list(table[0]) == list(COLUMNS)
    assert table[1]["reward"] is None and " [...] " in table[1]["completion"] and table[1]["completion"].endswith("xyz")
    assert settings["optim.lr"] == 2e-5 and settings["model.name"] == "Qwen/Qwen2.5-Math-7B"


@pytest.mark.long
def test_wandb_gets_every_step_once(tmp_path: Path) -> None:
    needs("wandb")
    for first, last in ((1, 3), (2, 4)):
        log_steps(tmp_path, first, last, trackers=["wandb"], project="sums")
    files = sorted((tmp_path / "first/wandb").glob("offline-run-*/*.wandb"))
    records = [record for file in files for record in wandb_records(file)]
    runs = [record.run for record in records if record.HasField("run")]
    assert len({run.run_id for run in runs}) == 1 and {run.project for run in runs} == {"sums"}
    assert {run.display_name for run in runs} == {"first"}
    rows = [record.history for record in records if record.HasField("history")]
    values = [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item} for row in rows]
    assert [(row["_step"], row["reward/mean"]) for row in values] == [
        (1, 1 + 1 / 8), (2, 1 + 2 / 8), (3, 1 + 3 / 8), (4, 2 + 4 / 8),
    ]  # fmt: skip
    table = json.loads((files[-1].parent / "files" / values[-1]["rollouts/path"]).read_text())
    assert table["columns"] == list(COLUMNS) and table["data"][0] == [4, *ROLLOUT.values()]
    settings = {item.nested_key[0] if item.nested_key else item.key for r in records for item in r.config.update}
    assert {"optim.lr", "model.name", "run.project"} <= settings


def wandb_records(file: Path) -> list[Any]:
    """Return the records of a .wandb file: after 7 bytes, LevelDB's log format with blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportMissingImports]

    content, at, records, part = file.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # too little room for a header: zeros up to the next block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(part))
            part = b""
    return records


@pytest.mark.long
def test_a_service_that_dies_costs_a_warning_and_no_run(tmp_path: Path) -> None:
    needs("wandb")
    printed = log_steps(tmp_path, 1, 5, "kill", trackers=["tensorboard", "wandb"], project="sums")
    assert printed.count("warning: ") == 1
    assert "run.trackers: wandb failed after step " in printed and "metrics.jsonl has every step" in printed
    assert [step for step, _ in scalars(events(tmp_path / "first/tensorboard"), "reward/mean")] == [1, 2, 3, 4, 5]


class Refusing:
    """A tracker whose service cannot be reached."""

    def start(self) -> None:
        raise OSError(113, "No route to host")


def test_a_tracker_that_cannot_start_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ranks()
    config = config_of(tmp_path, trackers=["trackio"])
    config.run.folder.mkdir()
    monkeypatch.setattr("accelerate.tracking.TrackioTracker", lambda *_, **__: Refusing())
    with pytest.raises(ConfigError, match=r"run\.trackers: trackio could not be started .*No route.*or remove it"):
        open_loggers(config, first_step=1, notify=print)


def test_a_tracker_that_is_not_installed_is_an_error_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TENSORBOARD])
    check_loggers(config_of(tmp_path, trackers=["tensorboard"]))
    check_loggers(config_of(tmp_path, trackers=[]))
    with pytest.raises(ConfigError, match=r"run\.trackers: wandb is not installed; run `pip install wandb`"):
        check_loggers(config_of(tmp_path, trackers=["tensorboard", "wandb"]))


def test_a_damaged_record_begins_a_new_run_and_an_older_id_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "wandb.json"
    for damaged in ("", "{", "[]", '{"id": 1}', '{"id": "a", "last_step": null}'):
        file.write_text(damaged)
        identifier, last_step = loggers._read_record(file)
        assert len(identifier) == 8 and last_step == 0
    file.unlink()
    (tmp_path / "wandb-id").write_text("abcd1234")
    assert loggers._read_record(file) == ("abcd1234", 0)


def test_no_rollouts_make_no_text(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "events", first_step=1)
    logger.log({"reward/mean": 1.0}, [], 1)
    logger.close()
    assert events(tmp_path / "events").Tags()["tensors"] == ["reward/mean"]
