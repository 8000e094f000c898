"""Choose how many CPU threads the trainer and vLLM use (docs/RESULTS.md has the measurement)."""

import os
import re
from pathlib import Path

import torch

from trapo_lite.config import Config

SMALL_WIDTH = 512  # hidden size below which a second thread loses more beside a busy process than it gains otherwise
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU and the period they are for, or "max"


def set_threads(config: Config) -> None:
    """Set torch's threads to `run.num_threads`, or to one where that is the safe choice."""
    num_threads = config.run.num_threads
    if num_threads is None and (config.run.deterministic or _is_small(config)):
        num_threads = 1
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def engine_threads(config: Config, *, num_engines: int = 1) -> int:
    """Return `rollout.num_threads`, or what is chosen for one of so many engines on this machine.

    The processes that grade have a core each: beside one busy process, vLLM with as many threads as cores took 4 to 60
    times as long as with one.
    """
    if config.rollout.num_threads is not None:
        return config.rollout.num_threads
    if torch.cuda.is_available() or config.run.deterministic or _is_small(config):
        return 1
    return max(1, num_cores() // num_engines - config.reward.num_workers)


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
    """Return how many cores this process may use, by its affinity and its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = re.match(r"(\d+) (\d+)", QUOTA.read_text()) if QUOTA.is_file() else None
    return allowed if quota is None else max(1, min(allowed, int(quota[1]) // int(quota[2])))


def _is_small(config: Config) -> bool:
    """Return whether the model is narrow, so that several threads gain less than they can lose."""
    from trapo_lite.model.base import model_config

    return not torch.cuda.is_available() and model_config(config.model).hidden_size < SMALL_WIDTH
