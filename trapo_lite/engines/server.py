"""Rollouts by `vllm serve` endpoints, on this machine or others: tokens in, tokens out, over HTTP.

Each endpoint must have been started for it (`start_command`). The adapter reaches every endpoint before a request names
it: under a new name for each version, at a path that the servers see as this process does. An endpoint that fails is
dropped and its requests go to the others.

    TRAPO_LITE_SERVER_API_KEY   sent as a bearer token, where the servers ask for one
    SSL_CERT_FILE               certificate authority for https endpoints
"""

import asyncio
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from trapo_lite import parity
from trapo_lite.engines.adapter_folder import AdapterFolder
from trapo_lite.engines.base import Completion, EngineError, SampleRequest, check_request

API_KEY = "TRAPO_LITE_SERVER_API_KEY"
CALL_LIMIT_S = 120.0  # of every call but sampling
SAMPLE_LIMIT_S = 3600.0  # of one completion, waiting in the server's queue included
POLL_WAIT_S = 0.2
# Root mean square, in nats: endpoints that serve one adapter differ by rounding only.
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass
class Endpoint:
    """One server: `model` is the name of its base, `in_flight` the requests it is working on."""

    url: str
    model: str = ""
    in_flight: dict[str, SampleRequest] = field(default_factory=dict)
    num_finished: int = 0


class _EndpointFailed(Exception):
    """It did not answer, or not as it should; the message says what it did instead."""


