"""Run in a worker process: read a question, grade it, answer; end as soon as the parent is gone.

A frame is a 4-byte big-endian length and that many bytes of JSON. Both directions use one socket, file descriptor 0.
Questions are [answer_text, gold, require_box], answers [kind, graded text]. The first frame is ["ready"].

Nothing is caught here: a MemoryError or any other exception ends the process, and the parent makes a verdict of it.
"""

import ctypes
import gc
import json
import logging
import os
import queue
import resource
import signal
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
ALARM_GRACE_SECONDS = 1.0


def main(parent_pid: int, deadline_seconds: float, memory_limit_bytes: int) -> None:
    """Grade questions from the socket until it closes."""
    _die_with_parent(parent_pid)
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            stop, signal.SIG_IGN
        )  # a signal reaches the whole process group, but the parent decides when to stop
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    connection = socket.socket(fileno=0)
    questions: queue.SimpleQueue[list] = queue.SimpleQueue()
    threading.Thread(target=_read_questions, args=(connection, questions), daemon=True).start()
    grade = _load_grader()
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    write_frame(connection, ["ready"])
    while True:
        answer_text, gold, require_box = questions.get()
        # If the parent dies, the kernel enforces the deadline, even if the interpreter is blocked.
        signal.setitimer(signal.ITIMER_REAL, deadline_seconds + ALARM_GRACE_SECONDS)
        kind, graded = grade(answer_text, gold, require_box)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_frame(connection, [kind, graded])


def write_frame(connection: socket.socket, message: list) -> None:
    """Send one message."""
    body = json.dumps(message).encode()
    connection.sendall(struct.pack(">I", len(body)) + body)


def read_frame(connection: socket.socket) -> list:
    """Receive one message. Raise EOFError if the other end has closed, TimeoutError by the socket's timeout."""
    (length,) = struct.unpack(">I", _read_exactly(connection, 4))
    return json.loads(_read_exactly(connection, length))


def _read_exactly(connection: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        part = connection.recv(min(length - len(received), 1 << 16))
        if not part:
            raise EOFError("the other end has closed")
        received += part
    return bytes(received)


def _read_questions(connection: socket.socket, questions: "queue.SimpleQueue[list]") -> None:
    """Read questions in a thread of its own, so that the parent's end is noticed during a computation too."""
    try:
        while True:
            questions.put(read_frame(connection))
    except (EOFError, OSError):
        os._exit(0)


def _load_grader() -> Callable[[str, str, bool], tuple[str, str | None]]:
    """Import math-verify and grade once, so that the first answer doesn't pay for SymPy's lazy set-up."""
    from trapo_lite.reward.grading import grade
    from trapo_lite.reward.symbolic import parse_quickly

    parse_quickly()

    def grade_one(answer_text: str, gold: str, require_box: bool) -> tuple[str, str | None]:
        try:
            return grade(answer_text, gold, require_box=require_box)
        except RecursionError:  # the formula is too deep for the parser or SymPy
            return "wrong", None

    grade_one(r"$\frac{\sqrt{2}x}{2}$", r"$\frac{x}{\sqrt{2}}$", False)
    gc.freeze()
    return grade_one


def _die_with_parent(parent_pid: int) -> None:
    """Ask Linux for SIGKILL when the thread that started this process ends. Elsewhere the socket tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(0)
