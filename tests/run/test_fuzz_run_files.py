"""Files of a run, an evaluation or a build that were cut or changed: found out, and never taken for good."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_qwen2
from fuzzing import changed_byte, cuts, damaged, outcome, plain_data
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from run_differences import read_metrics

from trapo_lite.config import LoraSection, OptimSection
from trapo_lite.core.types import Verdict
from trapo_lite.evaluation.answer_store import AnswerLog, read_answers, read_summary, result_files
from trapo_lite.evaluation.compare import read_rows
from trapo_lite.evaluation.regrade import regraded
from trapo_lite.evaluation.results import Answer
from trapo_lite.model.policy import Policy
from trapo_lite.run.folder import RunFolder, final_adapter
from trapo_lite.training import checkpoint
from trapo_lite.training.checkpoint import (
    Checkpoint,
    find_checkpoint,
    rename_newer_than,
    restore_checkpoint,
    save_checkpoint,
)
from trapo_lite.training.optimizer import make_optimizer
from trapo_lite.training.resume import compare_environments

STEPS = (2, 4)
CODE = {"package": "1a", "commit": "c" * 40, "clean": True, "versions": {"torch": "2.13.0", "peft": "0.21.2"}}


def tiny_policy() -> Policy:
    return Policy(tiny_qwen2(), LoraSection(r=2, alpha=4.0), attention="sdpa", gradient_checkpointing=False)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of one tiny run, with optimizer state."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    policy = tiny_policy()
    optimizer = make_optimizer(OptimSection(), policy.adapter.parameters)
    for step in STEPS:
        for parameter in policy.adapter.parameters:
            parameter.grad = torch.full_like(parameter, 0.1 * step)
        optimizer.step()
        save_checkpoint(
            folder,
            policy=policy,
            optimizer=optimizer,
            rng_states=[torch.get_rng_state()],
            state={"step": step, "data": "made up"},
            keep=3,
        )
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def copied(checkpoints: Path) -> Path:
    """A copy to damage, in the same place each time."""
    copy = checkpoints.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(checkpoints, copy)
    return copy


@st.composite
def damage(draw: st.DrawFn) -> tuple[str, str, float, int]:
    """(file, what is done to it, where in it, by how much)"""
    kinds = st.sampled_from(["byte", "cut", "longer", "gone", "folder"])
    name = draw(st.sampled_from([*sorted(checkpoint.FILES), checkpoint.MANIFEST]))
    return name, draw(kinds), draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 255))


def apply(file: Path, kind: str, place: float, amount: int) -> None:
    content = file.read_bytes()
    at = int(place * len(content))
    if kind == "byte":
        file.write_bytes(content[:at] + bytes([(content[at] + amount) % 256]) + content[at + 1 :])
    elif kind == "cut":
        file.write_bytes(content[:at])
    elif kind == "longer":
        file.write_bytes(content + b"x" * amount)
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()


@pytest.mark.slow
@given(damage())
@example(("manifest.json", "byte", 0.5, 1))
@example(("manifest.json", "cut", 0.0, 1))
@example(("state.json", "byte", 0.1, 1))
def test_a_changed_checkpoint_is_never_loaded(checkpoints: Path, change: tuple[str, str, float, int]) -> None:
    """Whatever is changed in the newest: what is loaded has the bytes that were saved, or is the one before."""
    folder = copied(checkpoints)
    name, kind, place, amount = change
    apply(folder / "step-000004" / name, kind, place, amount)
    found, messages = find_checkpoint(folder)
    assert found is not None
    if found.step == 4:
        good = contents(checkpoints / "step-000004")
        assert {n: c for n, c in contents(found.folder).items() if n in checkpoint.FILES} == {
            n: c for n, c in good.items() if n in checkpoint.FILES
        }
    else:
        assert found.step == 2 and len(messages) == 1 and "step-000004" in messages[0]
        rename_newer_than(folder, found.step)
        assert sorted(path.name for path in folder.iterdir()) == ["damaged-step-000004", "step-000002"]
    policy = tiny_policy()
    restore_checkpoint(
        found, policy=policy, optimizer=make_optimizer(OptimSection(), policy.adapter.parameters), rank=0
    )


@pytest.mark.slow
@given(plain_data())
@example([])
@example({"state.json": None})
@example({name: {"bytes": 1, "sha256": 5} for name in checkpoint.FILES})
@example({name: None for name in checkpoint.FILES} | {"a\0b": None})
def test_a_made_up_manifest_is_never_believed(checkpoints: Path, manifest: Any) -> None:
    folder = copied(checkpoints)
    (folder / "step-000004" / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    found, messages = find_checkpoint(folder)
    assert found is not None and found.step == 2 and len(messages) == 1


@pytest.mark.parametrize("name", ["step-000004-copy", "step-", "step-x", "step-000009", "step-4", "step-²"])
def test_a_renamed_checkpoint_is_not_taken_for_another_step(checkpoints: Path, name: str) -> None:
    """Only what is called by its own step counts; what is called otherwise stays where it is."""
    folder = copied(checkpoints)
    (folder / "step-000004").rename(folder / name)
    found, _ = find_checkpoint(folder)
    assert found is not None and found.step == 2
    (folder.parent / "config.yaml").write_text("")
    assert isinstance(outcome(lambda: final_adapter(folder.parent)), Path | str)
    rename_newer_than(folder, 2)
    assert (folder / name).is_dir() or (folder / f"damaged-{name}").is_dir()


# ----- metrics and rollouts


ROWS = [{"step": step, "reward/own": 0.1 * step, "loss/prefix": None} for step in range(1, 6)]
METRICS = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def run_folder(tmp_path_factory: pytest.TempPathFactory, metrics: bytes) -> RunFolder:
    folder = tmp_path_factory.getbasetemp() / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "rollouts").mkdir(parents=True)
    (folder / "metrics.jsonl").write_bytes(metrics)
    return RunFolder(folder)


@given(cuts(METRICS), st.integers(0, 5))
def test_a_metrics_file_that_was_cut_yields_no_wrong_line(
    tmp_path_factory: pytest.TempPathFactory, metrics: bytes, step: int
) -> None:
    folder = run_folder(tmp_path_factory, metrics)
    before = read_metrics(folder.metrics_file)
    assert before == ROWS[: len(before)] and len(before) == metrics.count(b"\n")
    messages = folder.cut_back(step)
    assert bool(messages) == (metrics.count(b"\n") < step)
    rows = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    assert rows == ROWS[: min(step, metrics.count(b"\n"))]
    folder.append_metrics({"step": step + 1})
    assert read_metrics(folder.metrics_file) == [*rows, {"step": step + 1}]


@pytest.mark.slow
@given(st.one_of(damaged(METRICS), st.lists(plain_data()).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())))
@example(b'{"step": Infinity}\n')
@example(b'{"step": NaN}\n')
@example(b'{"step": "two"}\n')
@example(b'{"step": 1e400}\n')
@example(b'{"step": 1.5}\n')
@example(b'{"step": true}\n')
@example(b'{"step": -1}\n')
@example(b"[" * 100_000 + b"\n")
@example(b'{"step": ' + b"9" * 5000 + b"}\n")
@example(b"\xff\n")
def test_metrics_of_any_bytes_are_cut_back(tmp_path_factory: pytest.TempPathFactory, metrics: bytes) -> None:
    """What stays is a line a step, in order: nothing that was not written as one."""
    folder = run_folder(tmp_path_factory, metrics)
    assert isinstance(outcome(lambda: folder.cut_back(3)), list)
    kept = [json.loads(line)["step"] for line in folder.metrics_file.read_text().split("\n")[:-1]]
    assert kept == sorted(set(kept)) and all(type(step) is int and 1 <= step <= 3 for step in kept)


@pytest.mark.parametrize("name", ["step-.jsonl", "step-x.jsonl", "step-000004 (copy).jsonl", "step-000009.jsonl"])
def test_files_of_other_names_among_the_rollouts(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = run_folder(tmp_path_factory, METRICS)
    (folder.rollouts / name).write_text("")
    folder.cut_back(3)
    assert (folder.rollouts / name).exists() == (name != "step-000009.jsonl")


STARTS = json.dumps([{"after_step": step, **CODE, "package": "2b"} for step in (0, 2)]).encode()


@given(st.one_of(damaged(STARTS), changed_byte(STARTS), plain_data().map(lambda made_up: json.dumps(made_up).encode())))
@example(STARTS.replace(b"clean", b"klean"))
@example(STARTS.replace(b"commit", b"kommit"))
@example(b"[" * 100_000)
def test_a_record_of_starts_of_any_bytes_is_read_or_ignored(
    tmp_path_factory: pytest.TempPathFactory, starts: bytes
) -> None:
    folder = run_folder(tmp_path_factory, METRICS)
    folder.environment_file.write_bytes(starts)
    found = Checkpoint(folder.path, {"step": 3})
    for is_exact in (False, True):
        outcome(lambda is_exact=is_exact: compare_environments(found, folder.starts(), CODE, is_exact=is_exact))
    outcome(lambda: folder.cut_back(3))


# ----- an evaluation's answers


DESCRIBED = {"weights": "made up", "temperature": 0.5, "seed": 3}


def answers_of(problem: int) -> list[Answer]:
    return [
        Answer(f"p{problem}", sample, f"It is\u2028{problem}.", "wrong", str(problem), "stop", 4, "7")
        for sample in range(2)
    ]


def log_in(folder: Path, **options: Any) -> AnswerLog:
    noted = {"environment": CODE}
    ids = ["p0", "p1", "p2"]
    return AnswerLog(folder, "made", described=DESCRIBED, noted=noted, problem_ids=ids, num_samples=2, **options)


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Contents of the folder of one that was interrupted after two of three problems, and of one that is complete."""
    folder = tmp_path_factory.mktemp("evaluation")
    log = log_in(folder)
    for problem in (0, 1):
        log.append(answers_of(problem))
    interrupted = contents(folder)
    log.append(answers_of(2))
    log.finish(seed=3)
    return {"interrupted": interrupted, "complete": contents(folder)}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


