"""The functions of `import trapo_lite` do what docs/python.md says, and mistakes are errors that say what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trapo_lite

PAGE = Path(__file__).parents[1] / "docs/python.md"


def example() -> str:
    """Return the lines of code on the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    ") or not line)


@pytest.mark.slow
def test_the_example_on_the_page_trains_evaluates_and_exports(tmp_path: Path) -> None:
    checks = "\n".join(
        [
            "assert [step['step'] for step in run.metrics] == [1, 2] and run.adapter.is_dir()",
            "assert len(results['dev'].groups) == 20 and 0 <= results['dev'].accuracy <= 1",
            "assert report.out == run.folder / 'merged' and report.refusal() is None",
        ]
    )
    environment = os.environ | {"PYTHONPATH": str(PAGE.parents[1]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-c", f"{example()}\n{checks}"]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "runs/from_python [" in done.stdout
    assert "next: trapo-lite export --run runs/from_python" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("name", trapo_lite.__all__)
def test_every_name_is_there_and_explained(name: str) -> None:
    assert getattr(trapo_lite, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'trapo_lite' has no attribute 'trian'"):
        trapo_lite.trian  # noqa: B018


def test_a_single_file_needs_no_list() -> None:
    assert trapo_lite.load_config("tiny_cpu.yaml") == trapo_lite.load_config(["tiny_cpu.yaml"])
    assert trapo_lite.load_config(Path("algorithm/sft.yaml")).algorithm.name == "sft"


def test_mistakes_are_errors_of_the_package(tmp_path: Path) -> None:
    config = trapo_lite.load_config("tiny_cpu.yaml", [f"data.train={tmp_path}/missing.jsonl"])
    for call, message in (
        (lambda: trapo_lite.train(config), "missing.jsonl: no such file"),
        (lambda: trapo_lite.evaluate(), "run, model: found both or none"),
        (lambda: trapo_lite.evaluate(run=tmp_path, model="any"), "run, model: found both or none"),
        (lambda: trapo_lite.evaluate(run=tmp_path), "holds no config.yaml"),
        (lambda: trapo_lite.export(tmp_path), "holds no config.yaml"),
    ):
        with pytest.raises(trapo_lite.TrapoLiteError, match=message):
            call()
