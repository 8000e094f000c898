"""Print a command's lines, with the time where there is no terminal, and a sign of life in long silences."""

import threading
import time
from collections.abc import Iterable
from typing import Self

from rich.console import Console

QUIET_SECONDS = 30.0  # without a line, after which one says what the command is doing


def with_time(text: str, *, is_plain: bool) -> str:
    """Return the text with the local date and time before each of its lines, or as it is unless `is_plain`."""
    if not is_plain:
        return text
    prefix = time.strftime("%Y-%m-%d %H:%M:%S  ")
    return "\n".join(f"{prefix}{line}" for line in text.split("\n"))


class Lines:
    """Lines print what a command says, as a context manager. They are silent unless `is_main`.

    Where there is no terminal, each message begins with the local date and time, and a thread prints a line about the
    current phase whenever nothing was printed for `quiet_seconds`, so that long work can be told from work that hangs.
    """

    def __init__(
        self, *, is_main: bool = True, quiet_seconds: float = QUIET_SECONDS, console: Console | None = None
    ) -> None:
        self.console = console or Console(quiet=not is_main)
        self._quiet_seconds = quiet_seconds
        self._phase, self._count = "starting", ""
        self._phase_began = self._last_line = time.monotonic()
        self._has_ended = threading.Event()
        self._pulse: threading.Thread | None = None

    @property
    def is_plain(self) -> bool:
        """Return whether the output goes elsewhere than to a terminal, such as to a file."""
        return not self.console.is_terminal

    def __enter__(self) -> Self:
        if self.is_plain and not self.console.quiet:
            self._pulse = threading.Thread(target=self._break_silences, name="signs-of-life", daemon=True)
            self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        if self._pulse is not None:
            self._pulse.join()

    def message(self, text: str) -> None:
        """Print a text; where there is no terminal, with the time before each of its lines."""
        self._print(with_time(text, is_plain=self.is_plain))

    def results(self, lines: Iterable[str]) -> None:
        """Print lines of a report or a table, without the time."""
        self._print("\n".join(lines))

    def phase(self, text: str) -> None:
        """Note what the command does from now on, such as "loading the base"."""
        self._phase, self._count, self._phase_began = text, "", time.monotonic()

    def count(self, done: int, expected: int, what: str) -> None:
        """Note how far the phase is, such as 3 of 8 rollouts."""
        self._count = f", {done} of {expected} {what}"

    def outlook(self) -> str:
        """Return what a sign of life adds about speed and end, beginning with a semicolon, or an empty text."""
        return ""

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _break_silences(self) -> None:
        while not self._has_ended.wait(max(0.05, self._last_line + self._quiet_seconds - time.monotonic())):
            if time.monotonic() - self._last_line >= self._quiet_seconds:
                seconds = time.monotonic() - self._phase_began
                self.message(f"{self._phase}{self._count}, {seconds:.0f} s so far{self.outlook()}")
