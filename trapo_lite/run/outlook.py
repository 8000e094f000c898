"""Say after a run's first step how long the rest takes and what it will write."""

from collections.abc import Mapping
from pathlib import Path

from trapo_lite.config import Config
from trapo_lite.core.in_words import counted, duration, size_text
from trapo_lite.run.files import free_bytes


def outlook_line(
    row: Mapping[str, float | int | None], config: Config, *, rollout_bytes: int, checkpoint_bytes: float
) -> str:
    """Return the time left at the pace of this step, evaluations included, and the disk that the run will take.

    row:              the step's line of metrics.jsonl
    rollout_bytes:    of this step's rollouts
    checkpoint_bytes: of the checkpoints that are kept, and of the one that is written meanwhile
    """
    num_left = config.train.max_steps - int(row["step"] or 0)
    in_eval = row.get("time/eval") or 0.0
    seconds = num_left * ((row["time/step"] or 0.0) - in_eval)
    without_evals = ""
    if config.eval.every and not in_eval:
        without_evals = " without evaluations"
    elif config.eval.every:
        seconds += num_left // config.eval.every * in_eval
    needed = checkpoint_bytes + config.train.max_steps * rollout_bytes
    return (
        f"about {duration(seconds)} left at the pace of this step ({counted(num_left, 'step')}{without_evals}); the "
        f"run will take about {size_text(needed)} in {config.run.folder}"
    )


def disk_line(config: Config, checkpoint_bytes: float, *, written_bytes: float = 0.0) -> str:
    """Return a line on the room for checkpoints, a warning if there is too little.

    written_bytes: of the run's earlier checkpoints, which are replaced
    """
    needed, free = size_text(checkpoint_bytes), free_bytes(Path(config.run.dir))
    if free is None:
        return f"warning: run.dir: {config.run.dir} cannot be written; set it to another folder"
    already = f", of which {size_text(written_bytes)} are there already" if written_bytes else ""
    if free < checkpoint_bytes - written_bytes:
        return (
            f"warning: run.dir: checkpoints take {needed} in {config.run.folder}{already}, but {size_text(free)} are "
            "free; make room, set run.dir or lower train.keep_checkpoints"
        )
    return f"disk      checkpoints take {needed} in {config.run.folder}{already}, {size_text(free)} are free"
