"""Connect the processes of a run as equals: their ranks, and what they send each other (DESIGN 6).

Python objects go through gloo, also on GPUs, and only tensors through NCCL. A process that waits in gloo gets an error
at once when another process ends. In NCCL it would wait until the launcher kills it, and could save nothing.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, fsdp2_prepare_model
from torch import Tensor, nn

from trapo_lite.core.errors import ConfigError, TrapoLiteError
from trapo_lite.core.types import Mean
from trapo_lite.run import metrics as metric_table
from trapo_lite.run.cards import require_usable_cards

T = TypeVar("T")

PATIENCE = timedelta(hours=6)  # the fastest rank waits for the slowest rollout
SECONDS_TO_END = 2.0  # a process that has closed its connections is gone soon


class RankError(TrapoLiteError, RuntimeError):
    """RankError is raised where an exchange with the other processes of the run fails, because one of them ended."""


class Ranks:
    """Represent this process among those of the run. All processes must call every method together, except `share`."""

    def __init__(self) -> None:
        require_usable_cards(num_processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        waiting = InitProcessGroupKwargs(timeout=PATIENCE)
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[waiting])
        self.index: int = self._accelerator.process_index
        self.local_index: int = self._accelerator.local_process_index
        self.count: int = self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process
        self.device: torch.device = self._accelerator.device
        self._objects: Any = None  # a process group, which torch also types as an int
        self._pids = [os.getpid()]  # by rank
        if self.count > 1:
            self._objects = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
            self._pids = self.gather([os.getpid()])
        self.is_sharding: bool = self._accelerator.distributed_type == DistributedType.FSDP
        if self.is_sharding and not self._accelerator.is_fsdp2:
            raise ConfigError("fsdp_version: found 1; launch with --config_file configs/accelerate/fsdp2.yaml")
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not self.is_sharding:
            raise ConfigError(
                "launch: the base was to be sharded over GPUs (FSDP), but there is none here; launch without "
                "--config_file, or with torchrun for several CPU processes"
            )

    def shard(self, model: nn.Module) -> nn.Module:
        """Shard the model's weights over the ranks in place, by Accelerate's configuration, if `is_sharding`.

        After that all ranks must run it equally often.
        """
        return fsdp2_prepare_model(self._accelerator, model)

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this rank's part of the work."""
        return list(items[self.index :: self.count])

    def on_main(self, action: Callable[[], T], *, elsewhere: T) -> T:
        """Return what `action` returns on the main process, and `elsewhere` on the others; all raise its error."""
        result, errors = elsewhere, []
        if self.is_main:
            try:
                result = action()
            except TrapoLiteError as error:
                errors.append(error)
        for error in self.gather(errors):
            raise error
        return result

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all ranks, in the order of the ranks."""
        if self._objects is None:
            return list(items)
        by_rank: list[list[T]] = [[] for _ in range(self.count)]
        with self._exchange():
            torch.distributed.all_gather_object(by_rank, list(items), group=self._objects)
        return [item for share in by_rank for item in share]

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Return the sum over the ranks. All ranks wait for each other first, where the end of one raises an error."""
        self.wait()
        with self._exchange():
            summed = self._accelerator.reduce(tensor, reduction="sum")
        assert isinstance(summed, Tensor)
        return summed

    def sum_metrics(self, metrics: Mapping[str, Mean]) -> dict[str, Mean]:
        summed: dict[str, Mean] = {}
        for part in self.gather([dict(metrics)]):
            summed = metric_table.add(summed, part)
        return summed

    def largest(self, values: Sequence[float]) -> list[float]:
        """Return the greatest of each value over the ranks, such as the seconds of the slowest."""
        return [max(column) for column in zip(*self.gather([tuple(values)]), strict=True)]

    def require_equal(self, tensors: Sequence[Tensor], *, what: str) -> None:
        """Raise RuntimeError unless every rank holds the same bits."""
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        if len(set(self.gather([digest.hexdigest()]))) > 1:
            raise RuntimeError(f"{what} differs between the processes of this run; start all of them from one version")

    def wait(self) -> None:
        if self._objects is not None:
            with self._exchange():
                torch.distributed.barrier(group=self._objects)

    def ended(self) -> str:
        """Return which processes of the run have ended, such as "rank 1 (process 1234)", or an empty text."""
        return ", ".join(f"rank {rank} (process {pid})" for rank, pid in enumerate(self._pids) if not _is_running(pid))

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """Turn the error by which torch ends an exchange into a RankError that names the processes that have ended."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1:
                raise
            deadline = time.monotonic() + SECONDS_TO_END
            while not (ended := self.ended()) and time.monotonic() < deadline:
                time.sleep(0.1)
            raise RankError(ended_message(ended, error)) from error

    def close(self) -> None:
        """Close the groups before the process ends. Otherwise gloo's threads sometimes abort it."""
        if self.count > 1:
            torch.distributed.destroy_process_group()


def ended_message(ended: str, error: RuntimeError | None = None) -> str:
    """Return what to tell the user about processes that have ended, or about an exchange that failed otherwise."""
    if not ended:
        return f"launch: an exchange between the processes of the run failed ({error}); see their last lines"
    return (
        f"launch: {ended} ended before the run did; its own last lines say why, and if there are none it was killed or "
        "memory ran out; run the same command again to resume"
    )


def _is_running(pid: int) -> bool:
    """Return whether a process of this machine runs; one that has ended and is not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc/self").exists()  # without /proc this is not known
