"""The study's driver keeps a line for each run, repeats none, and prints the means."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from study import read_results, table

ROOT = Path(__file__).parents[1]
SMALL = [
    "rollout.engine=transformers",
    "train.max_steps=2",
    "rollout.num_problems=2",
    "eval.every=2",
    "eval.num_problems=4",
]


def study(folder: Path, *options: str) -> str:
    """Run the command in an empty folder, where configs/ is found."""
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
    command = [sys.executable, str(ROOT / "benchmarks/study.py"), "--results", str(folder / "study.jsonl"), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=300
    ).stdout


@pytest.mark.slow
def test_every_run_is_done_once_and_its_line_counts_the_held_out_problems(tmp_path: Path) -> None:
    missing = ["--all", "--world", "wordy", "--jobs", "2"]
    for name in ("base", "sft"):
        study(tmp_path, *missing, "--algorithm", name, *SMALL)
    rows = read_results(tmp_path / "study.jsonl")
    assert list(rows) == [("wordy", "base", 0), ("wordy", "sft", 0)]
    for row in rows.values():
        assert {part: len(bits) for part, bits in row["correct"].items()} == {"hard": 200, "longer": 200, "easy": 200}
        assert row["accuracy"]["easy"] > row["accuracy"]["hard"]  # the base solves easy sums
    assert (rows["wordy", "sft", 0]["num_steps"], list(rows["wordy", "sft", 0]["dev"])) == (2, ["2"])
    before = (tmp_path / "study.jsonl").read_text()
    assert study(tmp_path, *missing, "--algorithm", "sft", *SMALL) == ""
    assert (tmp_path / "study.jsonl").read_text() == before
    assert "| wordy | " in study(tmp_path, "--table")


def test_the_table_has_means_over_seeds(tmp_path: Path) -> None:
    file = tmp_path / "study.jsonl"
    accuracies = {("wordy", "trapo", 0): 0.5, ("wordy", "trapo", 1): 0.7, ("perfect", "sft", 0): 1.0}
    rows = [
        {"world": world, "algorithm": name, "seed": seed, "accuracy": {"hard": value}}
        for (world, name, seed), value in accuracies.items()
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(table(read_results(file))) == [
        "| world | sft | trapo |",
        "|---|---|---|",
        "| perfect | 1.000 (1) |  |",
        "| wordy |  | 0.600 (2) |",
    ]