ANSWER_ROW = json.dumps(answers_of(0)[0].to_row())
TWO_BY_HAND = [
    ANSWER_ROW.replace('"wrong"', '"correctt"'),
    ANSWER_ROW.replace('"num_tokens": 4', '"num_tokens": "many"'),
    ANSWER_ROW.replace('"sample": 0', '"sample": -1.5'),
    ANSWER_ROW.replace('"p0"', "[]"),
    "[]",
    "3",
]


@settings(suppress_health_check=list(HealthCheck))
@given(st.data())
def test_an_evaluation_that_was_cut_anywhere_goes_on_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, evaluations: dict[str, dict[str, bytes]], data: st.DataObject
) -> None:
    """Never an answer that was not drawn: those of the problems that are kept are the ones that were written."""
    state = data.draw(st.sampled_from(sorted(evaluations)))
    files = dict(evaluations[state])
    name = data.draw(st.sampled_from(sorted(files)))
    files[name] = data.draw(cuts(files[name]))
    folder = write(tmp_path_factory.getbasetemp() / "cut", files)
    log = outcome(lambda: log_in(folder))
    if isinstance(log, str):
        assert "--restart" in log and str(folder) in log
        return
    for problem in (0, 1, 2):
        if f"p{problem}" not in log.done:
            log.append(answers_of(problem))
    log.finish(seed=3)
    found, expected = contents(folder), evaluations["complete"]
    assert found.keys() == expected.keys()
    for name, content in found.items():  # a summary without its last newline is whole
        assert content.rstrip(b"\n") == expected[name].rstrip(b"\n")


