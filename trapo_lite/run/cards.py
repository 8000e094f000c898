"""Check the GPUs that this process may use. GPUs that torch cannot use are an error, not a run on the CPU."""

import os
from collections.abc import Sequence

import torch

from trapo_lite.core.errors import ConfigError
from trapo_lite.core.in_words import counted
from trapo_lite.run.gpus import named_cards
from trapo_lite.run.nvidia_smi import MIN_CAPABILITY, ask_nvidia_smi, missing_for_triton, parse_cards

VISIBLE = "CUDA_VISIBLE_DEVICES"


def require_usable_cards(*, num_processes: int = 1) -> None:
    """Raise ConfigError if there are GPUs that cannot be used as asked. Without a GPU there is nothing to check.

    num_processes: processes on this machine, one card each. An empty CUDA_VISIBLE_DEVICES, or -1, asks for the CPU.
    """
    names = named_cards(os.environ.get(VISIBLE))
    if torch.version.cuda is None or (names is not None and not names):
        return
    if not torch.cuda.is_available():
        if listed := len(parse_cards(ask_nvidia_smi().text)):
            raise ConfigError(
                f"GPU: nvidia-smi lists {listed}, but torch {torch.__version__} cannot use "
                f"{'those' if names is None else f'what {VISIBLE}={os.environ[VISIBLE]} names'}: {_reason()}; name "
                f"cards that are there, update the driver (CUDA 13 needs 580), or set {VISIBLE}= to run on the CPU"
            )
        return
    visible = torch.cuda.device_count()
    if names is not None and visible < len(names):
        raise ConfigError(
            f"{VISIBLE}: found {os.environ[VISIBLE]!r}, but only the first {visible} of these {len(names)} cards can "
            "be used; name cards that nvidia-smi -L lists, each once"
        )
    if num_processes > visible:
        raise ConfigError(
            f"launch: {num_processes} processes for {counted(visible, 'GPU')}, each needs its own; "
            f"start {visible} (--num_processes {visible}; {VISIBLE} may hide others)"
        )
    _require_bfloat16(range(num_processes))
    if missing := missing_for_triton():
        raise ConfigError(f"GPU: {missing}")


def _require_bfloat16(cards: Sequence[int]) -> None:
    for card in cards:
        capability = torch.cuda.get_device_capability(card)
        if capability < MIN_CAPABILITY:
            raise ConfigError(
                f"GPU: {torch.cuda.get_device_name(card)} has compute capability {capability[0]}.{capability[1]}, "
                f"bfloat16 needs 8.0 or higher (A100, RTX 30 or newer); choose other cards by {VISIBLE}"
            )


def _reason() -> str:
    """Return the first line of torch's error when it initialises CUDA."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "it says no reason"
