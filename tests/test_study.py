"""The study's driver repeats no run, and the report's intervals and answers are what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from expert_worlds import SOLVERS
from study import BLOCKS, FITTED, VARIANTS, read_results, run_for, settings_of
from study_report import GROUPS, HYPOTHESES, Hypothesis, Study, answers, difference, interval, means, table

from trapo_lite.config import load_config

ROOT = Path(__file__).parents[1]
SMALL = ["train.max_steps=2", "rollout.num_problems=2", "eval.every=2", "eval.num_problems=4"]


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
        study(tmp_path, *missing, "--algorithm", name, "--override", *SMALL)
    rows = read_results(tmp_path / "study.jsonl")
    assert list(rows) == [("perfect", "base", 0), ("wordy", "sft", 0)]
    for row in rows.values():
        assert {part: len(bits) for part, bits in row["correct"].items()} == {"hard": 200, "longer": 200, "easy": 200}
        assert row["accuracy"]["easy"] > row["accuracy"]["hard"]  # the base solves easy sums
    assert (rows["wordy", "sft", 0]["num_steps"], list(rows["wordy", "sft", 0]["dev"])) == (2, ["2"])
    before = (tmp_path / "study.jsonl").read_text()
    assert study(tmp_path, *missing, "--algorithm", "sft", "--override", *SMALL) == ""
    assert (tmp_path / "study.jsonl").read_text() == before


def test_runs_of_other_settings_do_not_get_among_the_results() -> None:
    command = [sys.executable, "benchmarks/study.py", "--all", "--override", "train.max_steps=1"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "give --results" in refused.stderr


def test_a_method_without_experts_runs_once_for_all_worlds_of_the_same_problems() -> None:
    assert run_for(("leaps_3", "dr_grpo", 1)) == run_for(("wrong_50", "dr_grpo", 1)) == ("perfect", "dr_grpo", 1)
    assert run_for(("rare_wordy", "dapo", 0)) == ("rare_perfect", "dapo", 0)
    for key in [("few_16", "dr_grpo", 0), ("wordy", "trapo", 0), ("wordy", "sft", 0), ("wordy", "sft_then_rl", 0)]:
        assert run_for(key) == key


@pytest.mark.parametrize("name", [*BLOCKS, *VARIANTS])
def test_every_method_is_a_configuration(name: str) -> None:
    block = VARIANTS.get(name, (name, []))[0]
    of_block = load_config(["tiny_cpu.yaml", f"algorithm/{block}.yaml"])
    assert (settings_of(name, []) != of_block) == (name in {*VARIANTS, *FITTED})


def test_a_course_has_reached_its_end_when_a_run_ends() -> None:
    chord, prefix_rft = (settings_of(name, []).algorithm for name in ("chord", "prefix_rft"))
    assert [chord.build_at(step).prefix_weight for step in (4, 40)] == pytest.approx([0.9, 0.05])
    assert [chord.build_at(step).completion_weight for step in (4, 40)] == pytest.approx([0.1, 0.95])
    assert prefix_rft.build_at(40, max_response_tokens=128).micro_groups[1].prefix_ratio == pytest.approx(0.05)


def lines(cells: dict[tuple[str, str, int], str]) -> dict:
    return {key: {"correct": {"hard": bits, "longer": bits, "easy": bits}} for key, bits in cells.items()}


def test_the_table_has_means_over_seeds_with_intervals() -> None:
    rows = lines({("wordy", "trapo", 0): "10" * 50, ("wordy", "trapo", 1): "1" * 100, ("perfect", "sft", 0): "1" * 100})
    found = list(table(Study(rows), ["sft", "trapo", "luffy"], "hard", ["perfect", "wordy"]))
    assert found[:3] == ["| method | perfect | wordy |", "|---|---|---|", "| sft | 1.00 (1.00–1.00; 1) |  |"]
    assert found[3].startswith("| trapo |  | 0.75 (0.4") and found[3].endswith("–1.00; 2) |")
    assert len(found) == 4  # nothing was run with luffy
    assert list(means(Study(rows), ["sft", "trapo"], "easy"))[2:] == ["| sft | 1.00 |  |", "| trapo |  | 0.75 |"]


def test_every_world_is_in_one_group_of_the_tables() -> None:
    assert sorted(world for worlds in GROUPS.values() for world in worlds) == sorted(SOLVERS)


def test_an_interval_of_one_seed_is_that_of_a_proportion() -> None:
    bits = np.zeros((1, 400), dtype=np.int8)
    bits[0, :100] = 1
    mean, low, high = interval(bits)
    deviation = (0.25 * 0.75 / 400) ** 0.5
    assert mean == 0.25
    assert (low, high) == pytest.approx((0.25 - 1.96 * deviation, 0.25 + 1.96 * deviation), abs=0.006)


def test_seeds_that_differ_widen_an_interval() -> None:
    alike = np.tile([0, 1], (4, 100))
    apart = np.stack([np.zeros(200), np.zeros(200), np.ones(200), np.ones(200)])
    widths = [high - low for _, low, high in (interval(alike), interval(apart))]
    assert widths[0] < 0.1 < 0.7 < widths[1]


def test_a_difference_is_paired_by_problem() -> None:
    """Two methods that solve the same half, but for five problems in a hundred: paired, the five are certain."""
    second = np.tile([0, 1], (1, 100))
    first = second.copy()
    first[0, :20:2] = 1
    mean, low, _ = difference([(first, second)])
    assert mean == pytest.approx(0.05) and low > 0
    shuffled = np.random.default_rng(1).permutation(second[0])[None]
    assert difference([(first, shuffled)])[1] < 0  # the same means, not paired


def test_one_run_that_stands_for_many_worlds_counts_once() -> None:
    """Some 95 % of the 95 % intervals hold 0 if there is no difference, however many worlds one run is for."""
    rng = np.random.default_rng(3)
    held = []
    for _ in range(50):
        chances = rng.uniform(0.3, 0.9, size=(5, 40))
        alone = (rng.random(chances.shape) < chances).astype(np.int8)
        pairs = [((rng.random(chances.shape) < chances).astype(np.int8), alone) for _ in range(8)]
        _, low, high = difference(pairs)
        held.append(low <= 0 <= high)
    assert np.mean(held) > 0.85


def test_hypotheses_hold_fail_or_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = "1" * 90 + "0" * 10, "1" * 50 + "0" * 50
    of_methods = {"trapo": good, "sft": bad, "dft": good[::-1]}
    rows = lines({("perfect", name, seed): bits for name, bits in of_methods.items() for seed in range(3)})
    claims = [("trapo", "sft"), ("sft", "trapo"), ("trapo", "dft"), ("trapo", "luffy")]
    tested = tuple(Hypothesis(f"{first} > {second}", first, second) for first, second in claims)
    monkeypatch.setattr("study_report.HYPOTHESES", tested)
    answered = [line.split(" | ")[-1].rstrip(" |") for line in answers(Study(rows))][2:]
    assert answered == ["holds", "fails", "cannot tell", "not run"]
    fewer = {key: row for key, row in rows.items() if key[2] == 0}
    answered = [line.split(" | ")[-1].rstrip(" |") for line in answers(Study(fewer))][2:]
    assert answered[0] == "cannot tell with 1 of 3 seeds"
    more = rows | lines({("wordy", name, 0): bad for name in of_methods})  # one seed in another world changes nothing
    assert list(answers(Study(more))) == list(answers(Study(rows)))


def test_hypotheses_are_about_methods_that_the_study_has() -> None:
    known = {*BLOCKS, *VARIANTS}
    assert {name for each in HYPOTHESES for name in (each.better, each.worse)} <= known


def test_the_results_in_the_repository_are_whole() -> None:
    rows = read_results(ROOT / "benchmarks/study.jsonl")
    text = (ROOT / "benchmarks/study.jsonl").read_text()
    assert len(rows) == text.count("\n") > 0  # no run twice
    for key, row in rows.items():
        assert run_for(key) == key and row["overrides"] == [] and row["clean"]
        assert row["num_steps"] == (0 if row["algorithm"] == "base" else 40)
        assert row["accuracy"]["hard"] == row["correct"]["hard"].count("1") / 200
        json.dumps(row)