@pytest.mark.slow
@settings(suppress_health_check=list(HealthCheck))
@given(st.data())
def test_an_evaluation_of_any_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, evaluations: dict[str, dict[str, bytes]], data: st.DataObject
) -> None:
    files = dict(evaluations[data.draw(st.sampled_from(sorted(evaluations)))])
    name = data.draw(st.sampled_from(sorted(files)))
    made_up = st.lists(plain_data(), max_size=3).map(lambda rows: ("\n".join(map(json.dumps, rows)) + "\n").encode())
    files[name] = data.draw(st.one_of(damaged(files[name]), changed_byte(files[name]), made_up))
    use(write(tmp_path_factory.getbasetemp() / "damaged", files))


@pytest.mark.parametrize("key", ["package", "commit", "clean", "versions", "environment"])
def test_an_evaluation_whose_record_of_the_code_is_damaged_goes_on(
    tmp_path: Path, evaluations: dict[str, dict[str, bytes]], key: str
) -> None:
    files = {name: content.replace(f'"{key}"'.encode(), b'"x"') for name, content in evaluations["interrupted"].items()}
    assert files != evaluations["interrupted"]
    files = {name: content.replace(b'"1a"', b'"2b"') for name, content in files.items()}
    assert log_in(write(tmp_path / "damaged", files)).code_changes == []


@pytest.mark.parametrize("row", TWO_BY_HAND)
def test_an_answer_that_cannot_have_been_drawn_is_refused(tmp_path: Path, evaluations: Any, row: str) -> None:
    files = dict(evaluations["complete"])
    rest = files["made.jsonl"].decode().split("\n", 1)[1]
    folder = write(tmp_path / "by-hand", files | {"made.jsonl": f"{row}\n{rest}".encode()})
    assert "made.jsonl: cannot be used" in str(outcome(lambda: log_in(folder)))
    assert isinstance(outcome(lambda: read_rows(folder)), str)
    head = json.dumps(DESCRIBED)
    folder = write(tmp_path / "partial", {"made.partial.jsonl": f"{head}\n{row}\n{ANSWER_ROW}\n".encode()})
    assert "made.partial.jsonl: a line cannot be read" in str(outcome(lambda: log_in(folder)))


@pytest.mark.parametrize(
    "summary",
    [
        "[]",
        "3",
        '{"seed": 3, "num_problems": "x", "num_samples": 2}',
        '{"seed": 3, "num_problems": [3], "num_samples": [2]}',
        '{"seed": null, "num_problems": 3, "num_samples": 2}',
        '{"seed": 3, "num_problems": 3, "num_samples": true}',
        '["seed", "num_problems", "num_samples"]',
        '{"seed": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_numbers_that_cannot_have_been_written_are_refused(tmp_path: Path, evaluations: Any, summary: str) -> None:
    folder = write(tmp_path / "by-hand", evaluations["complete"] | {"made.json": summary.encode()})
    for job in (log_in, read_rows):
        assert f"{folder / 'made.json'}: cannot be read" in str(outcome(lambda job=job: job(folder)))


class NeverRight:
    def grade(self, pairs: Any) -> list[Verdict]:
        return [Verdict("wrong") for _ in pairs]


def use(folder: Path) -> None:
    """All that reads the files of an evaluation."""
    outcome(lambda: log_in(folder).code_changes)
    outcome(lambda: read_rows(folder))
    for file in result_files(folder):
        outcome(lambda file=file: read_summary(file))
        outcome(lambda file=file: read_answers(file.with_suffix(".jsonl")))
        outcome(lambda file=file: regraded(file, NeverRight(), rules={}).write(folder))
