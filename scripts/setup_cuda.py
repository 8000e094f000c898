"""Check what the CUDA build needs: driver, cards, compiler. It is part of setup_env.py and needs no package."""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIN_DRIVER = 580  # CUDA 13, for which PyPI's wheels of torch and vLLM are built, needs this
MIN_CAPABILITY = (8, 0)  # needed for bfloat16
CPU_INSTEAD = "or set up for the CPU: make setup DEVICE=cpu"


class SetupError(Exception):
    """Raised if the set-up must stop. The message says what was found and the one thing to do."""


@dataclass(frozen=True)
class Card:
    """Hold one GPU as nvidia-smi describes it. capability: None if it does not say (drivers older than 510)."""

    name: str
    driver: str
    capability: tuple[int, int] | None


def has_nvidia_gpu() -> bool:
    return "GPU " in _nvidia_smi("-L")


def find_cards() -> list[Card]:
    """Return the machine's GPUs, in nvidia-smi's order."""
    listing = _nvidia_smi("--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader")
    if not listing:
        listing = _nvidia_smi("--query-gpu=name,driver_version", "--format=csv,noheader")
    cards = []
    for line in listing.splitlines():
        name, driver, *capability = [field.strip() for field in line.split(",")]
        major, _, minor = (capability or [""])[0].partition(".")
        is_known = major.isdigit() and minor.isdigit()
        cards.append(Card(name, driver, (int(major), int(minor)) if is_known else None))
    return cards


def check_cards(cards: Sequence[Card]) -> None:
    """Raise SetupError if the driver is older than the wheels need, or if no card computes in bfloat16."""
    for card in cards:
        major = card.driver.partition(".")[0]
        if major.isdigit() and int(major) < MIN_DRIVER:
            raise SetupError(
                f"{card.name}: its driver is {card.driver}, but torch and vLLM are built for CUDA 13, which needs "
                f"{MIN_DRIVER} or newer; update the NVIDIA driver, {CPU_INSTEAD}"
            )
    if cards and all(card.capability is not None and card.capability < MIN_CAPABILITY for card in cards):
        found = ", ".join(
            f"{card.name} ({card.capability[0]}.{card.capability[1]})" for card in cards if card.capability
        )
        raise SetupError(
            f"{found}: bfloat16 needs a card of compute capability 8.0 or higher (A100, RTX 30 or newer); use another "
            f"machine, {CPU_INSTEAD}"
        )


def check_compiler(include: Path | None = None) -> None:
    """Raise SetupError without a C compiler and Python.h, because Triton compiles a launcher for each kernel.

    include: folder of Python.h; None: this Python's own
    """
    if "CC" not in os.environ and not (shutil.which("gcc") or shutil.which("clang")):
        raise SetupError(
            "no C compiler: Triton, which trainer and engine need on a GPU, calls one while they run; install gcc (on "
            f"Debian or Ubuntu: sudo apt install gcc), or name one by CC=, {CPU_INSTEAD}"
        )
    include = include or Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        version = sysconfig.get_python_version()
        raise SetupError(
            f"no Python.h in {include}: Triton, which trainer and engine need on a GPU, compiles against it while they "
            f"run; install Python's headers (on Debian or Ubuntu: sudo apt install python{version}-dev; on RHEL or "
            f"Fedora: python{version}-devel), {CPU_INSTEAD}"
        )


def missing_for_triton() -> str | None:
    """Return the message of `check_compiler`, or None if all is there."""
    try:
        check_compiler()
    except SetupError as error:
        return str(error)
    return None


def check_torch(python: Path) -> None:
    """Raise SetupError if the installed torch does not find a card that it can use."""
    done = subprocess.run([str(python), "-c", "import torch; torch.cuda.init()"], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise SetupError(
            f"everything is installed, but torch cannot use the GPU: {reason}; check the driver (nvidia-smi), and "
            f"CUDA_VISIBLE_DEVICES, {CPU_INSTEAD}"
        )


def _nvidia_smi(*arguments: str) -> str:
    """Return nvidia-smi's output, or "" if it is missing or fails."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
