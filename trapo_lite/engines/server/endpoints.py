"""Call `vllm serve` endpoints over HTTP, and drop those that fail."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from trapo_lite.core.errors import EngineError
from trapo_lite.engines.base import Completion, SampleRequest

CALL_LIMIT_S = 120.0  # for every call except sampling
SAMPLE_LIMIT_S = 3600.0  # for one completion, including the time in the server's queue
WATCH_EVERY_S = 15.0
WATCH_LIMIT_S = 60.0  # for the answer whether the server is alive; asked twice
STALL_LIMIT_S = 300.0  # without a token, read or drawn, while requests are in flight
NOT_THE_SERVERS_FAULT = (400, 413, 422)  # another server would give the same answer
TOKEN_COUNTERS = re.compile(r"^vllm:(?:prompt|generation)_tokens_total\S* (\S+)$", re.MULTILINE)


@dataclass
class Endpoint:
    """Hold one server. `model`: name of its base; `num_in_flight`: number of its open requests.

    lost: a future, done when the server hangs, with the reason
    """

    url: str
    lost: "asyncio.Future[str]"
    model: str = ""
    num_in_flight: int = 0


class _EndpointFailed(Exception):
    """Raised if an endpoint does not answer as it should; the message says how. status: of HTTP, if it answered."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Endpoints:
    """Hold the endpoints that have not failed. Everything runs on the event loop that made it.

    An endpoint that fails is dropped for good, and `notify` is told. If none is left, EngineError is raised. An
    endpoint that accepts requests, but neither answers nor makes progress, counts as failed (`_watch`).
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        headers: Mapping[str, str],
        max_model_len: int,
        command: str,
        notify: Callable[[str], None],
        most_model_len: int | None = None,
    ) -> None:
        # Close connections before the servers do (5 s), because one closed in use looks like a dead server.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)
        self._client = httpx.AsyncClient(headers=dict(headers), timeout=CALL_LIMIT_S, limits=limits)
        self._max_model_len, self._command, self._notify = max_model_len, command, notify
        self._most_model_len = most_model_len
        loop = asyncio.get_running_loop()
        self.alive = [Endpoint(url.rstrip("/").removesuffix("/v1"), loop.create_future()) for url in urls]
        self._watchers = [loop.create_task(self._watch(endpoint)) for endpoint in self.alive]

    async def check(self) -> None:
        """Raise EngineError unless every endpoint is usable at the start.

        It must answer, hold sequences of our length, load adapters at run time, and return log-probs of the
        distribution that it samples from.
        """
        for endpoint in self.alive:
            try:
                models = await self._call("GET", endpoint, "/v1/models")
                await self._check_adapters(endpoint)
            except _EndpointFailed as failure:
                cure = f"start it with: {self._command}"
                if failure.status in (401, 403):
                    cure = "set TRAPO_LITE_SERVER_API_KEY to the key it was started with (VLLM_API_KEY or --api-key)"
                raise EngineError(f"rollout.servers: {endpoint.url} {failure}; {cure}") from None
            bases = [model for model in (models or {}).get("data", []) if not model.get("parent")]
            if not bases:
                raise EngineError(f"rollout.servers: {endpoint.url} lists no model at /v1/models; is it vLLM?")
            base = bases[0]
            endpoint.model = base["id"]
            if base["max_model_len"] < self._max_model_len:
                raise EngineError(
                    f"rollout.servers: {endpoint.url} serves sequences of {base['max_model_len']} tokens, needed are "
                    f"{self._max_model_len}; start it with --max-model-len {self._max_model_len}"
                )
            if self._most_model_len is not None and base["max_model_len"] > self._most_model_len:
                raise EngineError(
                    f"rollout.servers: {endpoint.url} serves sequences of {base['max_model_len']} tokens, and past "
                    f"{self._most_model_len} this model has another RoPE for all of them; start it with "
                    f"--max-model-len {self._max_model_len}"
                )
            await self._check_logprobs(endpoint)

    async def load(self, name: str, path: Path, previous: str | None) -> None:
        """Load an adapter on every endpoint, before any request can name it. Then unload the one before it."""
        body = {"lora_name": name, "lora_path": str(path)}
        for endpoint in list(self.alive):
            try:
                await self._call("POST", endpoint, "/v1/load_lora_adapter", body)
            except _EndpointFailed as failure:
                self._drop(endpoint, f"did not load the adapter: {failure}")
        if previous is not None:
            await self.unload(previous)

    async def unload(self, name: str) -> None:
        await asyncio.gather(*(self._unload_one(endpoint, name) for endpoint in self.alive))

    async def require_listed(self, name: str) -> None:
        for endpoint in list(self.alive):
            try:
                models = await self._call("GET", endpoint, "/v1/models")
            except _EndpointFailed as failure:
                self._drop(endpoint, str(failure))
                continue
            if name not in {model["id"] for model in models["data"]}:
                raise EngineError(f"rollout.servers: {endpoint.url} does not list adapter {name}; see its log")

    async def score(self, token_ids: tuple[int, ...], name: str | None) -> dict[str, list[float]]:
        """Return the log-probs of token_ids[1:] by url, under the adapter called `name` or the bare base."""
        body = {"prompt": list(token_ids), "max_tokens": 1, "temperature": 1.0, "seed": 0, "prompt_logprobs": 0}
        scores = {}
        for endpoint in list(self.alive):
            try:
                answer = await self._call("POST", endpoint, "/v1/completions", {"model": name or endpoint.model} | body)
            except _EndpointFailed as failure:
                self._drop(endpoint, str(failure))
                continue
            positions = answer["choices"][0]["prompt_logprobs"][1:]
            scores[endpoint.url] = [
                position[str(token)]["logprob"] for position, token in zip(positions, token_ids[1:], strict=True)
            ]
        return scores

    async def complete(self, request: SampleRequest, name: str | None, version: int | None) -> Completion:
        """Return one completion from the least busy endpoint, or from the next one if that fails."""
        while True:
            if not self.alive:
                raise EngineError("rollout.servers: no endpoint is left")
            endpoint = min(self.alive, key=lambda endpoint: endpoint.num_in_flight)
            endpoint.num_in_flight += 1
            try:
                body = request_body(request, model=name or endpoint.model)
                return completion_from(await self._sample(endpoint, body), request, version)
            except _EndpointFailed as failure:
                if failure.status in NOT_THE_SERVERS_FAULT:
                    raise EngineError(
                        f"rollout.servers: request {request.request_id}: {endpoint.url} {failure}"
                    ) from None
                self._drop(endpoint, str(failure))
            finally:
                endpoint.num_in_flight -= 1

    async def close(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self._client.aclose()

    async def _check_adapters(self, endpoint: Endpoint) -> None:
        """Check for run-time updates. A server with them answers that names are missing; others lack the path."""
        try:
            await self._call("POST", endpoint, "/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""})
        except _EndpointFailed as failure:
            if failure.status is None:
                raise
            if failure.status == 404:
                reason = "has no /v1/load_lora_adapter: adapters cannot be given to it while it runs"
                raise _EndpointFailed(reason) from None

    async def _check_logprobs(self, endpoint: Endpoint) -> None:
        """Check that log-probs are of the sampled distribution.

        With top_k = 1 the only token has log-prob 0. A server with another value ignores top_k and temperature.
        """
        request = SampleRequest("check", (1, 2, 3), seed=0, max_tokens=4, top_k=1)
        try:
            answer = await self._call("POST", endpoint, "/v1/completions", request_body(request, model=endpoint.model))
            logprobs = completion_from(answer, request, None).logprobs
        except _EndpointFailed as failure:
            raise EngineError(f"rollout.servers: {endpoint.url} {failure}; see its log") from None
        if min(logprobs) < -1e-3:
            raise EngineError(
                f"rollout.servers: {endpoint.url} gives log-probs of the model, not of what it samples from "
                f"({min(logprobs):.3g} nats for the only possible token); start it with --logprobs-mode "
                "processed_logprobs"
            )

    async def _sample(self, endpoint: Endpoint, body: Any) -> Any:
        """Return the answer to a request for one completion. Raise _EndpointFailed as soon as the endpoint hangs."""
        call = asyncio.ensure_future(self._call("POST", endpoint, "/v1/completions", body, limit_s=SAMPLE_LIMIT_S))
        try:
            await asyncio.wait({call, endpoint.lost}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise _EndpointFailed(endpoint.lost.result())
            return call.result()
        finally:
            call.cancel()

    async def _watch(self, endpoint: Endpoint) -> None:
        """Check, while requests are in flight, that the server answers and that it reads or draws tokens."""
        tokens, moved, num_silent = None, time.monotonic(), 0
        while not endpoint.lost.done():
            await asyncio.sleep(WATCH_EVERY_S)
            if not endpoint.num_in_flight:
                tokens, moved, num_silent = None, time.monotonic(), 0
                continue
            try:
                answer = await self._ask("GET", endpoint, "/metrics", limit_s=WATCH_LIMIT_S)
            except httpx.HTTPError as error:
                num_silent += 1
                if num_silent >= 2 and endpoint.num_in_flight:
                    endpoint.lost.set_result(f"no longer answers ({type(error).__name__})")
                continue
            num_silent = 0
            counts = TOKEN_COUNTERS.findall(answer.text)
            if counts != tokens or not counts:  # without counters (a proxy hides them) nothing is known
                tokens, moved = counts, time.monotonic()
            elif time.monotonic() - moved > STALL_LIMIT_S and endpoint.num_in_flight:
                endpoint.lost.set_result(f"answers, but its engine has not moved for {STALL_LIMIT_S:.0f} s")

    async def _unload_one(self, endpoint: Endpoint, name: str) -> None:
        try:
            await self._call("POST", endpoint, "/v1/unload_lora_adapter", {"lora_name": name})
        except _EndpointFailed as failure:
            self._notify(f"{endpoint.url}: adapter {name} was not unloaded: {failure}")

    def _drop(self, endpoint: Endpoint, reason: str) -> None:
        """Drop an endpoint for good. Raise EngineError if it was the last."""
        if endpoint in self.alive:
            self.alive.remove(endpoint)
            self._notify(f"{endpoint.url} {reason}; dropped, {len(self.alive)} endpoints are left")
        if not self.alive:
            raise EngineError(
                f"rollout.servers: the last endpoint, {endpoint.url}, {reason}; start the servers again, then the same "
                "command to resume from the last checkpoint"
            )

    async def _call(
        self, method: str, endpoint: Endpoint, path: str, body: Any = None, *, limit_s: float = CALL_LIMIT_S
    ) -> Any:
        """Return the JSON of an answer. Raise _EndpointFailed if there is none, or a status other than 200."""
        try:
            answer = await self._ask(method, endpoint, path, body, limit_s=limit_s)
        except httpx.HTTPError as error:
            raise _EndpointFailed(f"does not answer {path} ({type(error).__name__}: {error})") from None
        if answer.status_code != 200:
            reason = f"answers {path} with {answer.status_code}: {answer.text[:300]}"
            raise _EndpointFailed(reason, status=answer.status_code)
        return answer.json() if "json" in answer.headers.get("content-type", "") else None

    async def _ask(
        self, method: str, endpoint: Endpoint, path: str, body: Any = None, *, limit_s: float = CALL_LIMIT_S
    ) -> httpx.Response:
        async def ask() -> httpx.Response:
            try:
                return await self._client.request(method, endpoint.url + path, json=body, timeout=limit_s)
            except OSError as error:  # a TLS error in the middle of an answer, which httpx lets through
                raise httpx.TransportError(str(error)) from error

        try:
            return await ask()
        except httpx.RemoteProtocolError:  # an idle connection that the server had just closed
            return await ask()


def request_body(request: SampleRequest, *, model: str) -> dict[str, Any]:
    """Return the request's JSON. It has every field that decides the draw, so that no server default applies."""
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
        "ignore_eos": True,  # stop_ids decides what ends a completion, not the model's files
        "logprobs": 0,
        "return_token_ids": True,
    }


def completion_from(answer: Any, request: SampleRequest, version: int | None) -> Completion:
    """Read a completion. Raise EngineError without token ids or log-probs, _EndpointFailed if it is unfinished."""
    choice = answer["choices"][0]
    if choice["finish_reason"] not in ("stop", "length"):  # "abort": a server that is shutting down
        raise _EndpointFailed(f"ended a completion by {choice['finish_reason']!r}")
    token_ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if token_ids is None or logprobs is None or len(token_ids) != len(logprobs):
        raise EngineError("rollout.servers: an answer without token ids and one log-prob each; use vLLM 0.25 or newer")
    return Completion(request.request_id, tuple(token_ids), tuple(logprobs), choice["finish_reason"], version)
