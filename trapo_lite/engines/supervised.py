"""Restart an engine when its process crashes or hangs, with the adapter that it served."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from trapo_lite.core.errors import EngineError
from trapo_lite.engines.adapter_folder import ADAPTER_FILES, take_file
from trapo_lite.engines.base import Completion, EngineDied, EngineRestarted, RolloutEngine, SampleRequest, require_newer

T = TypeVar("T")

MAX_FAILURES = 3
INSTEAD = "If it does not serve this kind of model, set rollout.engine: transformers (docs/models.md has a table)"


def never_answered(death: EngineDied) -> EngineError:
    """Return the error for an engine that died before its first answer: another one would die too."""
    return EngineError(f"{death}\n{INSTEAD}")


class SupervisedEngine:
    """Wrap an engine that may die (`EngineDied`), as a RolloutEngine.

    A call that finds it dead starts a new one, publishes the served adapter under the same version, checks that the new
    process holds the same tensors, and is repeated. Requests in flight are lost with the process: the next `poll`
    raises EngineRestarted, and they must be submitted again. An engine that dies `MAX_FAILURES` times under one adapter
    version, or before its first answer, is an EngineError.

    start:  makes the engine; called again after each death
    folder: keeps the served adapter for the next engine
    scratch: as RolloutEngine.scratch
    on_close: called at the end, when there is no engine
    notify: told in one line of every restart
    """

    def __init__(
        self,
        start: Callable[[], RolloutEngine],
        *,
        folder: Path,
        scratch: Path | None = None,
        notify: Callable[[str], None] = lambda line: None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_close = on_close
        self._start, self._notify = start, notify
        try:
            self._engine = start()
        except EngineDied as death:
            raise never_answered(death) from None
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        self._adapter: Path | None = None
        self._checksum: str | None = None
        self._is_merged = False
        self._has_answered = self._is_closed = False
        self._failures = 0
        self._in_flight: set[str] = set()
        self._lost: EngineDied | None = None  # the death that lost requests, until `poll` has reported it
        self.num_restarts = 0
        self.scratch = scratch
        self.version: int | None = None
        self.publish_bytes = 0

    def publish(self, adapter_dir: Path, version: int) -> None:
        require_newer(version, current=self.version)
        adapter = self._folder / f"version-{version}"
        adapter.mkdir(parents=True)
        for name in ADAPTER_FILES:
            if (adapter_dir / name).is_file():  # the engine reports missing files
                take_file(adapter_dir / name, adapter / name, is_own=adapter_dir == self.scratch)
        try:
            self._call(lambda engine: engine.publish(adapter, version))
        except EngineError:
            shutil.rmtree(adapter)
            raise
        if self._adapter is not None:
            shutil.rmtree(self._adapter)
        self._adapter, self.version, self._is_merged = adapter, version, False
        self._failures = 0
        self._checksum = None
        self.publish_bytes = self._engine.publish_bytes

    def merge(self) -> float:
        share = self._call(lambda engine: engine.merge())
        self._is_merged = True
        return share

    def unmerge(self) -> None:
        self._call(lambda engine: engine.unmerge())
        self._is_merged = False

    def submit(self, request: SampleRequest) -> None:
        self._engine.submit(request)
        self._in_flight.add(request.request_id)

    def abort(self, request_id: str) -> None:
        self._engine.abort(request_id)
        self._in_flight.discard(request_id)

    def poll(self) -> list[Completion]:
        completions: list[Completion] = []
        if self._lost is None:
            try:
                completions = self._engine.poll()
                self._has_answered = True
            except EngineDied as death:
                self._restart(death)
        if self._lost is not None:
            death, self._lost = self._lost, None
            raise EngineRestarted(str(death)) from death
        self._in_flight -= {completion.request_id for completion in completions}
        return completions

    def score(self, token_ids: Sequence[int]) -> list[float]:
        return self._call(lambda engine: engine.score(token_ids))

    def adapter_checksum(self) -> str | None:
        self._checksum = self._call(lambda engine: engine.adapter_checksum())
        return self._checksum

    def reset_prefix_cache(self) -> None:
        self._call(lambda engine: engine.reset_prefix_cache())

    def release(self) -> None:
        self._call(lambda engine: engine.release())

    def resume(self) -> None:
        self._call(lambda engine: engine.resume())

    def close(self) -> None:
        self._is_closed = True  # a waiting thread may use the engine, and must not restart it
        self._engine.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._on_close()

    def _call(self, method: Callable[[RolloutEngine], T]) -> T:
        while True:
            try:
                answer = method(self._engine)
            except EngineDied as death:
                self._restart(death)
            else:
                self._has_answered = True
                return answer

    def _restart(self, death: EngineDied) -> None:
        """Start a new process that serves what the dead one served. Raise EngineError if it failed too often."""
        if self._in_flight:
            self._in_flight, self._lost = set(), death
        while True:
            self._engine.close()
            self._failures += 1
            if self._is_closed:
                raise EngineError(str(death)) from None
            if not self._has_answered:
                raise never_answered(death) from None
            if self._failures >= MAX_FAILURES:
                raise EngineError(
                    f"rollout engine: failed {self._failures} times since it was given its adapter; the last time: "
                    f"{death}"
                )
            self.num_restarts += 1
            self._notify(
                f"warning: {str(death).splitlines()[0]} Starting it again ({self._failures} of {MAX_FAILURES})"
            )
            try:
                self._engine = self._start()
                if self._adapter is not None and self.version is not None:
                    self._engine.publish(self._adapter, self.version)
                    held = self._engine.adapter_checksum()
                    if self._checksum is not None and held != self._checksum:
                        raise EngineError(
                            f"rollout engine: after a restart it does not hold adapter version {self.version} as "
                            "before; see its log"
                        )
                    if self._is_merged:
                        self._engine.merge()
                return
            except EngineDied as next_death:
                death = next_death
