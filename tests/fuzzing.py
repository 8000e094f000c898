"""What the tests that make up input share: damaged bytes, bounds of time and memory, and what may come out.

`make test` tries few cases, the same ones each time; `make fuzz` tries many, with new seeds.
"""

import contextlib
import io
import math
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from trapo_lite import cli

T = TypeVar("T")

MEBIBYTE = 1 << 20


class TooSlow(Exception):
    """It did not end within its time; no class of errors that the project prints."""


@contextlib.contextmanager
def bounded(*, seconds: float = 10.0, mebibytes: int = 2048) -> Iterator[None]:
    """Inside, TooSlow after so long, MemoryError after so much more memory than the process has now."""

    def too_slow(*_: object) -> None:
        raise TooSlow(f"still running after {seconds:g} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + mebibytes * MEBIBYTE, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def outcome(function: Callable[[], T], *, is_printed: bool = True, **bounds: Any) -> T | str:
    """What the function returns, or the message that a user would see of it. Any other error is passed on: a traceback.

    The message is one for people: not empty, without a traceback, at most some pages long.
    """
    printed = io.StringIO()
    result: list[T] = []
    try:
        with bounded(**bounds), contextlib.redirect_stderr(printed), cli.exit_on_user_error():
            result.append(function())
    except SystemExit as ended:
        message = printed.getvalue()
        assert ended.code == 2 and message.startswith(("error: ", "usage: ")), (ended.code, message)
        assert "Traceback" not in message and 10 < len(message) < 20_000, message[:500]
        return message
    return result[0]


def cuts(content: bytes) -> SearchStrategy[bytes]:
    """The content cut anywhere."""
    return st.integers(0, len(content) - 1).map(lambda end: content[:end])


def damaged(content: bytes) -> SearchStrategy[bytes]:
    """The content cut, with bytes changed, left out, put in or said twice."""
    places = st.integers(0, max(0, len(content) - 1))
    some = st.binary(min_size=1, max_size=8)

    def replaced(place: int, new: bytes) -> bytes:
        return content[:place] + new + content[place + len(new) :]

    def without(place: int, length: int) -> bytes:
        return content[:place] + content[place + length :]

    def doubled(place: int, length: int) -> bytes:
        return content[: place + length] + content[place:]

    spans = st.integers(1, 200)
    return st.one_of(
        cuts(content),
        st.builds(replaced, places, some),
        st.builds(lambda place, new: content[:place] + new + content[place:], places, some),
        st.builds(without, places, spans),
        st.builds(doubled, places, spans),
    )


def changed_byte(content: bytes) -> SearchStrategy[bytes]:
    """The content with exactly one byte that is another."""
    return st.builds(
        lambda place, other: content[:place] + bytes([(content[place] + other) % 256]) + content[place + 1 :],
        st.integers(0, len(content) - 1),
        st.integers(1, 255),
    )


def texts(max_size: int = 30) -> SearchStrategy[str]:
    """Any text that can stand in a file, and what YAML, JSON, TeX and templates find special."""
    special = ["", "~", "null", "yes", "{problem}", "\\boxed{", "\0", "\u2028", "\ud800", "1e5", "0x1f", "12:30", "<<"]
    return st.one_of(st.text(max_size=max_size), st.sampled_from(special), st.characters())


def numbers() -> SearchStrategy[int | float]:
    big = st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30, 10**400, 1e308, -0.0, 1e-320, math.nan, math.inf])
    return st.one_of(big, st.integers(-(2**70), 2**70), st.floats(), st.integers(0, 20))


def plain_data(max_leaves: int = 8) -> SearchStrategy[Any]:
    """What JSON can say."""
    leaves = st.one_of(st.none(), st.booleans(), numbers(), texts())
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts(10), inner, max_size=4),
        max_leaves=max_leaves,
    )
