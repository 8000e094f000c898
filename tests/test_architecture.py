"""The order of the folders (docs/design.md) and the doors of the heavy libraries, held by reading every import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trapo_lite"

# A folder imports only from rows above its own, and is free inside. `core`, which computes, has one more rule below.
ROWS = (
    "core tiny_world",
    "config",
    "run",
    "data reward model",
    "engines exporting",
    "planning",
    "rollout",
    "evaluation",
    "training curation",
    "report",
    "doctor quickstart interface",
    "cli",
    "__main__",
)
ROW_BY_FOLDER = {folder: row for row, folders in enumerate(ROWS) for folder in folders.split()}

# Beginnings of module names: "engines/vllm" is the door of engines/vllm/worker too.
DOORS = {
    "vllm": ("engines/vllm",),
    "peft": (
        *("model/adapter", "model/saved_adapter", "model/shape", "model/packable"),
        *("exporting/merge", "engines/transformers"),
    ),
    "bitsandbytes": ("model/policy", "exporting/merge", "training/optimizer"),
    "datasets": ("data",),
    "math_verify": ("reward",),
    "accelerate": ("run/processes", "run/device", "run/loggers"),
    "wandb": ("run/loggers",),
    "trackio": ("run/loggers",),
    "tensorboard": ("run/loggers",),
    "vl_convert": ("report/page",),
}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(source: str) -> list[str]:
    """Every module named by an import anywhere in the file, lazy and type-checking ones included."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return names


def wrong_imports(module: str, source: str) -> list[str]:
    """Imports that go up or sideways, or open a library behind a door that is not this module's."""
    own = module.split("/")[0]
    complaints = []
    for name in imported(source):
        parts = name.split(".")
        if parts[0] == "":
            complaints.append(f"{module}: relative import {name}; write trapo_lite...")
        elif parts[0] == "trapo_lite" and len(parts) > 1:
            if parts[1] != own and ROW_BY_FOLDER.get(parts[1], len(ROWS)) >= ROW_BY_FOLDER[own]:
                complaints.append(f"{module}: imports {name}, which is not in a row above")
        else:
            for library, doors in DOORS.items():
                if library in parts and not module.startswith(doors):
                    complaints.append(f"{module}: imports {library}, whose doors are {', '.join(doors)}")
    return complaints


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_stands_in_the_table_and_imports_from_rows_above(path: Path) -> None:
    name = module_name(path)
    assert name.split("/")[0] in ROW_BY_FOLDER, f"{name} is not in the table; enter its folder in ROWS"
    assert wrong_imports(name, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core/losses", "from trapo_lite.config import Config"),
        ("core/tree", "def f():\n    from trapo_lite.model.policy import Policy"),
        ("config/sections", "import trapo_lite.run.folder"),
        ("data/rows", "from trapo_lite.reward import MathVerifier"),
        ("rollout/sampler", "from trapo_lite import training"),
        ("model/policy", "from trapo_lite.rollout.sampler import sample_groups"),
        ("core/losses", "from . import types"),
        ("training/trainer", "import vllm"),
        ("rollout/sampler", "def f():\n    from peft.utils import x"),
        ("training/update", "from torch.utils.tensorboard import SummaryWriter"),
    ],
)
def test_the_check_sees_wrong_imports(module: str, source: str) -> None:
    assert wrong_imports(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engines/vllm/engine", "from trapo_lite.engines.base import Completion\nimport vllm"),
        ("data/loading", "from trapo_lite.data.rows import Example\nimport datasets"),
        ("run/processes", "from trapo_lite.run import metrics\nfrom accelerate import Accelerator"),
        (
            "training/trainer",
            "from trapo_lite.rollout.sampler import sample_groups\nfrom trapo_lite.core import losses",
        ),
    ],
)
def test_the_check_lets_right_imports_pass(module: str, source: str) -> None:
    assert wrong_imports(module, source) == []


CORE = sorted(path for path in (PACKAGE / "core").glob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_computes_and_does_nothing_else(path: Path) -> None:
    """Torch and the standard library; no configuration, no reading or writing, no printing, no `.item()`."""
    source = path.read_text(encoding="utf-8")
    libraries = {module.split(".")[0] for module in imported(source)}
    assert libraries <= {"torch", "trapo_lite", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            allowed = {"item"} if path.name == "algorithm.py" else set()  # its metrics are numbers
            assert called not in {"print", "open", "item"} - allowed, f"{path.name}, line {node.lineno}: calls {called}"


@pytest.mark.slow
def test_light_imports_load_no_heavy_library() -> None:
    heavy = {"torch", "vllm", "peft", "bitsandbytes", "datasets", "accelerate", "transformers", "math_verify"}
    for modules, allowed in (
        ("trapo_lite", set()),
        ("trapo_lite.interface", set()),
        ("trapo_lite.config", set()),
        ("trapo_lite.core.losses", {"torch"}),
        ("trapo_lite.engines.start", {"torch"}),
    ):
        program = f"import sys, {modules}; print(*sys.modules)"
        answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
        assert set(answer.stdout.split()) & heavy == allowed


def test_the_page_shows_the_same_rows() -> None:
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    table = page.partition("| row | folder | what it owns |\n|---|---|---|\n")[2].partition("\n\n")[0]
    shown: dict[int, list[str]] = {}
    for line in table.splitlines():
        _, row, folders, *_ = line.split("|")
        shown.setdefault(int(row), []).extend(re.findall(r"`(\w+)`", folders))
    assert [" ".join(folders) for folders in shown.values()] == list(ROWS)


SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
BEFORE_THE_PACKAGE = ("setup_env.py", "setup_cuda.py", "needs_setup.py")
"""They run where nothing is installed, so they hold their own logic and import the standard library only."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_a_door_and_no_more(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    libraries = {module.split(".")[0] for module in imported(source)}
    if path.name in BEFORE_THE_PACKAGE:
        assert libraries <= sys.stdlib_module_names | {"setup_cuda", "trapo_lite"}
        own = [name for name in imported(source) if "trapo_lite" in name]
        light = ("run.nvidia_smi", "run.tested_versions", "run.interrupts")
        assert all(any(module in name for module in light) for name in own)
    else:
        assert len(source.splitlines()) < 27
        assert "trapo_lite" in libraries
