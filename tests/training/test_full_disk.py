"""A disk that is full at any write: nothing is lost, the message names the file, the same command resumes."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import phases
import pytest

from trapo_lite import cli
from trapo_lite.data.tokens import end_of_text_id, load_tokenizer
from trapo_lite.exporting.saving import save_tokenizer
from trapo_lite.run.files import append_bytes, move_into_place, naming, replace_text
from trapo_lite.run.loggers import TensorBoardLogger
from trapo_lite.tiny_world import BASE_DIR

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("cc") is None, reason="needs a C compiler: writes are refused by a library of one page"
)
def test_writes_of_every_job_fail_in_turn(tmp_path: Path) -> None:
    """One of eight of them; benchmarks/full_disk.py tries all."""
    command = [sys.executable, "benchmarks/full_disk.py", "--folder", str(tmp_path), "--every", "8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert all(f"{job} 1/" in done.stdout for job in ("train", "evaluate", "export", "prepare_data"))


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def copy(target: Path) -> None:
    """As a copy fails: the system names the file that was read first."""
    raise OSError(28, "No space left on device", "/a/source", None, str(target))


def test_the_message_names_the_file_that_was_to_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    for write in (copy, with_name):
        with pytest.raises(SystemExit), cli.exit_on_user_error():
            write(Path("/dev/full"))
        message = capsys.readouterr().err
        assert message.startswith("error: /dev/full: No space left on device; ") and "same command again" in message


def with_name(target: Path) -> None:
    with naming(target), target.open("w") as file:
        file.write("x")


def test_a_tokenizer_that_cannot_be_written_is_a_full_disk_and_no_traceback(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(BASE_DIR))
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_tokenizer(tokenizer, tmp_path, end_of_text_id(tokenizer, None))


def test_tensorboards_thread_leaves_the_error_to_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = TensorBoardLogger(tmp_path / "events", first_step=1)
    [file] = (tmp_path / "events").iterdir()
    logger.flush()
    file.unlink()
    file.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"{tmp_path}/events"):
        for _ in range(3):
            logger.log({"loss/completion": 1.0}, [], step=1)
            logger.flush()
    with contextlib.suppress(OSError):
        logger.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_is_only_replaced_when_the_new_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        return full() or self if self.name == "new" else rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(OSError, match="No space"):
            move_into_place(new, old)
    assert (old / "name").read_text() == "old" and sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    move_into_place(new, old)
    assert (old / "name").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["old"]


def test_files_of_results_keep_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.json"
    replace_text(file, "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(Exception, match=r"results\.json: cannot be written: No space left on device; make room"):
            replace_text(file, "new")
    assert file.read_text() == "old" and append_bytes(file, b"er") == 5
    with pytest.raises(Exception, match=r"--out /dev/full: cannot be written: No space left"):
        append_bytes(Path("/dev/full"), b"x")


def test_the_phases_that_runs_are_killed_in_are_functions_of_the_package() -> None:
    """benchmarks/phases.py names them by text."""
    import importlib

    for target in phases.FUNCTIONS.values():
        module, _, path = target.partition(":")
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        assert callable(found)
