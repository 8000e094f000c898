"""Show a run's progress: a live display on a terminal, plain lines elsewhere."""

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
    """Display the progress of a run, as a context manager. Silent unless `is_main`."""

    def __init__(self, *, title: str, max_steps: int, first_step: int, is_main: bool) -> None:
        self._console = Console(quiet=not is_main, highlight=False, soft_wrap=True)
        self._max_steps = max_steps
        self._rollouts_done = 0
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
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def message(self, text: str) -> None:
        self._console.print(text, markup=False)

    def rollouts(self, done: int, expected: int) -> None:
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
