"""Several engines as one: every request comes back once, from the engine that has least to do."""

import threading
from pathlib import Path

import pytest
from scripted import ScriptedEngine, draw_by_seed

from trapo_lite.core.errors import EngineError
from trapo_lite.engines.base import EngineRestarted, SampleRequest
from trapo_lite.engines.group import EngineGroup


class Engine(ScriptedEngine):
    """Ends a request at its second poll; may hold another adapter, or restart."""

    def __init__(self) -> None:
        super().__init__(delay=lambda request: 2)
        self.adapter: str | None = None
        self.restarts_at_next_poll = self.is_closed = False

    def publish(self, adapter_dir: Path, version: int) -> None:
        self.adapter = f"{adapter_dir}, {version}"

    def adapter_checksum(self) -> str | None:
        return self.adapter

    def poll(self):
        if self.restarts_at_next_poll:
            self.restarts_at_next_poll = False
            self._in_flight.clear()
            raise EngineRestarted("it was killed")
        return super().poll()

    def close(self) -> None:
        self.is_closed = True


def request(number: int) -> SampleRequest:
    return SampleRequest(f"r{number}", (1, 2, 3), seed=number, max_tokens=8)


@pytest.fixture
def engines() -> list[Engine]:
    return [Engine(), Engine(), Engine()]


@pytest.fixture
def group(engines: list[Engine]):
    group = EngineGroup([lambda engine=engine: engine for engine in engines])  # type: ignore[list-item]
    yield group
    group.close()
    assert all(engine.is_closed for engine in engines)


def collect(group: EngineGroup) -> dict[str, tuple[int, ...]]:
    done = [*group.poll(), *group.poll()]
    assert len({completion.request_id for completion in done}) == len(done)
    return {completion.request_id: completion.token_ids for completion in done}


def test_requests_are_shared_out_and_all_come_back(group, engines):
    for number in range(7):
        group.submit(request(number))
    assert sorted(len(engine.requests) for engine in engines) == [2, 2, 3]
    assert collect(group) == {f"r{number}": draw_by_seed(request(number)) for number in range(7)}
    assert group.poll() == []


def test_an_aborted_request_makes_room_and_does_not_come_back(group, engines):
    for number in range(3):
        group.submit(request(number))
    group.abort("r1")
    group.abort("never heard of")
    group.submit(request(3))  # to the engine that had r1
    assert [[asked.request_id for asked in engine.requests] for engine in engines] == [["r0"], ["r1", "r3"], ["r2"]]
    assert set(collect(group)) == {"r0", "r2", "r3"}


def test_after_a_restart_of_one_everything_is_submitted_again(group, engines):
    for number in range(6):
        group.submit(request(number))
    engines[2].restarts_at_next_poll = True
    with pytest.raises(EngineRestarted):
        group.poll()
    for number in range(6):
        group.submit(request(number))
    assert set(collect(group)) == {f"r{number}" for number in range(6)}


def test_all_engines_must_hold_the_same_adapter(group, engines, tmp_path):
    group.publish(tmp_path, 1)
    assert group.adapter_checksum() == f"{tmp_path}, 1"
    engines[1].adapter = "another"
    with pytest.raises(EngineError, match="different adapters"):
        group.adapter_checksum()


def test_they_start_at_the_same_time_and_one_that_fails_closes_the_others():
    meeting, started = threading.Barrier(2, timeout=10), Engine()

    def start():
        meeting.wait()
        return started

    def fail():
        meeting.wait()
        raise EngineError("no room on this card")

    with pytest.raises(EngineError, match="no room on this card"):
        EngineGroup([start, fail])  # type: ignore[list-item]
    assert started.is_closed
