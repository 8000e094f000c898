"""Run several engines as one, each on its own card. Requests go to the engine with the fewest in flight."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from trapo_lite.core.errors import EngineError
from trapo_lite.engines.base import Completion, EngineRestarted, RolloutEngine, SampleRequest

T = TypeVar("T")


class EngineGroup:
    """Combine engines into a SamplingEngine whose adapter can be published and checked, as an evaluation needs.

    start: functions that make one engine each; all run at the same time
    """

    def __init__(self, start: Sequence[Callable[[], RolloutEngine]]) -> None:
        self._threads = ThreadPoolExecutor(max_workers=len(start))
        self._engines: list[RolloutEngine] = []
        self._engine_of: dict[str, RolloutEngine] = {}  # by id of the request in flight
        starting = [self._threads.submit(make) for make in start]
        failures = [error for future in starting if (error := future.exception()) is not None]
        self._engines = [future.result() for future in starting if future.exception() is None]
        if failures:
            self.close()
            raise failures[0]

    def publish(self, adapter_dir: Path, version: int) -> None:
        self._of_all(lambda engine: engine.publish(adapter_dir, version))

    def adapter_checksum(self) -> str | None:
        """Return the checksum that all engines hold. Raise EngineError if they differ."""
        checksums = set(self._of_all(lambda engine: engine.adapter_checksum()))
        if len(checksums) > 1:
            raise EngineError("rollout engines: they hold different adapters; see their logs")
        return checksums.pop()

    def submit(self, request: SampleRequest) -> None:
        in_flight = list(self._engine_of.values())
        engine = min(self._engines, key=lambda each: sum(each is other for other in in_flight))
        engine.submit(request)
        self._engine_of[request.request_id] = engine

    def abort(self, request_id: str) -> None:
        engine = self._engine_of.pop(request_id, None)
        if engine is not None:
            engine.abort(request_id)

    def poll(self) -> list[Completion]:
        """Let each engine make a step. If one was restarted, all requests must be submitted again."""
        try:
            finished = self._of_all(lambda engine: engine.poll())
        except EngineRestarted:
            for request_id in list(self._engine_of):
                self.abort(request_id)
            raise
        completions = [completion for of_one in finished for completion in of_one]
        for completion in completions:
            del self._engine_of[completion.request_id]
        return completions

    def reset_prefix_cache(self) -> None:
        self._of_all(lambda engine: engine.reset_prefix_cache())

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        self._threads.shutdown()

    def _of_all(self, method: Callable[[RolloutEngine], T]) -> list[T]:
        """Return each engine's answer. All have answered before an error of one is raised."""
        futures = [self._threads.submit(method, engine) for engine in self._engines]
        for future in futures:
            future.exception()
        return [future.result() for future in futures]
