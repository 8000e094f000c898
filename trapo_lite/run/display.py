"""Show a run's progress: a live display on a terminal, plain lines elsewhere, and a sign of life in long silences."""

import threading
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_SECONDS = 30.0  # without a line, after which one says what the run is doing

SHOWN = (
    ("own", "reward/own", "{:.2f}"),
    ("guided", "reward/guided", "{:.2f}"),
    ("helped", "rollout/guided", "{:.0%}"),
    ("tokens/s", "speed/sampled_tokens_per_second", "{:.0f}"),
    ("grad", "optim/grad_norm", "{:.2g}"),
    ("seconds", "time/step", "{:.1f}"),
    ("eval", "eval/accuracy", "{:.3f}"),
)


class Display:
    """Display the progress of a run, as a context manager. Silent unless `is_main`.

    Where there is no terminal, a thread prints a line about the current phase whenever nothing was printed for
    `quiet_seconds`, so that a long step can be told from one that hangs.
    """

    def __init__(
        self, *, title: str, max_steps: int, first_step: int, is_main: bool, quiet_seconds: float = QUIET_SECONDS
    ) -> None:
        self._console = Console(quiet=not is_main, highlight=False, soft_wrap=True)
        self._max_steps = max_steps
        self._rollouts_done = 0
        self._quiet_seconds = quiet_seconds
        self._phase, self._count = "starting", ""
        self._phase_began = self._last_line = time.monotonic()
        self._has_ended = threading.Event()
        self._pulse: threading.Thread | None = None
        self._progress: Progress | None = None
        if is_main and self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=self._console,
            )
            self._steps = self._progress.add_task(title, total=max_steps, completed=first_step, status="")
            self._rollouts = self._progress.add_task("rollouts", total=None, status="", visible=False)

    def __enter__(self) -> "Display":
        if self._progress is not None:
            self._progress.start()
        elif not self._console.quiet:
            self._pulse = threading.Thread(target=self._tell_phases, name="signs-of-life", daemon=True)
            self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        if self._pulse is not None:
            self._pulse.join()
        if self._progress is not None:
            self._progress.stop()

    def message(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(text, markup=False)

    def phase(self, text: str) -> None:
        """Take note of what the run does from now on, such as "step 3/40: updating the policy"."""
        self._phase, self._count, self._phase_began = text, "", time.monotonic()

    def _tell_phases(self) -> None:
        while not self._has_ended.wait(max(0.05, self._last_line + self._quiet_seconds - time.monotonic())):
            if time.monotonic() - self._last_line >= self._quiet_seconds:
                self.message(f"{self._phase}{self._count}, {time.monotonic() - self._phase_began:.0f} s so far")

    def rollouts(self, done: int, expected: int) -> None:
        self._count = f", {done} of {expected} rollouts"
        if self._progress is not None:
            if done < self._rollouts_done:  # a new phase, which has its own clock
                self._progress.reset(self._rollouts)
            self._rollouts_done = done
            self._progress.update(self._rollouts, completed=done, total=expected, visible=done < expected)

    def step(self, row: Mapping[str, float | int | None]) -> None:
        """Print a step's metrics as a permanent line."""
        shown = [f"{label} {fmt.format(row[name])}" for label, name, fmt in SHOWN if row.get(name) is not None]
        self.message(f"step {row['step']}/{self._max_steps}  " + "  ".join(shown))
        if self._progress is not None:
            self._progress.update(self._steps, completed=row["step"])
