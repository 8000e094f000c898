"""Ask the NVIDIA driver for its cards, and look for what Triton needs. Only the standard library is imported."""

import contextlib
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MIN_DRIVER = 580  # CUDA 13, for which PyPI's wheels of torch and vLLM are built, needs this
MIN_CAPABILITY = (8, 0)  # needed for bfloat16
MIB = 2**20
NVIDIA_SMI_SECONDS = 15.0
CARD_FIELDS = ("index", "uuid", "name", "driver_version", "memory.total", "memory.used", "compute_cap")


@dataclass(frozen=True)
class Answer:
    """Hold what a program did. text: its output; if it failed, the line that says why."""

    outcome: Literal["ok", "failed", "hung", "missing"]
    text: str = ""


@dataclass(frozen=True)
class Card:
    """Hold one GPU as nvidia-smi describes it. memory, used: bytes; None: nvidia-smi does not say."""

    index: int
    uuid: str
    name: str
    driver: str
    memory: float | None
    used: float | None
    capability: tuple[int, int] | None


def run_limited(command: Sequence[str], *, limit_s: float) -> Answer:
    """Run a program. If it takes longer than limit_s, kill it and its children, and do not wait for them.

    A process that hangs in the driver cannot be killed.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        return Answer("missing")
    except (OSError, ValueError) as error:
        return Answer("failed", str(error))
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # ended just now, or of another user
            os.killpg(process.pid, signal.SIGKILL)
        return Answer("hung", f"no answer within {limit_s:g} s")
    if process.returncode == 0:
        return Answer("ok", out)
    lines = [line.strip() for line in (err if err.strip() else out).splitlines() if line.strip()]
    return Answer("failed", lines[-1] if lines else f"exit status {process.returncode}")


def ask_nvidia_smi(limit_s: float = NVIDIA_SMI_SECONDS) -> Answer:
    """Return nvidia-smi's table of cards. Drivers older than 510 do not know its last field."""
    for fields in (CARD_FIELDS, CARD_FIELDS[:-1]):
        query = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        answer = run_limited(["nvidia-smi", *query], limit_s=limit_s)
        if "not a valid field" not in answer.text:
            break
    return answer


def parse_cards(table: str) -> list[Card]:
    """Return the cards of nvidia-smi's table. Lines of another form are skipped.

    >>> card = parse_cards("0, GPU-1a, NVIDIA A100-SXM4-80GB, 580.82.07, 81920, 4, 8.0")[0]
    >>> card.name, card.capability, card.memory == 80 * 2**30
    ('NVIDIA A100-SXM4-80GB', (8, 0), True)
    """
    cards = []
    for line in table.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) < len(CARD_FIELDS) - 1 or not values[0].isdigit():
            continue
        index, uuid, name, driver, total, used = values[:6]
        memory, in_use = (float(text) * MIB if text.isdigit() else None for text in (total, used))
        major, _, minor = (values[6] if len(values) > 6 else "").partition(".")
        capability = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
        cards.append(Card(int(index), uuid, name, driver, memory, in_use, capability))
    return cards


def missing_for_triton() -> str | None:
    """Return what is missing of a C compiler and Python.h, and what to install; None: both are there.

    Triton compiles a launcher for each kernel while a trainer or an engine runs on a GPU.
    """
    if "CC" not in os.environ and not (shutil.which("gcc") or shutil.which("clang")):
        return (
            "no C compiler, which Triton calls while a run uses a GPU; install gcc (on Debian or Ubuntu: sudo apt "
            "install gcc), or name one by CC="
        )
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        version = sysconfig.get_python_version()
        return (
            f"no Python.h in {include}, which Triton compiles against while a run uses a GPU; install Python's headers "
            f"(on Debian or Ubuntu: sudo apt install python{version}-dev; on RHEL or Fedora: python{version}-devel)"
        )
    return None
