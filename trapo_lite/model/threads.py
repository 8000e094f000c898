"""Choose how many CPU threads the trainer and vLLM use (docs/RESULTS.md has the measurement)."""

import os

import torch

from trapo_lite.config import Config

SMALL_WIDTH = 512  # hidden size below which two threads beside another busy process take 2 to 3 times as long as one


def set_threads(config: Config) -> None:
    """Set torch's threads to `run.num_threads`, or to one where that is the safe choice."""
    number = config.run.num_threads
    if number is None and (config.run.deterministic or _is_small(config)):
        number = 1
    if number is not None:
        torch.set_num_threads(number)


def engine_threads(config: Config, *, num_engines: int = 1) -> int:
    """Return `rollout.num_threads`, or what is chosen for one of so many engines on this machine.

    One core is left for those who grade: beside one busy process, vLLM with as many threads as cores took 4 to 60 times
    as long as with one.
    """
    if config.rollout.num_threads is not None:
        return config.rollout.num_threads
    if torch.cuda.is_available() or config.run.deterministic or _is_small(config):
        return 1
    return max(1, num_cores() // num_engines - 1)


def thread_lines(config: Config, *, num_engines: int) -> list[str]:
    """Return a line for the user where the CPU computes."""
    if torch.cuda.is_available():
        return []
    own = torch.get_num_threads()
    vllm = ""
    if config.uses_engine and config.rollout.engine == "vllm":
        vllm = f", {engine_threads(config, num_engines=num_engines)} for vLLM (rollout.num_threads)"
    return [f"threads: {own} for updates (run.num_threads){vllm}; {num_cores()} cores"]


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_small(config: Config) -> bool:
    """Return whether the model is narrow, so that several threads gain less than they can lose."""
    from trapo_lite.model.base import model_config

    return not torch.cuda.is_available() and model_config(config.model).hidden_size < SMALL_WIDTH
