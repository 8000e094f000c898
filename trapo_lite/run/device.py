"""Read a process's resources: memory, its peak, the speed of its device, and whether it runs out of memory."""

import resource
import traceback
from types import TracebackType

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from trapo_lite.run.gpus import GIB, find_gpu

FLEX_HEAD_BYTES = 256
"""Largest head for which FlexAttention's kernels fit any card with bfloat16: 128 numbers of bfloat16."""
FLEX_SHARED_MEMORY = 148_480
"""Shared memory per block that the kernels need for larger heads: 128 numbers of float32, measured with Triton."""


class MemoryAttempt:
    """A MemoryAttempt is a block of code that may run out of memory: that ends the block, and is noted.

    What the block had taken is given back. Every other error passes.

    >>> with MemoryAttempt() as attempt:
    ...     raise MemoryError
    >>> attempt.ran_out
    True
    """

    def __init__(self) -> None:
        self.ran_out = False

    def __enter__(self) -> "MemoryAttempt":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, MemoryError) and not (
            isinstance(error, RuntimeError) and should_reduce_batch_size(error)
        ):
            return False
        self.ran_out = True
        traceback.clear_frames(trace)  # they hold on to tensors
        clear_device_cache(garbage_collection=True)
        return True


def name_of(device: torch.device) -> str:
    """Return the driver's name of the GPU, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def total_memory(device: torch.device) -> float | None:
    """Return the bytes of the GPU, or None on the CPU."""
    return float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


def fits_flex_attention(device: torch.device, *, head_bytes: int) -> bool:
    """Return whether this GPU's shared memory fits FlexAttention's kernels. head_bytes: of one head of one token."""
    properties = torch.cuda.get_device_properties(device)
    available = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    return head_bytes <= FLEX_HEAD_BYTES or available >= FLEX_SHARED_MEMORY


def start_peak(device: torch.device) -> None:
    """Start a new measurement of the peak on `device`. On the CPU the peak is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Return GiB: on CUDA the most that tensors took since `start_peak`, on the CPU the largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def peak_tflops(device: torch.device) -> float | None:
    """Return the device's peak in bfloat16, in 10^12 operations per second, or None if it is unknown."""
    if device.type != "cuda":
        return None
    gpu = find_gpu(name_of(device))
    return None if gpu is None else gpu.tflops
