"""A built wheel has every file that the package reads, and its command works from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import VLLM_DTYPE

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools builds beside the source
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "configs", source / "configs")
    shutil.copytree(ROOT / "trapo_lite", source / "trapo_lite", ignore=without, symlinks=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", folder, source], check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command trapo-lite of a new environment, which has the wheel and sees this one's other packages."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, wheel], check=True, timeout=300)
    # Lines of a .pth file come after the environment's own packages, so trapo_lite is the wheel's.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "trapo-lite"


def run(program: Path, folder: Path, *arguments: str, timeout: float = 120) -> str:
    """Run the command in a folder and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    call = [program, *arguments]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_wheel_holds_the_packages_data(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [file for file in (ROOT / "trapo_lite").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert {str(file.relative_to(ROOT)) for file in files} <= held
    assert {"trapo_lite/evaluation/benchmarks.yaml", "trapo_lite/evaluation/published.yaml"} <= held
    configs = {file.relative_to(ROOT) for file in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 10 and {f"trapo_lite/{file}" for file in configs} <= held


def test_the_commands_that_need_no_model_work_in_an_empty_folder(program: Path, tmp_path: Path) -> None:
    assert "  quickstart  Evaluate, train" in run(program, tmp_path)
    assert "\ntiny_cpu.yaml " in run(program, tmp_path, "configs")
    plan = run(program, tmp_path, "train", "--config", "tiny_cpu.yaml", "--dry-run", f"model.dtype={VLLM_DTYPE}")
    assert f"model     {program.parents[1]}" in plan  # the tiny base in the wheel
    assert "that pyproject.toml requires" in run(program, tmp_path, "doctor")
    assert list(tmp_path.iterdir()) == []


def test_the_whole_quickstart_runs_in_an_empty_folder(program: Path, tmp_path: Path) -> None:
    printed = run(program, tmp_path, "quickstart", timeout=1200)
    folder = tmp_path / "runs/quickstart-seed0"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert (folder / "merged/model.safetensors").is_file()
    before, after = (
        float(line.split()[1]) for line in printed.splitlines() if line.startswith(("  before   0.", "  after    0."))
    )
    assert before < 0.3 and after > 0.8
    assert "Your own problems: trapo-lite train --config smollm2_135m.yaml" in printed
