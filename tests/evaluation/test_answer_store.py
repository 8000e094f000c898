"""Evaluations that are killed and go on, are done already, or are graded again, with real engines."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import VLLM_DTYPE

from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.evaluation.answer_store import AnswerLog, read_answers
from trapo_lite.evaluation.results import Answer
from trapo_lite.tiny_world import BASE_DIR, DATA_DIR

ROOT = Path(__file__).parents[2]


def answer(problem: int, sample: int, verdict: str = "wrong") -> Answer:
    return Answer(f"p{problem}", sample, "It is\u20288.", verdict, "8", "stop", 4, "7")  # type: ignore[arg-type]


def log_in(
    folder: Path, *, temperature: float = 1.0, verifier: str = "rules", weights: str = "made", **options
) -> AnswerLog:
    described = {"weights": weights, "temperature": temperature, "verifier": verifier, "seed": 3}
    return AnswerLog(folder, "made", described=described, problem_ids=["p0", "p1"], num_samples=2, **options)


def append_both(log: AnswerLog) -> AnswerLog:
    for problem in (0, 1):
        log.append([answer(problem, 0), answer(problem, 1)])
    return log


def test_answers_come_back_in_order_and_only_whole_problems(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.append([answer(1, 1), answer(1, 0)])
    with log.partial_file.open("a") as file:
        file.write(json.dumps(answer(0, 0).to_row()) + "\n" + json.dumps(answer(0, 1).to_row())[:20])  # killed here
    again = log_in(tmp_path)
    assert again.done == {"p1"} and not again.is_complete
    again.append([answer(0, 0, "correct"), answer(0, 1)])
    result = again.finish(seed=3)
    assert [(a.problem_id, a.sample) for a in read_answers(tmp_path / "made.jsonl")] == [
        ("p0", 0), ("p0", 1), ("p1", 0), ("p1", 1),
    ]  # fmt: skip
    assert not log.partial_file.exists()
    assert json.loads((tmp_path / "made.json").read_text())["accuracy"] == result.accuracy == 0.25
    assert log_in(tmp_path).is_complete


def test_a_group_is_kept_once_and_a_log_without_its_last_step_is_not_finished(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for problem in (0, 1, 1):
        log.append([answer(problem, 0), answer(problem, 1)])
    again = log_in(tmp_path)
    assert again.is_complete and not (tmp_path / "made.json").exists()
    again.finish(seed=3)
    assert (tmp_path / "made.json").exists() and len(read_answers(tmp_path / "made.jsonl")) == 4


def test_answers_that_were_cut_after_the_end_are_not_taken_for_all(tmp_path: Path) -> None:
    log = append_both(log_in(tmp_path))
    log.finish(seed=3)
    lines = (tmp_path / "made.jsonl").read_text().split("\n")
    (tmp_path / "made.jsonl").write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(DataError, match=r"made\.jsonl: .*2 answers, 4 were drawn.*--restart"):
        log_in(tmp_path)


@pytest.mark.parametrize("is_finished", [False, True])
def test_answers_of_something_else_are_not_mixed_in(tmp_path: Path, is_finished: bool) -> None:
    log = log_in(tmp_path)
    log.append([answer(0, 0), answer(0, 1)])
    if is_finished:
        log.append([answer(1, 0), answer(1, 1)])
        log.finish(seed=3)
    with pytest.raises(ConfigError, match=r"answers with temperature 1\.0, now it is 0\.5; choose another --out"):
        log_in(tmp_path, temperature=0.5)
    assert log_in(tmp_path, temperature=0.5, restart=True).done == set()


def test_finished_results_are_kept_until_others_have_been_drawn(tmp_path: Path) -> None:
    log = append_both(log_in(tmp_path))
    log.finish(seed=3)
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    log = log_in(tmp_path, temperature=0.5, restart=True)  # and the engine does not start
    assert log.done == set() and all((tmp_path / name).read_text() == text for name, text in before.items())
    assert log_in(tmp_path).is_complete  # nothing was drawn: the old ones stand
    log = log_in(tmp_path, temperature=0.5, restart=True)
    log.append([answer(0, 0), answer(0, 1)])
    log = log_in(tmp_path, temperature=0.5)  # killed: goes on without --restart
    assert log.done == {"p0"} and all((tmp_path / name).read_text() == text for name, text in before.items())
    assert log_in(tmp_path).is_complete and log.partial_file.exists()  # the old settings again: both are kept
    with pytest.raises(ConfigError, match=r"made\.partial\.jsonl: holds answers with temperature 0\.5"):
        log_in(tmp_path, temperature=0.1)
    log = log_in(tmp_path, temperature=0.5)
    log.append([answer(1, 0), answer(1, 1)])
    log.finish(seed=3)
    assert json.loads((tmp_path / "made.json").read_text())["temperature"] == 0.5
    assert not log.partial_file.exists() and log_in(tmp_path, temperature=0.5).is_complete


def test_numbers_never_stand_beside_other_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two files of a --restart: the old numbers are gone with the old answers."""
    for temperature in (1.0, 0.5):
        log = append_both(log_in(tmp_path, temperature=temperature, restart=True))
        if temperature == 1.0:
            log.finish(seed=3)

    def killed(summary: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("trapo_lite.evaluation.answer_store.to_json", killed)
    with pytest.raises(KeyboardInterrupt):
        log.finish(seed=3)
    assert not log.summary_file.exists() and log.answers_file.exists() and log.partial_file.exists()


def test_where_things_lay_and_how_they_were_graded(tmp_path: Path) -> None:
    """Another place is no other model; other rules are named, with what can be done."""
    log = append_both(log_in(tmp_path, verifier="old rules", noted={"model": "/here"}))
    log.finish(seed=3)
    assert log_in(tmp_path, verifier="old rules", noted={"model": "/there"}).is_complete
    with pytest.raises(ConfigError, match=r"verifier 'old rules', now it is 'new rules'; .*--regrade .* to grade them"):
        log_in(tmp_path, verifier="new rules")


def test_an_evaluation_that_is_resumed_by_other_code_names_what_differs(tmp_path: Path) -> None:
    old = {"package": "1a", "commit": None, "clean": None, "versions": {"torch": "2.12.0"}}
    new = old | {"commit": "c", "versions": {"torch": "2.13.0"}}
    log_in(tmp_path, noted={"environment": old}).append([answer(0, 0), answer(0, 1)])
    assert log_in(tmp_path, noted={"environment": old | {"command": "another"}}).code_changes == []
    log = log_in(tmp_path, noted={"environment": new})
    assert log.code_changes == ["torch: 2.12.0 then, 2.13.0 now"] and log.done == {"p0"}
    log.append([answer(1, 0), answer(1, 1)])
    log.finish(seed=3)
    assert json.loads((tmp_path / "made.json").read_text())["environment"] == new
    log = log_in(tmp_path, noted={"environment": old})  # complete: nothing is drawn by other code
    assert log.is_complete and log.code_changes == []


def test_a_fingerprint_is_not_shown_but_said_in_words(tmp_path: Path) -> None:
    log = log_in(tmp_path, weights="a1b2")
    log.append([answer(0, 0), answer(0, 1)])
    with pytest.raises(ConfigError, match=r"holds answers of other weights than model\.name has now; choose another"):
        log_in(tmp_path, weights="c3d4")


def test_a_damaged_line_of_an_unfinished_evaluation_is_named_and_an_empty_one_says_nothing(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    assert log_in(tmp_path, temperature=0.5).done == set()  # nothing was drawn at 1.0
    log = log_in(tmp_path)
    log.append([answer(0, 0), answer(0, 1)])
    log.partial_file.write_text(log.partial_file.read_text() + '{"half\n')
    with pytest.raises(DataError, match=r"made\.partial\.jsonl: a line cannot be read .*--restart"):
        log_in(tmp_path)


# ----- whole evaluations


def command(out: Path, engine: str, *more: str) -> list[str]:
    script = [sys.executable, "scripts/evaluate.py", "--model", str(BASE_DIR), "--config", "configs/tiny_cpu.yaml"]
    script += ["--data", str(DATA_DIR / "dev.jsonl"), "--num-samples", "2", "--out", str(out)]
    return [
        *script,
        f"rollout.engine={engine}",
        "rollout.max_num_seqs=4",
        "eval.num_problems=24",
        *more,
        f"model.dtype={VLLM_DTYPE}",
    ]


def run(arguments: list[str]) -> str:
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def results(out: Path) -> tuple[str, dict]:
    """Answers and numbers; without the record of the command, which names another --out."""
    summary = json.loads((out / "dev.json").read_text())
    command_line = summary.pop("environment")["command"]
    assert "scripts/evaluate.py" in command_line and "eval.num_problems=24" in command_line
    return (out / "dev.jsonl").read_text(), summary


@pytest.mark.long
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_an_evaluation_is_the_same_again_and_when_it_was_killed(tmp_path: Path, engine: str) -> None:
    run(command(tmp_path / "whole", engine))
    if engine == "transformers":  # vLLM takes half a minute to start; going on is the harder case
        run(command(tmp_path / "again", engine))
        assert results(tmp_path / "again") == results(tmp_path / "whole")

    partial_file = tmp_path / "killed" / "dev.partial.jsonl"
    process = subprocess.Popen(command(tmp_path / "killed", engine), cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not partial_file.exists() or partial_file.read_text().count("\n") < 9:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert partial_file.read_text().count("\n") < 49 and not (tmp_path / "killed" / "dev.json").exists()
    assert "problems done" in run(command(tmp_path / "killed", engine))
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    if engine == "transformers":
        assert "starting" not in run(command(tmp_path / "killed", engine))  # there is nothing left to draw


@pytest.mark.long
def test_grading_again_mends_verdicts_without_drawing(tmp_path: Path) -> None:
    run(command(tmp_path, "transformers"))
    before, summary = results(tmp_path)
    rows = [json.loads(line) for line in before.split("\n")[:-1]]
    wrong = [row | {"verdict": "wrong"} for row in rows]
    num_correct = sum(row["verdict"] == "correct" for row in rows)
    assert num_correct > 0
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    # Killed after its last answer, the numbers are made of what is there.
    rows = [json.loads(line) for line in before.split("\n")[:-1]]
    (tmp_path / "dev.partial.jsonl").write_text(json.dumps(summary) + "\n" + before)
    (tmp_path / "dev.json").unlink()
    (tmp_path / "dev.jsonl").unlink()
    assert "starting" not in run(command(tmp_path, "transformers"))
    assert results(tmp_path) == (before, summary)

    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    printed = run([sys.executable, "scripts/evaluate.py", "--regrade", str(tmp_path)])
    assert f"{num_correct} of 48 verdicts changed" in printed
    assert results(tmp_path) == (before, summary)

    # By another rule, to another place: every answer is made one without a box.
    bare = [row | {"completion": row["completion"].replace("boxed", "text")} for row in rows]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    regrade = [sys.executable, "scripts/evaluate.py", "--regrade", str(tmp_path), "--out", str(tmp_path / "again")]
    run([*regrade, "reward.require_box=true"])
    strict, found = results(tmp_path / "again")
    assert found["verdicts"] == {"no_answer": 48} and found["require_box"] is True and found["verifier"]
    assert results(tmp_path)[1] == summary and strict.count('"no_answer"') == 48
    refused = subprocess.run(regrade, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2 and "holds dev.json already" in refused.stderr
