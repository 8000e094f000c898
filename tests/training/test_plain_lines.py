"""A run and the other commands write into a file with the time, a start line, signs of life, and how it ended."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny_runs import data_file, finished_runs, make_config, model_dir, trained

from trapo_lite.config import load_config
from trapo_lite.curation.prepare import prepare
from trapo_lite.interface import evaluate, export
from trapo_lite.run.lines import Lines

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)  (.*)")


def start(config_file: Path, output: Path) -> subprocess.Popen:
    """Start a run in the way of a user whose output goes to a file."""
    arguments = [sys.executable, "-m", "trapo_lite", "train", "--config", str(config_file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with output.open("w") as file:
        return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


def lines_of(output: Path) -> list[str]:
    """Return the lines without the time, which each must have."""
    matches = [(line, LINE.fullmatch(line)) for line in output.read_text().splitlines()]
    assert all(match for _, match in matches), [line for line, match in matches if not match]
    return [match[2] for _, match in matches if match]


@pytest.mark.long
def test_a_killed_run_is_named_when_it_is_resumed(make_config, tmp_path: Path) -> None:
    config = make_config(train={"max_steps": 5000, "save_every": 2, "keep_checkpoints": 1})
    file, folder = tmp_path / "killed.yaml", config.run.folder
    file.write_text(config.to_yaml())
    before, metrics = time.time(), folder / "metrics.jsonl"
    process = start(file, tmp_path / "killed.txt")
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
        assert process.poll() is None and time.time() < before + 240, (tmp_path / "killed.txt").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    killed_after = metrics.read_bytes().count(b"\n")
    first, *lines = lines_of(tmp_path / "killed.txt")
    assert first.startswith(f"start: {sys.executable} -m trapo_lite train --config {file}; trapo_lite ")
    assert f"torch {version('torch')}, transformers {version('transformers')}" in first
    assert f"host {os.uname().nodename}, process {process.pid}, 20" in first
    assert f"checkpoint saved: {folder}/checkpoints/step-000002 (step 2)" in lines

    file.write_text(make_config(train={"max_steps": killed_after + 2}).to_yaml())
    assert start(file, tmp_path / "resumed.txt").wait(timeout=240) == 0
    [told] = [line for line in lines_of(tmp_path / "resumed.txt") if "the run before" in line]
    assert told.startswith(f"warning: {folder}: the run before (process {process.pid} on host ")
    assert f"ended after step {killed_after} without a message: it was killed" in told
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    clock = [row["time/unix"] for row in rows]
    assert clock == sorted(clock) and before < clock[0] and clock[-1] < time.time()
    assert not (folder / "process.json").exists()


@pytest.mark.slow
def test_the_other_commands_break_long_silences(trained, make_config, data_file, monkeypatch, capsys) -> None:
    """Each is real, only that half a minute is short here."""
    run = trained()
    quick = functools.partial(Lines, quiet_seconds=0.05)
    for module in ("exporting.merge", "evaluation.evaluate", "curation.prepare"):
        monkeypatch.setattr(f"trapo_lite.{module}.Lines", quick)
    capsys.readouterr()

    export(run)
    signs = capsys.readouterr().out.splitlines()
    assert signs and all(re.fullmatch(LINE.pattern[:-4] + r"export: .*, \d+ s so far", line) for line in signs), signs

    evaluate(run=run, data=data_file, num_samples=4)
    said = capsys.readouterr().out
    sign = r"^\S+ \S+  sums: sampling and grading, \d+ of 48 answers, \d+ s so far$"
    assert re.search(sign, said, re.MULTILINE), said

    prepare(load_config([str(run / "config.yaml")]), verify=True)
    said = capsys.readouterr().out
    assert re.search(r"^\S+ \S+  reading and verifying .*sums.jsonl, \d+ s so far$", said, re.MULTILINE), said
    assert re.search(r"^  fingerprint ", said, re.MULTILINE)  # a result has no time
