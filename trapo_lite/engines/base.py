"""What the trainer asks of whatever samples: tokens in, tokens out, under a versioned adapter (DESIGN 7)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from trapo_lite.core.errors import EngineError

FIRST_ADAPTER_ID = 1000  # vLLM's warm-up registers dummy adapters under the small ids
MIN_TEMPERATURE = 0.01  # vLLM takes less than this for it, or for greedy sampling without a temperature


class EngineDied(EngineError):
    """The engine's process has ended, or was ended because it kept silent: a new one can take over."""


class EngineRestarted(EngineError):
    """A new process has taken over with the same adapter; what was in flight is lost and must be submitted again."""


@dataclass(frozen=True)
class SampleRequest:
    """One sequence to continue.

    `seed` alone decides the draw: the same request gives the same tokens whatever else is in flight. `max_tokens` is at
    least 1. A token of `stop_ids` ends the completion and stays in it.
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
    """What came back: one log-prob per token (after temperature), and which adapter drew it (None: the bare base).

    num_cached_tokens: how many of the request's tokens were found in the prefix cache; None: the engine does not say
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
    """EngineError if no engine could serve this request as it stands; in_flight: ids of other requests."""
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
    """What the sampler needs: something that continues sequences."""

    def submit(self, request: SampleRequest) -> None: ...

    def abort(self, request_id: str) -> None:
        """Forget a request; it will not come back from `poll`. Unknown or finished ids are no error."""
        ...

    def poll(self) -> list[Completion]:
        """Drive the engine one step and return what has finished, in no promised order; [] when nothing did."""
        ...

    def reset_prefix_cache(self) -> None: ...


class RolloutEngine(SamplingEngine, Protocol):
    """What the trainer needs: one whose adapter can be changed and checked."""

    version: int | None
    """The adapter version it samples from; None: the bare base."""
    scratch: Path | None
    """The folder in which an adapter is best written that is to be published; None: any will do."""
    publish_bytes: int
    """Of the latest publish (metric engine/publish_bytes)."""

    def publish(self, adapter_dir: Path, version: int) -> None:
        """Sample from this PEFT adapter, un-merged, from now on; the folder may vanish once the call returns, but its
        files must not be written over. No request may be in flight. Versions only grow; publishing one again, or an
        older one, is an EngineError."""
        ...

    def merge(self) -> float:
        """Serve the published adapter folded into the base's own weights, until `unmerge` or the next publish: the same
        policy but for one rounding of each weight, without the cost of LoRA's kernels. No request may be in flight.

        Returns the share of the adapter's update that the rounding leaves (1: all of it). EngineError where there is no
        adapter, or by an engine that cannot (`server`).
        """
        ...

    def unmerge(self) -> None:
        """The adapter beside the base again, which is restored bit for bit."""
        ...

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probs at temperature 1 of token_ids[1:] given what precedes each, under the published adapter."""
        ...

    def adapter_checksum(self) -> str | None:
        """Checksum of the adapter tensors the engine holds right now (`parity.checksum`), None before any publish."""
        ...

    def release(self) -> None:
        """Give the memory of the KV cache back while the trainer updates. No request may be in flight.

        Releasing twice is the same as releasing once.
        """
        ...

    def resume(self) -> None:
        """Take it again; nothing to do where it was not released."""
        ...

    def close(self) -> None: ...