class ServerEngine:
    """A RolloutEngine over any number of endpoints; the one with the fewest requests in flight gets the next.

    adapter_dir: where versions of the adapter are put for the servers to read; None: a RAM-backed folder here, for
                 servers on this machine
    dtype:       what the servers hold adapters in, for `adapter_checksum`
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        max_model_len: int,
        dtype: torch.dtype,
        adapter_dir: Path | None = None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.max_model_len, self.dtype, self._notify = max_model_len, dtype, notify
        self.version: int | None = None
        self.publish_seconds = 0.0
        self.publish_bytes = 0
        self._name: str | None = None
        self._path: Path | None = None
        self._prefix = f"trapo-{uuid.uuid4().hex[:8]}"
        self._finished: queue.SimpleQueue[Completion | EngineError] = queue.SimpleQueue()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wanted: set[str] = set()
        self._folder = AdapterFolder(adapter_dir)
        self._folder.path.chmod(0o755)  # the servers may run as another user
        key = os.environ.get(API_KEY)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server-engine", daemon=True)
        self._thread.start()
        self._client = self._run(self._open_client())
        self._endpoints = [Endpoint(url.rstrip("/").removesuffix("/v1")) for url in urls]
        is_ready = False
        try:
            self._run(self._check_endpoints())
            is_ready = True
        finally:
            if not is_ready:
                self.close()

    def publish(self, adapter_dir: Path, version: int) -> None:
        if self._wanted:
            raise EngineError(f"publish: {len(self._wanted)} requests are in flight; collect or abort them first")
        if self.version is not None and version <= self.version:
            raise EngineError(f"publish: version {version} does not follow {self.version}; versions only grow")
        started = time.monotonic()
        path, num_bytes = self._folder.add(Path(adapter_dir), version)
        name, previous = f"{self._prefix}-version-{version}", self._name
        self._run(self._load_everywhere(name, path, previous))
        if self._path is not None:
            self._folder.remove(self._path)
        self._name, self._path, self.version = name, path, version
        self.publish_seconds, self.publish_bytes = time.monotonic() - started, num_bytes

    def submit(self, request: SampleRequest) -> None:
        check_request(request, max_model_len=self.max_model_len)
        if request.request_id in self._wanted:
            raise EngineError(f"submit: request {request.request_id!r} is in flight already; give each its own id")
        self._wanted.add(request.request_id)
        self._loop.call_soon_threadsafe(self._start_task, request, self._name, self.version)

    def abort(self, request_id: str) -> None:
        """The connection is closed; the server then stops working on it."""
        if request_id in self._wanted:
            self._wanted.remove(request_id)
            self._loop.call_soon_threadsafe(self._cancel_task, request_id)

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
            for result in results:
                if isinstance(result, EngineError):
                    raise result
                if result.request_id in self._wanted:  # else it was aborted in the meantime
                    self._wanted.remove(result.request_id)
                    completions.append(result)
        return completions

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Asked of every endpoint: EngineError, naming it, where one serves something else than the first."""
        if not 2 <= len(token_ids) < self.max_model_len:
            raise EngineError(f"score: found {len(token_ids)} tokens; give 2 to {self.max_model_len - 1}")
        scores = self._run(self._score_everywhere(tuple(token_ids)))
        first_url, expected = next(iter(scores.items()))
        for url, found in scores.items():
            gap = parity.measured_noise(found, expected)
            if not gap <= AGREEMENT[self.dtype]:
                raise EngineError(
                    f"rollout.servers: {url} serves something else than {first_url}: log-probs differ by {gap:.3g} "
                    "nats (root mean square); start both with one model, dtype and options"
                )
        return expected

    def adapter_checksum(self) -> str | None:
        """Of the files at the path that every endpoint says it has loaded: servers do not show their tensors."""
        if self._name is None or self._path is None:
            return None
        self._run(self._require_listed(self._name))
        return parity.checksum(self._path, dtype=self.dtype)

    def reset_prefix_cache(self) -> None:
        """Nothing to do: a version's name is part of the cache's key."""

    def release(self) -> None:
        """Nothing to do: the servers' memory is their own."""

    def resume(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        if self._loop.is_running():
            self._run(self._leave())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10.0)
            self._loop.close()
        self._folder.close()

    # ----- on the loop's thread

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open_client(self) -> httpx.AsyncClient:
        # Connections are given up before the servers do so (5 s): one closed while it is used looks like a dead server.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)
        return httpx.AsyncClient(headers=self._headers, timeout=CALL_LIMIT_S, limits=limits)

    async def _leave(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._name is not None:
            await asyncio.gather(*(self._unload(endpoint, self._name) for endpoint in self._endpoints))
        await self._client.aclose()

    async def _check_endpoints(self) -> None:
        """Every endpoint must be there at the start, with a model that holds sequences as long as ours."""
        for endpoint in self._endpoints:
            try:
                models = await self._call("GET", endpoint, "/v1/models")
            except _EndpointFailed as failure:
                raise EngineError(
                    f"rollout.servers: {endpoint.url} {failure}; start it with: {start_command(self.max_model_len)}"
                ) from None
            bases = [model for model in (models or {}).get("data", []) if not model.get("parent")]
            if not bases:
                raise EngineError(f"rollout.servers: {endpoint.url} lists no model at /v1/models; is it vLLM?")
            base = bases[0]
            endpoint.model = base["id"]
            if base["max_model_len"] < self.max_model_len:
                raise EngineError(
                    f"rollout.servers: {endpoint.url} serves sequences of {base['max_model_len']} tokens, needed are "
                    f"{self.max_model_len}; start it with --max-model-len {self.max_model_len}"
                )

    async def _load_everywhere(self, name: str, path: Path, previous: str | None) -> None:
        body = {"lora_name": name, "lora_path": str(path)}
        for endpoint in list(self._endpoints):
            try:
                await self._call("POST", endpoint, "/v1/load_lora_adapter", body)
            except _EndpointFailed as failure:
                self._drop(endpoint, f"did not load the adapter: {failure}")
        if previous is not None:
            await asyncio.gather(*(self._unload(endpoint, previous) for endpoint in self._endpoints))

    async def _unload(self, endpoint: Endpoint, name: str) -> None:
        try:
            await self._call("POST", endpoint, "/v1/unload_lora_adapter", {"lora_name": name})
        except _EndpointFailed as failure:
            self._notify(f"{endpoint.url}: adapter {name} was not unloaded: {failure}")

    async def _require_listed(self, name: str) -> None:
        for endpoint in self._endpoints:
            try:
                models = await self._call("GET", endpoint, "/v1/models")
            except _EndpointFailed as failure:
                self._drop(endpoint, str(failure))
                continue
            if name not in {model["id"] for model in models["data"]}:
                raise EngineError(f"rollout.servers: {endpoint.url} does not list adapter {name}; see its log")

    async def _score_everywhere(self, token_ids: tuple[int, ...]) -> dict[str, list[float]]:
        body = {"prompt": list(token_ids), "max_tokens": 1, "temperature": 1.0, "seed": 0, "prompt_logprobs": 0}
        scores = {}
        for endpoint in list(self._endpoints):
            try:
                answer = await self._call("POST", endpoint, "/v1/completions", {"model": self._served(endpoint)} | body)
            except _EndpointFailed as failure:
                self._drop(endpoint, str(failure))
                continue
            positions = answer["choices"][0]["prompt_logprobs"][1:]
            scores[endpoint.url] = [
                position[str(token)]["logprob"] for position, token in zip(positions, token_ids[1:], strict=True)
            ]
        return scores

    def _served(self, endpoint: Endpoint) -> str:
        return endpoint.model if self._name is None else self._name

    def _start_task(self, request: SampleRequest, name: str | None, version: int | None) -> None:
        self._tasks[request.request_id] = self._loop.create_task(self._sample(request, name, version))

    def _cancel_task(self, request_id: str) -> None:
        if task := self._tasks.pop(request_id, None):
            task.cancel()

    async def _sample(self, request: SampleRequest, name: str | None, version: int | None) -> None:
        """One completion from the least busy endpoint, or from the next one where that fails."""
        try:
            while True:
                if not self._endpoints:
                    raise EngineError("rollout.servers: no endpoint is left")
                endpoint = min(self._endpoints, key=lambda endpoint: len(endpoint.in_flight))
                endpoint.in_flight[request.request_id] = request
                try:
                    body = request_body(request, model=name or endpoint.model)
                    answer = await self._call("POST", endpoint, "/v1/completions", body, limit_s=SAMPLE_LIMIT_S)
                    self._finished.put(completion_from(answer, request, version))
                    endpoint.num_finished += 1
                    return
                except _EndpointFailed as failure:
                    self._drop(endpoint, str(failure))
                finally:
                    endpoint.in_flight.pop(request.request_id, None)
        except EngineError as error:
            self._finished.put(error)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            self._finished.put(EngineError(f"rollout.servers: an answer that cannot be read: {error!r}; see its log"))
        finally:
            if self._tasks.get(request.request_id) is asyncio.current_task():
                del self._tasks[request.request_id]

    def _drop(self, endpoint: Endpoint, reason: str) -> None:
        """Never again; EngineError when it was the last."""
        if endpoint in self._endpoints:
            self._endpoints.remove(endpoint)
            self._notify(f"{endpoint.url} {reason}; dropped, {len(self._endpoints)} endpoints are left")
        if not self._endpoints:
            raise EngineError(
                f"rollout.servers: the last endpoint, {endpoint.url}, {reason}; start the servers again, then the same "
                "command: the run goes on from its last checkpoint"
            )

    async def _call(
        self, method: str, endpoint: Endpoint, path: str, body: Any = None, *, limit_s: float = CALL_LIMIT_S
    ) -> Any:
        async def ask() -> httpx.Response:
            return await self._client.request(method, endpoint.url + path, json=body, timeout=limit_s)

        try:
            try:
                answer = await ask()
            except httpx.RemoteProtocolError:  # an idle connection that the server had just closed
                answer = await ask()
        except httpx.HTTPError as error:
            raise _EndpointFailed(f"does not answer {path} ({type(error).__name__}: {error})") from None
        if answer.status_code != 200:
            raise _EndpointFailed(f"answers {path} with {answer.status_code}: {answer.text[:300]}")
        return answer.json() if "json" in answer.headers.get("content-type", "") else None


def request_body(request: SampleRequest, *, model: str) -> dict[str, Any]:
    """Every field that decides the draw is sent: nothing is left to the server's defaults."""
    return {
        "model": model,
        "prompt": list(request.token_ids),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": request.seed,
        "stop_token_ids": list(request.stop_ids),
        "ignore_eos": True,  # stop_ids says what ends a completion, not the model's files
        "logprobs": 0,
        "return_token_ids": True,
    }


def completion_from(answer: Any, request: SampleRequest, version: int | None) -> Completion:
    """EngineError where a server leaves out token ids or log-probs, _EndpointFailed where it did not finish."""
    choice = answer["choices"][0]
    if choice["finish_reason"] not in ("stop", "length"):  # "abort": a server that is shutting down
        raise _EndpointFailed(f"ended a completion by {choice['finish_reason']!r}")
    token_ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if token_ids is None or logprobs is None or len(token_ids) != len(logprobs):
        raise EngineError("rollout.servers: an answer without token ids and one log-prob each; use vLLM 0.25 or newer")
    return Completion(request.request_id, tuple(token_ids), tuple(logprobs), choice["finish_reason"], version)


def start_command(max_model_len: int) -> str:
    """How an endpoint is started so that it can be trained with."""
    return (
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 python -m vllm.entrypoints.openai.api_server --model MODEL --enable-lora "
        f"--max-loras 2 --max-lora-rank RANK --max-model-len {max_model_len} --generation-config vllm "
        "--logprobs-mode processed_logprobs (--max-loras: 2 for each trainer process)"
    )
