"""An installed wheel has every file that the package reads."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_the_wheel_holds_the_packages_data(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools builds beside the source
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "trapo_lite", source / "trapo_lite", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    data = {file for file in (ROOT / "trapo_lite").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert {str(file.relative_to(ROOT)) for file in data} <= held
    assert {"trapo_lite/evaluation/benchmarks.yaml", "trapo_lite/evaluation/published.yaml"} <= held
