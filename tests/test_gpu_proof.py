"""benchmarks/gpu_proof.py: a part that fails or hangs does not stop the others, and its figures so far are kept."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gpu_proof
import pytest

TABLE = {name: gpu_proof.Part(f"proof_parts:{name}", (20.0, 20.0), name) for name in ("works", "fails", "skips")}
TABLE |= {"hangs": gpu_proof.Part("proof_parts:hangs", (6.0, 6.0), "hangs")}


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_proof.Setting:
    folders = [str(Path(__file__).parent), str(Path(gpu_proof.__file__).parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()
    return gpu_proof.Setting(work=str(tmp_path / "work"), out=str(tmp_path / "out"), has_gpu=False)


@pytest.mark.slow
def test_each_part_has_its_own_fate(setting: gpu_proof.Setting) -> None:
    order = ["fails", "hangs", "skips", "works"]
    results = gpu_proof.prove(order, setting, deadline=time.monotonic() + 120, table=TABLE)
    assert {name: result["status"] for name, result in results.items()} == {
        "fails": "failed",
        "hangs": "failed",
        "skips": "skipped",
        "works": "ok",
    }
    assert results["works"]["figures"] == {"answer": 42, "folders": {"work": True, "exact": 0.125}}
    assert results["fails"]["figures"] == {"before": 1}
    assert "ValueError: the reason to be seen" in results["fails"]["reason"]
    assert results["hangs"]["reason"].startswith("killed after 6 s")
    assert results["skips"]["reason"] == "there is no such card"
    written = json.loads(Path(setting.out, "gpu_proof.json").read_text())
    assert written == results
    table = Path(setting.out, "gpu_proof.md").read_text()
    assert "| works | ok |" in table and "| answer | 42 |" in table and "work True, exact 0.125" in table


@pytest.mark.slow
def test_what_a_killed_part_started_ends_with_it(setting: gpu_proof.Setting) -> None:
    gpu_proof.prove(["hangs"], setting, deadline=time.monotonic() + 60, table=TABLE)
    child = int(Path(setting.work, "child").read_text())
    deadline = time.monotonic() + 30
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)  # a killed process needs its turn to end
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({}, "needs 10 s at least, 9 s were left; raise --minutes"),
        ({"without_gpu": "there is no card"}, "there is no card"),
        ({"needs": ("model", "eval_data")}, "give --model, --eval-data"),
    ],
)
def test_a_part_that_cannot_be_measured_is_not_begun(part: dict, reason: str, setting: gpu_proof.Setting) -> None:
    table = {"works": gpu_proof.Part("proof_parts:works", (20.0, 20.0), "works", **part)}
    results = gpu_proof.prove(["works"], setting, deadline=time.monotonic() + 9.4, table=table)
    assert results["works"] == {"status": "skipped", "reason": reason, "seconds": 0.0}
    assert not Path(setting.out, "works.log").exists()


def test_every_part_names_a_function() -> None:
    folder = Path(gpu_proof.__file__).parent
    for name, part in gpu_proof.PARTS.items():
        module, _, function = part.function.partition(":")
        assert f"\ndef {function}(setting: Setting, record: Record)" in (folder / f"{module}.py").read_text(), name


def test_a_path_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, gpu_proof.__file__, "--out", str(tmp_path), "--model", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: --model: there is no {tmp_path / 'nowhere'}\n"


@pytest.mark.long
def test_the_trainers_parts_run_without_a_gpu(tmp_path: Path) -> None:
    parts = ["machine", "kernels", "gradient", "update_1.5B", "update_7B"]
    command = [sys.executable, gpu_proof.__file__, "--minutes", "10", "--out", str(tmp_path), "--parts", *parts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=660)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu_proof.json").read_text())
    assert [results[name]["status"] for name in parts] == ["ok", "skipped", "ok", "ok", "skipped"]
    assert results["gradient"]["figures"]["packed_against_padded"] < 1e-5  # the same gradient, summed in another order
    assert results["update_1.5B"]["figures"]["512_tokens"]["packed_tokens"] <= 512
