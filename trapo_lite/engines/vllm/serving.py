"""Answer the trainer's calls in vLLM's process, until the trainer closes the socket."""

import contextlib
from multiprocessing.connection import Connection
from typing import Any

from trapo_lite.core.errors import EngineError
from trapo_lite.engines.vllm.worker import VLLMWorker


def serve(connection: Connection) -> None:
    """Make the engine from the first message's options, then answer calls until the trainer closes the socket.

    It sends "accepted" when vLLM serves the model's class, and "up" when the engine is ready. An engine that refuses
    the model sends its EngineError instead, and ends.
    """
    try:
        worker = VLLMWorker(connection.recv(), on_accepted=lambda: connection.send("accepted"))
    except EngineError as refusal:
        connection.send(refusal)
        return
    connection.send("up")
    while (call := _next_call(connection)) is not None:
        method, arguments = call
        answer = getattr(worker, method)(*arguments)
        if method not in ("submit", "abort"):
            with contextlib.suppress(BrokenPipeError):  # the trainer has gone, which the next call notices
                connection.send(answer)


def _next_call(connection: Connection) -> tuple[str, tuple[Any, ...]] | None:
    """Return the next method and its arguments, or None if the trainer has closed the socket or is gone."""
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        return None
