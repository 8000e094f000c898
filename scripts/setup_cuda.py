"""Check what the CUDA build needs: driver, cards, compiler. It is part of setup_env.py and needs no package."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # the project is not installed yet

from trapo_lite.run.nvidia_smi import (
    MIN_CAPABILITY,
    MIN_DRIVER,
    Card,
    ask_nvidia_smi,
    missing_for_triton,
    parse_cards,
)

CPU_INSTEAD = "or set up for the CPU: make setup DEVICE=cpu"


class SetupError(Exception):
    """Raised if the set-up must stop. The message says what was found and the one thing to do."""


def find_cards() -> list[Card]:
    """Return the machine's GPUs, in nvidia-smi's order."""
    answer = ask_nvidia_smi()
    return parse_cards(answer.text) if answer.outcome == "ok" else []


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


def check_compiler() -> None:
    """Raise SetupError without a C compiler and Python.h."""
    if missing := missing_for_triton():
        raise SetupError(f"{missing}, {CPU_INSTEAD}")


def check_torch(python: Path) -> None:
    """Raise SetupError if the installed torch does not find a card that it can use."""
    done = subprocess.run([str(python), "-c", "import torch; torch.cuda.init()"], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise SetupError(
            f"everything is installed, but torch cannot use the GPU: {reason}; check the driver (nvidia-smi), and "
            f"CUDA_VISIBLE_DEVICES, {CPU_INSTEAD}"
        )
