"""Manage a run's folder (DESIGN 9): one process at a time, lines that can be cut back to a checkpoint."""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trapo_lite.config import Config, load_config
from trapo_lite.core.errors import ConfigError
from trapo_lite.run.calling import command
from trapo_lite.run.environment import is_environment
from trapo_lite.run.files import move_into_place, naming, try_lock, write_whole
from trapo_lite.run.process_mark import ProcessMark

STEP_NAME = re.compile(r"step-(?!0{6}$)(?:[0-9]{6}|[1-9][0-9]{6,})")


class RunFolder:
    """Own runs/NAME, locked by this process as long as it lives. Use it as a context manager.

    The lock is the kernel's, on the folder itself, so that it ends with the process in every case.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics_file = path / "metrics.jsonl"
        self.rollouts = path / "rollouts"
        self.environment_file = path / "environment.json"
        self.mark = ProcessMark(path / "process.json")  # set once the start is accepted
        self.notes: list[str] = []  # what `open` did, for the user
        self._lock: int | None = None

    @classmethod
    def open(cls, config: Config, *, restart: bool) -> "RunFolder":
        """Lock the folder and make it if needed. With `restart` an old one is renamed first, never deleted."""
        folder = cls(config.run.folder)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"run.dir: {folder.path} cannot be made ({error.strerror}); choose a folder you may write to"
            ) from None
        folder._take_lock()
        if restart and any(folder.path.iterdir()):
            old = folder.path.with_name(f"{folder.path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
            folder.path.rename(old)
            folder.close()
            folder = cls.open(config, restart=False)
            folder.notes.append(f"{folder.path}: the run that was here is now in {old}")
            return folder
        if (before := folder.mark.died()) is not None:
            last = folder.last_step()
            when = f"after step {last}" if last else "before its first step was done"
            folder.notes.append(
                f"warning: {folder.path}: the run before ({before}) ended {when} without a message: it was killed, "
                "memory ran out, or the machine stopped"
            )
        return folder

    def write_config(self, config: Config) -> None:
        """Write the resolved configuration in one rename."""
        file = self.path / "config.yaml"
        with naming(file):
            write_whole(file, config.to_yaml())

    def starts(self) -> list[dict[str, Any]]:
        """Return what each start of the run wrote into environment.json, or [] if the file is missing or damaged."""
        try:
            entries = json.loads(self.environment_file.read_text(encoding="utf-8"))
            return entries if isinstance(entries, list) and all(_is_start(entry) for entry in entries) else []
        except (OSError, ValueError, RecursionError):
            return []

    def add_start(self, environment: Mapping[str, Any], *, after_step: int, **more: Any) -> None:
        """Add this start to environment.json. `after_step`: the step from which the run is resumed, 0 for none."""
        self._write_starts([*self.starts(), {"after_step": after_step, **more, **environment}])

    def _write_starts(self, starts: Sequence[Mapping[str, Any]]) -> None:
        with naming(self.environment_file):
            write_whole(self.environment_file, json.dumps(starts, indent=1, ensure_ascii=False) + "\n")

    def replace(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` fill a new folder, then replace the folder `name` by it."""
        temporary = self.path / f".{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        with naming(self.path / name):
            write(temporary)
            move_into_place(temporary, self.path / name)

    def holds_adapter_of(self, checkpoint: Path) -> bool:
        """Return whether adapter/ is that checkpoint's adapter. It is not if a run was killed between the two."""
        weights = "adapter_model.safetensors"
        return bytes_of(self.path / "adapter" / weights) == bytes_of(checkpoint / weights) is not None

    def outdated(self) -> list[str]:
        """Return a line for each result of an earlier end that a resumed run leaves as it is."""
        lines = []
        if (self.path / "adapter").is_dir():
            lines.append(f"{self.path}: adapter/ is from an earlier end of this run; it is replaced when the run ends")
        if (self.path / "merged").is_dir():
            lines.append(
                f"{self.path}: merged/ is from an earlier end of this run; when the run has ended, replace it by "
                f"{command('export')} --run {self.path} --overwrite"
            )
        return lines

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        with naming(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; `cut_back` has removed damaged ones."""
        if not self.metrics_file.exists():
            return []
        return [json.loads(line) for line in self.metrics_file.read_text(encoding="utf-8").splitlines()]

    def write_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> int:
        """Write rollouts/step-N.jsonl, one line per rollout, and return its bytes."""
        self.rollouts.mkdir(exist_ok=True)
        with naming(self._rollouts_file(step)), self._rollouts_file(step).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return self._rollouts_file(step).stat().st_size

    def cut_back(self, step: int) -> list[str]:
        """Delete every line about steps after `step`, which will be repeated, and every start with only such steps.

        Lines that were cut off or changed are deleted too. The returned message names the steps that are then missing.
        """
        kept: dict[int, str] = {}
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
                line_step = _step_of(line)
                if line_step is not None and max(kept, default=0) < line_step <= step:
                    kept[line_step] = f"{line}\n"
            with naming(self.metrics_file):
                write_whole(self.metrics_file, "".join(kept.values()))
        for file in self.rollouts.glob("step-*.jsonl"):
            if STEP_NAME.fullmatch(file.stem) and int(file.stem.removeprefix("step-")) > step:
                file.unlink()
        if self.environment_file.exists():
            self._write_starts([start for start in self.starts() if start["after_step"] < step])
        missing = [line_step for line_step in range(1, step + 1) if line_step not in kept]
        if not missing:
            return []
        which = (
            f"step {missing[0]}" if len(missing) == 1 else f"{len(missing)} steps from {missing[0]} to {missing[-1]}"
        )
        lost = f"{self.metrics_file}: the lines of {which} are missing or damaged"
        return [f"{lost}; what is trained is not affected"]

    def last_step(self) -> int:
        """Return the step of the last line of metrics.jsonl, or 0 without one."""
        text = (bytes_of(self.metrics_file) or b"").decode("utf-8", errors="replace")
        return max((step for line in text.splitlines() if (step := _step_of(line)) is not None), default=0)

    def close(self) -> None:
        self.mark.remove()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rollouts_file(self, step: int) -> Path:
        return self.rollouts / f"step-{step:06d}.jsonl"

    def _take_lock(self) -> None:
        self._lock = try_lock(self.path)
        if self._lock is None:
            raise ConfigError(
                f"run.name: another process is writing to {self.path}; wait for it, stop it, or choose another run.name"
            )


def final_adapter(run: Path) -> Path:
    """Return run/adapter. Raise ConfigError if it is from an earlier end and the run has been resumed since."""
    folder = RunFolder(run)
    newest = max(step_folders(folder.checkpoints), default=None, key=step_of_folder)
    if newest is not None and (run / "adapter").is_dir() and not folder.holds_adapter_of(newest):
        raise ConfigError(
            f"--run {run}: its adapter/ is of an earlier end, and the run was resumed up to {newest.name}; finish "
            f"it, or say which is meant: --adapter {newest} or --adapter {run / 'adapter'}"
        )
    if newest is not None and not (run / "adapter").is_dir():
        raise ConfigError(
            f"--run {run}: is not finished, so it has no adapter/; finish it, or take its newest checkpoint: "
            f"--adapter {newest}"
        )
    return run / "adapter"


def load_run_config(run: Path, files: Sequence[str] = (), overrides: Sequence[str] = ()) -> Config:
    """Load the configuration of the run in a folder, with more files and overrides on top."""
    if not (run / "config.yaml").is_file():
        candidates = (run, run.parent, run.parent.parent, Path("runs") / run.name)
        near = [candidate for candidate in candidates if (candidate / "config.yaml").is_file()]
        near += [path.parent for path in (*run.glob("*/config.yaml"), *run.parent.glob("*/config.yaml"))]
        hint = f"; there are {', '.join(map(str, sorted(set(near))[:10]))}" if near else ""
        cure = "give DIR/NAME of a run"
        if (run / "adapter_config.json").is_file():
            cure += f", and --adapter {run} for this adapter of it"
        raise ConfigError(f"--run {run}: holds no config.yaml, so it is no run's folder{hint}; {cure}")
    return load_config([str(run / "config.yaml"), *files], overrides)


def _is_start(entry: Any) -> bool:
    return is_environment(entry) and type(entry.get("after_step")) is int


def step_folders(checkpoints: Path) -> list[Path]:
    """Return the checkpoints in the order of their steps. Folders with other names are ignored."""
    folders = [path for path in checkpoints.glob("step-*") if STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=step_of_folder)


def bytes_of_checkpoints(checkpoints: Path) -> int:
    """Return how many bytes the checkpoints of a run take; damaged ones, which are kept, are left out."""
    total = 0
    for folder in step_folders(checkpoints):
        for file in folder.iterdir():
            with contextlib.suppress(OSError):  # a run in progress may remove it meanwhile
                total += file.stat().st_size
    return total


def step_of_folder(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _step_of(line: str) -> int | None:
    """Return the step of a line of metrics.jsonl, or None for any other line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if type(step) is int and step >= 1 else None


def bytes_of(path: Path) -> bytes | None:
    """Return the content of a file, or None if there is no such file."""
    return path.read_bytes() if path.exists() else None
