"""Where a run starts: its newest checkpoint that is whole, if that was made of what the run is made of now."""

import platform
from dataclasses import dataclass
from typing import Any

from trapo_lite import device
from trapo_lite.checkpoint import Checkpoint, compare_environments, find_checkpoint, require_same, set_aside_after
from trapo_lite.config import Config
from trapo_lite.environment import this_environment
from trapo_lite.identity import may_differ, run_identity
from trapo_lite.ranks import Ranks
from trapo_lite.run_folder import RunFolder


@dataclass(frozen=True)
class StartPoint:
    """checkpoint:  to resume from; None where the run has none
    is_complete: whether all steps are done and their adapter is written
    identity:    what the run is made of, for its next checkpoints
    notes:       lines for people
    """

    checkpoint: Checkpoint | None
    is_complete: bool
    identity: dict[str, Any]
    notes: list[str]


def find_start_point(config: Config, folder: RunFolder, ranks: Ranks, *, data_fingerprint: str) -> StartPoint:
    """Find where to resume; lines of the run about later steps are forgotten, and this start is put on record.

    All ranks call it. CheckpointError for a checkpoint of another model, data, configuration or number of processes,
    and with run.deterministic for one that was made by other code or versions.
    """
    checkpoint, notes = find_checkpoint(folder.checkpoints)
    is_complete = (
        checkpoint is not None
        and checkpoint.step >= config.train.max_steps
        and folder.holds_adapter_of(checkpoint.folder)
    )
    identity = run_identity(config, data_fingerprint=data_fingerprint, num_processes=ranks.count)
    environment = this_environment()
    if checkpoint is not None:
        require_same(checkpoint, identity, may_differ=may_differ(config))
        if not is_complete:
            is_exact = config.run.deterministic
            notes += compare_environments(checkpoint, folder.starts(), environment, is_exact=is_exact)
    ranks.wait()  # until all have looked, before anything moves
    if ranks.is_main:
        step = checkpoint.step if checkpoint else 0
        folder.write_config(config)
        notes += folder.cut_back(step)
        set_aside_after(folder.checkpoints, step)
        if not is_complete:
            place = {"host": platform.node(), "device": device.name_of(ranks.device)}
            folder.add_start(environment, after_step=step, processes=ranks.count, **place)
    return StartPoint(checkpoint, is_complete, identity, notes)
