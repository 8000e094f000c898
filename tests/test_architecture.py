"""The layers of DESIGN 2 and the doors of the heavy libraries, held by reading every import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trapo_lite"

# A module imports only from rows above its own. DESIGN's layers, with the shell's inner order spelt out; a package is
# one entry and free inside, except `engines`, whose `base` is lower than the engines themselves. A new module is
# entered here, in the lowest row that its imports allow.
ROWS: list[tuple[str, str]] = [
    ("0 values", "types"),
    ("0 values", "config metrics gpus environment"),
    ("1 pure core", "schedule advantage losses tree head"),
    ("2 names to functions, edges", "algorithm engines/base data reward cards"),
    ("3 shell: parts", "files"),
    (
        "3 shell: parts",
        "branches parity loggers display launch ranks device run_folder rollout_metrics model_card "
        "model_shape scores benchmarks build_tally "
        "export_report",
    ),
    ("3 shell: parts", "base_model tree_attention plain_decoder problem_sets second_traces"),
    ("3 shell: parts", "packable adapter"),
    ("3 shell: owners", "policy sampler engines"),
    (
        "3 shell: put together",
        "memory_plan update packing_check checkpoint evaluation publishing export inputs identity rollout_choices "
        "log_book",
    ),
    ("3 shell: put together", "rollout_stage answer_log start_point"),
    ("3 shell: put together", "training_set"),
    ("4 jobs", "trainer evaluate regrade compare planner prepare tiny_world"),
    ("5 doors", "quickstart doctor"),
    ("5 doors", "cli"),
]
ROW_BY_ENTRY = {entry: row for row, (_, entries) in enumerate(ROWS) for entry in entries.split()}
PURE_CORE = ("schedule", "advantage", "losses", "tree", "head")

# Beginnings of module names: "engines/vllm" is vllm_worker's door too.
DOORS = {
    "vllm": ("engines/vllm",),
    "peft": ("adapter", "policy", "model_shape", "packable", "export", "engines/transformers"),
    "bitsandbytes": ("policy", "export", "update"),
    "datasets": ("data",),
    "math_verify": ("reward",),
    "accelerate": ("ranks", "device"),
    "wandb": ("loggers",),
    "tensorboard": ("loggers",),
}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def entry_of(parts: list[str]) -> str:
    """Where a module stands in the table: ["engines", "base"] -> "engines/base", ["data", "rows"] -> "data"."""
    return "engines/base" if parts[:2] == ["engines", "base"] else parts[0]


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
    own = entry_of(module.split("/"))
    complaints = []
    for name in imported(source):
        parts = name.split(".")
        if parts[0] == "":
            complaints.append(f"{module}: relative import {name}; write trapo_lite...")
        elif parts[0] == "trapo_lite" and len(parts) > 1:
            is_lower = ROW_BY_ENTRY.get(entry_of(parts[1:]), len(ROWS)) < ROW_BY_ENTRY[own]
            is_inside = parts[1] == module.split("/")[0] and own != "engines/base"
            if not (is_lower or is_inside):
                complaints.append(f"{module}: imports {name}, which is not in a lower row")
        else:
            for library, doors in DOORS.items():
                if library in parts and not module.startswith(doors):
                    complaints.append(f"{module}: imports {library}, whose doors are {', '.join(doors)}")
    return complaints


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_stands_in_the_table_and_imports_from_lower_rows(path: Path) -> None:
    name = module_name(path)
    assert entry_of(name.split("/")) in ROW_BY_ENTRY, f"{name} is not in the layer table; enter it in ROWS"
    assert wrong_imports(name, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("losses", "from trapo_lite.algorithm import Algorithm"),
        (
            "losses",
            "def f():\n    from trapo_lite.config import Config\n    from trapo_lite.schedule import cut_prefix",
        ),
        ("tree", "import trapo_lite.policy"),
        ("sampler", "from trapo_lite import trainer"),
        ("policy", "from trapo_lite.sampler import Sampler"),
        ("engines/base", "from trapo_lite.engines.vllm import VLLMEngine"),
        ("algorithm", "from trapo_lite.engines.base import Completion"),
        ("losses", "from . import types"),
        ("trainer", "import vllm"),
        ("sampler", "def f():\n    from peft.utils import x"),
        ("update", "from torch.utils.tensorboard import SummaryWriter"),
    ],
)
def test_the_check_sees_wrong_imports(module: str, source: str) -> None:
    assert wrong_imports(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engines/vllm", "from trapo_lite.engines.base import Completion\nimport vllm"),
        ("engines/vllm", "from trapo_lite.engines.child import ChildProcess"),
        ("data/loading", "from trapo_lite.data.rows import Example\nimport datasets"),
        ("ranks", "from trapo_lite import metrics\nfrom accelerate import Accelerator"),
    ],
)
def test_the_check_lets_right_imports_pass(module: str, source: str) -> None:
    assert wrong_imports(module, source) == []


@pytest.mark.parametrize("name", PURE_CORE)
def test_the_pure_core_computes_and_does_nothing_else(name: str) -> None:
    """DESIGN 2: types, torch and the standard library; no I/O, no printing, no `.item()`."""
    source = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
    libraries = {module.split(".")[0] for module in imported(source)}
    assert libraries <= {"torch", "trapo_lite", *sys.stdlib_module_names}
    assert {module for module in imported(source) if module.startswith("trapo_lite")} <= {
        f"trapo_lite.types.{value}" for value in ("MicroGroup", "PackedBatch", "Rollout")
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert called not in {"print", "open", "item"}, f"{name}.py, line {node.lineno}: calls {called}"


def test_light_imports_load_no_heavy_library() -> None:
    program = "import sys, trapo_lite, trapo_lite.config, trapo_lite.losses; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(answer.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"vllm", "peft", "bitsandbytes", "datasets", "accelerate", "transformers", "math_verify"}


SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
BEFORE_THE_PACKAGE = ("setup_env.py", "setup_cuda.py", "needs_setup.py")
"""They run where nothing is installed, so they hold their own logic and import the standard library only."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_a_door_and_no_more(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    libraries = {module.split(".")[0] for module in imported(source)}
    if path.name in BEFORE_THE_PACKAGE:
        assert libraries <= sys.stdlib_module_names | {"setup_cuda"}
    else:
        assert len(source.splitlines()) < 27
        assert "trapo_lite" in libraries
