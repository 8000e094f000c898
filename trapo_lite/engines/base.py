"""Define what the trainer asks of an engine: tokens in, tokens out, under a versioned adapter (DESIGN 7)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from trapo_lite.core.errors import EngineError

FIRST_ADAPTER_ID = 1000  # vLLM's warm-up registers dummy adapters under the small ids
MIN_TEMPERATURE = 0.01  # vLLM raises lower temperatures to this, or samples greedily at 0


class EngineDied(EngineError):
    """Raised if the engine's process has ended, or was killed because it did not answer. A new one can replace it."""


class EngineRestarted(EngineError):
    """Raised if a new process serves the same adapter. Requests in flight are lost and must be submitted again."""


@dataclass(frozen=True)
class SampleRequest:
    """A SampleRequest is one sequence to continue.

    `seed` alone decides the draw: the same request gives the same tokens, whatever else is in flight. `max_tokens` is
    at least 1. A token of `stop_ids` ends the completion and is its last token.
    """

    request_id: str
    token_ids: tuple[int, ...]
    seed: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()
    top_k: int = 0


@dataclass(frozen=True)
class Completion:
    """Hold the result: one log-prob per token (after temperature), and the adapter version (None: the bare base).

    num_cached_tokens: the request's tokens that were in the prefix cache; None: the engine does not say
    """

    request_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    adapter_version: int | None
    num_cached_tokens: int | None = None


def require_idle(method: str, num_in_flight: int) -> None:
    """Raise EngineError if requests are in flight."""
    if num_in_flight:
        raise EngineError(f"{method}: {num_in_flight} requests are in flight; collect or abort them first")


def require_newer(version: int, *, current: int | None) -> None:
    """Raise EngineError unless an adapter's version follows that of the adapter that is served."""
    if current is not None and version <= current:
        raise EngineError(f"publish: version {version} does not follow {current}; versions only grow")


def check_request(request: SampleRequest, *, max_model_len: int, in_flight: Iterable[str]) -> None:
    """Raise EngineError if no engine could serve this request; in_flight: ids of other requests."""
    where = f"request {request.request_id!r}"
    if request.request_id in in_flight:
        raise EngineError(f"submit: {where} is in flight already; give each its own id")
    if not request.token_ids:
        raise EngineError(f"{where}: has no tokens to continue; give it at least one")
    if request.max_tokens < 1:
        raise EngineError(f"{where}: max_tokens is {request.max_tokens}; a completion has at least 1 token")
    if len(request.token_ids) + request.max_tokens > max_model_len:
        raise EngineError(
            f"{where}: {len(request.token_ids)} tokens + max_tokens {request.max_tokens} exceed the engine's "
            f"{max_model_len}; shorten one or start the engine with more"
        )
    if request.temperature < MIN_TEMPERATURE:
        raise EngineError(
            f"{where}: temperature {request.temperature} is below {MIN_TEMPERATURE}; for greedy sampling set top_k=1"
        )
    if not 0 < request.top_p <= 1 or request.top_k < 0:
        raise EngineError(
            f"{where}: found top_p {request.top_p}, top_k {request.top_k}; top_p is in (0, 1], top_k 0 (all) or more"
        )


class SamplingEngine(Protocol):
    """A SamplingEngine continues sequences. This is all that the sampler needs."""

    def submit(self, request: SampleRequest) -> None: ...

    def abort(self, request_id: str) -> None:
        """Forget a request, so that `poll` does not return it. Unknown or finished ids are no error."""
        ...

    def poll(self) -> list[Completion]:
        """Drive the engine one step. Return the finished completions in any order, or [] if there are none."""
        ...

    def reset_prefix_cache(self) -> None: ...


class RolloutEngine(SamplingEngine, Protocol):
    """A RolloutEngine has an adapter that can be changed and checked, as the trainer needs."""

    version: int | None
    """The adapter version that the engine samples from; None: the bare base."""
    scratch: Path | None
    """The best folder to write an adapter that is then published; None: any folder."""
    publish_bytes: int
    """Bytes of the latest publish (metric engine/publish_bytes)."""

    def publish(self, adapter_dir: Path, version: int) -> None:
        """Sample from this PEFT adapter, un-merged, from now on.

        The folder may be deleted after the call, but its files must not be overwritten. No request may be in flight.
        Versions only grow: publishing the same or an older one again is an EngineError.
        """
        ...

    def merge(self) -> float:
        """Serve the published adapter merged into the base's own weights, until `unmerge` or the next publish.

        The policy is the same except for one rounding of each weight, without the cost of LoRA's kernels. No request
        may be in flight. Returns the share of the adapter's update that rounding leaves (1: all of it). Raises
        EngineError if there is no adapter, or if the engine cannot merge (`server`).
        """
        ...

    def unmerge(self) -> None:
        """Serve the adapter beside the base again. The base is restored bit for bit."""
        ...

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Return the log-probs at temperature 1 of token_ids[1:], each given the tokens before, under the adapter."""
        ...

    def adapter_checksum(self) -> str | None:
        """Return the checksum of the adapter tensors in the engine (`parity.checksum`), or None before any publish."""
        ...

    def release(self) -> None:
        """Free the memory of the KV cache while the trainer updates. No request may be in flight.

        Releasing twice has no further effect.
        """
        ...

    def resume(self) -> None:
        """Allocate the KV cache again, if it was released."""
        ...

    def close(self) -> None: ...
