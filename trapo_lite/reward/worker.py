"""Run in a worker process: read a response, let a reward function judge it, answer; end as soon as the parent is gone.

A frame is a 4-byte big-endian length and that many bytes of JSON. Both directions use one socket, file descriptor 0 at
the start. The worker sends ["loading", index] before it loads each function, then ["ready", for each function what it
takes of a response], or ["refused", why] if one cannot be loaded. Questions are [id, index of the function, response
(`pool.question_of`)], answers [id, kind of verdict, value, judged text or traceback].

A process that a function forks has no socket. If it returns from the function, it fails here and ends.

Nothing else is caught here: a MemoryError or another exception ends the process, and the parent makes a verdict of it.
"""

import ctypes
import functools
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
from collections.abc import Mapping
from typing import Any

from trapo_lite.reward import builtin, own
from trapo_lite.reward.own import Judge, LoadError
from trapo_lite.reward.own_modules import OwnModules

PR_SET_PDEATHSIG = 1
ALARM_GRACE_SECONDS = 1.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(parent_pid: int, deadline_seconds: float, memory_limit_bytes: int, functions: str) -> None:
    """Judge responses from the socket until it closes. functions: of `reward.functions`, as JSON."""
    _die_with_parent(parent_pid)
    for stop in STOP_SIGNALS:  # one may reach all processes, but the parent decides when to stop
        signal.signal(stop, lambda *_: None)  # not SIG_IGN, which programs that a function starts would inherit
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    connection = socket.socket(fileno=os.dup(0))  # a function of the user's may read from descriptor 0, or close it
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    _let_children_be_stopped(connection)
    questions: queue.SimpleQueue[list] = queue.SimpleQueue()
    threading.Thread(target=_read_questions, args=(connection, questions), daemon=True).start()
    options = json.loads(functions)
    has_own = any(function["type"] == "function" for function in options)
    modules, judges, taken_by_function = OwnModules(), [], []
    for index, function in enumerate(options):
        write_frame(connection, ["loading", index])
        try:
            judge, taken = _load(function, modules)
        except LoadError as error:
            write_frame(connection, ["refused", str(error)])
            return
        judges.append(judge)
        taken_by_function.append(taken)
    limit = memory_limit_bytes + (_virtual_bytes() if has_own else 0)  # libraries may map more than they ever use
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)  # its file would grow with all that a function prints
    write_frame(connection, ["ready", taken_by_function])
    while True:
        question_id, index, response = questions.get()
        # If the parent dies, the kernel enforces the deadline, even if the interpreter is blocked.
        signal.setitimer(signal.ITIMER_REAL, deadline_seconds + ALARM_GRACE_SECONDS)
        if options[index]["type"] != "function":
            modules.leave()  # own functions enter their folder themselves
        kind, value, detail = judges[index](response)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_frame(connection, [question_id, kind, value, detail])


def write_frame(connection: socket.socket, message: list) -> None:
    """Send one message."""
    body = json.dumps(message).encode()
    connection.sendall(struct.pack(">I", len(body)) + body)


def read_frame(connection: socket.socket) -> list:
    """Receive one message. Raise EOFError if the other end has closed, TimeoutError by the socket's timeout."""
    (length,) = struct.unpack(">I", _read_exactly(connection, 4))
    return json.loads(_read_exactly(connection, length))


def _let_children_be_stopped(connection: socket.socket) -> None:
    """Take the socket from each process that a function forks, and let signals stop it.

    The signals are held back during the fork. One that came before the new process has its default handlers would be
    lost in the worker's own, and whoever stopped that process would wait for it for ever.
    """
    masks = threading.local()  # of the forking thread before the fork

    def hold_back() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def let_go() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def begin() -> None:
        connection.close()
        for stop in STOP_SIGNALS:
            signal.signal(stop, signal.SIG_DFL)
        let_go()

    os.register_at_fork(before=hold_back, after_in_parent=let_go, after_in_child=begin)


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


def _load(options: dict[str, Any], modules: OwnModules) -> tuple[Judge, list[str]]:
    """Return the judge of one function of `reward.functions`, and what it takes of a response. Raises LoadError."""
    if options["type"] != "function":
        modules.leave()
    if options["type"] == "math":
        return _load_math(require_box=options["require_box"]), ["response", "answer"]
    if options["type"] == "function":
        return own.load(options["path"], modules)
    return functools.partial(builtin.FUNCTIONS[options["type"]], options), ["response", "answer", "num_tokens"]


def _load_math(*, require_box: bool) -> Judge:
    """Import math-verify and grade once, so that the first answer doesn't pay for SymPy's lazy set-up."""
    from trapo_lite.reward.grading import grade
    from trapo_lite.reward.symbolic import parse_quickly

    parse_quickly()

    def judge(response: Mapping[str, Any]) -> tuple[str, float, str | None]:
        try:
            kind, judged = grade(response["response"], response["answer"], require_box=require_box)
        except RecursionError:  # the formula is too deep for the parser or SymPy
            kind, judged = "wrong", None
        return kind, float(kind == "correct"), judged

    judge({"response": r"$\frac{\sqrt{2}x}{2}$", "answer": r"$\frac{x}{\sqrt{2}}$"})
    gc.freeze()
    return judge


def _virtual_bytes() -> int:
    """Return the size of this process's address space, which the limit is about; 0 where the kernel does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _die_with_parent(parent_pid: int) -> None:
    """Ask Linux for SIGKILL when the thread that started this process ends. Elsewhere the socket tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(0)
