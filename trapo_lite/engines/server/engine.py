"""Sample rollouts from `vllm serve` endpoints, on this machine or others: tokens in, tokens out, over HTTP.

Each endpoint must have been started for this (`start_command`). The adapter reaches every endpoint before a request
names it. Each version has a new name, at a path that is the same for the servers and this process. An endpoint that
fails is dropped, and its requests go to the others.

    TRAPO_LITE_SERVER_API_KEY   sent as a bearer token, if the servers need one
    SSL_CERT_FILE               certificate authority for https endpoints
"""

import asyncio
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import torch

from trapo_lite.core.errors import EngineError
from trapo_lite.engines import parity
from trapo_lite.engines.adapter_folder import AdapterFolder
from trapo_lite.engines.base import Completion, SampleRequest, check_request, require_idle, require_newer
from trapo_lite.engines.server.command import start_command
from trapo_lite.engines.server.endpoints import Endpoints

API_KEY = "TRAPO_LITE_SERVER_API_KEY"
POLL_WAIT_S = 0.2
# Root mean square, in nats: endpoints that serve one adapter differ by rounding only.
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class ServerEngine:
    """Run rollouts on any number of endpoints. The endpoint with the fewest requests in flight gets the next one.

    most_model_len: longest sequence for which a server may be started, if more would change the model's RoPE
    adapter_dir: where the servers read versions of the adapter; None: a folder here, for servers on this machine, in
                 memory if `folder_room` bytes are free there
    dtype:       the servers' type for adapters, for `adapter_checksum`
    command:     how such a server is started, for messages
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        max_model_len: int,
        most_model_len: int | None = None,
        dtype: torch.dtype,
        adapter_dir: Path | None = None,
        command: str | None = None,
        folder_room: int = 0,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.max_model_len, self.dtype, self._notify = max_model_len, dtype, notify
        self._most_model_len = most_model_len
        self._command = command or start_command(max_model_len)
        self.version: int | None = None
        self.publish_bytes = 0
        self._name: str | None = None
        self._path: Path | None = None
        self._prefix = f"trapo-{uuid.uuid4().hex[:8]}"
        self._finished: queue.SimpleQueue[tuple[int, Completion | EngineError]] = queue.SimpleQueue()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # Maps the id of a request in flight to its ticket; an id may be used again, a ticket never.
        self._wanted: dict[str, int] = {}
        self._num_tickets = 0
        self._folder = AdapterFolder(adapter_dir, room=folder_room, notify=notify)
        self.scratch: Path | None = self._folder.scratch
        self._folder.path.chmod(0o755)  # the servers may run as another user
        key = os.environ.get(API_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server-engine", daemon=True)
        self._thread.start()
        self._endpoints: Endpoints | None = None
        is_ready = False
        try:
            self._endpoints = self._run(self._make_endpoints(urls, headers))
            self._run(self._ready().check())
            is_ready = True
        finally:
            if not is_ready:
                self.close()

    def publish(self, adapter_dir: Path, version: int) -> None:
        require_idle("publish", len(self._wanted))
        require_newer(version, current=self.version)
        path, num_bytes = self._folder.add(Path(adapter_dir), version)
        name, previous = f"{self._prefix}-version-{version}", self._name
        self._run(self._ready().load(name, path, previous))
        if self._path is not None:
            self._folder.remove(self._path)
        self._name, self._path, self.version = name, path, version
        self.publish_bytes = num_bytes

    def merge(self) -> float:
        raise EngineError("merge: this engine serves adapters beside their base only; set rollout.merge: never")

    def unmerge(self) -> None:
        """Do nothing, because this engine never merges."""

    def submit(self, request: SampleRequest) -> None:
        check_request(request, max_model_len=self.max_model_len, in_flight=self._wanted)
        self._num_tickets += 1
        self._wanted[request.request_id] = self._num_tickets
        self._loop.call_soon_threadsafe(self._start_task, self._num_tickets, request, self._name, self.version)

    def abort(self, request_id: str) -> None:
        """Close the connection. The server then stops working on the request."""
        if request_id in self._wanted:
            self._loop.call_soon_threadsafe(self._cancel_task, self._wanted.pop(request_id))

    def poll(self) -> list[Completion]:
        if not self._wanted:
            return []
        completions = []
        deadline = time.monotonic() + POLL_WAIT_S
        while not completions and (left := deadline - time.monotonic()) > 0:
            try:
                results = [self._finished.get(timeout=left)]
            except queue.Empty:
                break
            while not self._finished.empty():
                results.append(self._finished.get())
            for ticket, result in results:
                if isinstance(result, EngineError):
                    raise result
                if self._wanted.get(result.request_id) == ticket:  # otherwise it was aborted in the meantime
                    del self._wanted[result.request_id]
                    completions.append(result)
        return completions

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Score on every endpoint. Raise EngineError, naming the endpoint, if scores differ from the first one's."""
        if not 2 <= len(token_ids) < self.max_model_len:
            raise EngineError(f"score: found {len(token_ids)} tokens; give 2 to {self.max_model_len - 1}")
        scores = self._run(self._ready().score(tuple(token_ids), self._name))
        first_url, expected = next(iter(scores.items()))
        for url, logprobs in scores.items():
            gap = parity.measured_noise(logprobs, expected)
            if not gap <= AGREEMENT[self.dtype]:
                raise EngineError(
                    f"rollout.servers: {url} serves something else than {first_url}: log-probs differ by {gap:.3g} "
                    "nats (root mean square); start both with one model, dtype and options"
                )
        return expected

    def adapter_checksum(self) -> str | None:
        """Return the checksum of the files at the path that every endpoint reports. Servers hide their tensors."""
        if self._name is None or self._path is None:
            return None
        self._run(self._ready().require_listed(self._name))
        return parity.checksum(self._path, dtype=self.dtype)

    def reset_prefix_cache(self) -> None:
        """Do nothing, because a version's name is part of the cache's key."""

    def release(self) -> None:
        """Do nothing, because the memory belongs to the servers."""

    def resume(self) -> None:
        """Do nothing, because `release` does nothing."""

    def close(self) -> None:
        if self._loop.is_running():
            self._run(self._leave())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10.0)
            self._loop.close()
        self._folder.close()

    def _ready(self) -> Endpoints:
        assert self._endpoints is not None
        return self._endpoints

    # ----- on the event loop's thread

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _make_endpoints(self, urls: Sequence[str], headers: dict[str, str]) -> Endpoints:
        try:
            return Endpoints(
                urls,
                headers=headers,
                max_model_len=self.max_model_len,
                command=self._command,
                notify=self._notify,
                most_model_len=self._most_model_len,
            )
        except OSError as error:  # ssl's errors are OSErrors
            authority = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
            raise EngineError(
                f"rollout.servers: certificates cannot be read ({error}); found {authority}, point it to a PEM file"
            ) from None

    async def _leave(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._endpoints is not None:
            if self._name is not None:
                await self._endpoints.unload(self._name)
            await self._endpoints.close()

    def _start_task(self, ticket: int, request: SampleRequest, name: str | None, version: int | None) -> None:
        task = self._loop.create_task(self._sample(ticket, request, name, version))
        self._tasks[ticket] = task
        task.add_done_callback(lambda done: self._report_failure(ticket, done))

    def _cancel_task(self, ticket: int) -> None:
        if task := self._tasks.get(ticket):
            task.cancel()

    async def _sample(self, ticket: int, request: SampleRequest, name: str | None, version: int | None) -> None:
        self._finished.put((ticket, await self._ready().complete(request, name, version)))

    def _report_failure(self, ticket: int, task: "asyncio.Task[None]") -> None:
        """Pass every error of a request to `poll`, which would otherwise never stop waiting for it."""
        del self._tasks[ticket]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, EngineError):
            error = EngineError(f"rollout.servers: an answer that cannot be read: {error!r}; see its log")
        if error is not None:
            self._finished.put((ticket, error))
