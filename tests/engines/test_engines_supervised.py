"""An engine that dies is started again with its adapter, and the rollouts come out as if it had not."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import TINY_MAX_LEN, TINY_RANK, VLLM_DTYPE
from scripted import STOP_ID, ScriptedEngine, ScriptedVerifier, decode, is_boundary

from trapo_lite.core.errors import EngineError
from trapo_lite.core.micro_groups import PRESETS
from trapo_lite.core.types import Problem, Rollout
from trapo_lite.engines.adapter_folder import AdapterFolder
from trapo_lite.engines.base import Completion, EngineDied, EngineRestarted, SampleRequest
from trapo_lite.engines.supervised import SupervisedEngine
from trapo_lite.rollout.sampler import sample_groups
from trapo_lite.rollout.settings import SamplingSettings


class MortalEngine(ScriptedEngine):
    """Dies at the polls that `deaths` counts down to; a dead one only says so. Holds a checksum per version."""

    def __init__(self, deaths: Iterator[int], **options) -> None:
        super().__init__(delay=lambda request: 1 + request.seed % 4, **options)
        self.version, self.polls_left = None, next(deaths)
        self.is_merged = False
        self.is_closed = False

    def poll(self) -> list[Completion]:
        self.polls_left -= 1
        if self.polls_left < 0:
            raise EngineDied("rollout engine: its process ended by signal SIGKILL.\nlast words")
        return super().poll()

    def publish(self, adapter_dir: Path, version: int) -> None:
        assert (adapter_dir / "adapter_config.json").is_file()
        self.version = version

    def merge(self) -> float:
        self.is_merged = True
        return 0.75

    def unmerge(self) -> None:
        self.is_merged = False

    def adapter_checksum(self) -> str | None:
        return None if self.version is None else f"tensors of {self.version}"

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def groups_from(engine, *, deterministic: bool, schedule: str = "pipelined") -> list[list[Rollout]]:
    problems = [Problem(name, (1, 2, ord(name)), name, (tuple(range(4, 34)),)) for name in "abcd"]
    with ScriptedVerifier(lambda text, gold: sum(map(ord, text + gold)) % 3 == 0) as verifier:
        sampler = partial(
            sample_groups,
            engine,
            verifier,
            micro_groups=PRESETS["reference_code"],
            settings=SamplingSettings(
                seed=5,
                max_response_tokens=40,
                stop_ids=(STOP_ID,),
                deterministic=deterministic,
                start_order=schedule,  # type: ignore[arg-type]
            ),
            decode=decode,
            is_boundary=is_boundary,
        )
        return sampler(problems, step=1)[0]


@pytest.mark.parametrize("schedule", ["barrier", "pipelined", "speculative"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_deaths_change_no_rollout(adapter: Path, deterministic: bool, schedule: str) -> None:
    whole = SupervisedEngine(lambda: MortalEngine(iter([10**9])), folder=adapter / "kept-whole")
    whole.publish(adapter, 3)
    calm = whole._engine.events  # type: ignore[attr-defined]
    expected = groups_from(whole, deterministic=deterministic, schedule=schedule)
    for polls in range(1, 4):
        engines: list[MortalEngine] = []

        def start(polls: int = polls, engines: list[MortalEngine] = engines) -> MortalEngine:
            lives = polls if len(engines) < 2 else 10**9
            engines.append(MortalEngine(iter([lives])))
            return engines[-1]

        engine = SupervisedEngine(start, folder=adapter / "kept")
        engine.publish(adapter, 3)
        assert groups_from(engine, deterministic=deterministic, schedule=schedule) == expected
        if deterministic:  # every call as in an undisturbed run, so that every batch has its old composition
            assert [e for e in engines[-1].events if e[0] != "reset"] == [e for e in calm if e[0] != "reset"]
        assert engine.num_restarts == len(engines) - 1 > 0
        assert all(dead.is_closed for dead in engines[:-1]) and engines[-1].version == 3


@pytest.mark.parametrize("is_merged", [True, False])
def test_a_new_process_serves_merged_what_was_merged(adapter: Path, is_merged: bool) -> None:
    engines = iter([MortalEngine(iter([polls])) for polls in (0, 10, 10)])
    engine = SupervisedEngine(lambda: next(engines), folder=adapter / "kept")
    engine.publish(adapter, 1)
    engine.adapter_checksum()
    assert engine.merge() == 0.75
    if not is_merged:
        engine.unmerge()
    engine.submit(SampleRequest("a", (1,), 0, 5))
    with pytest.raises(EngineRestarted):
        engine.poll()
    assert engine._engine.is_merged == is_merged  # type: ignore[attr-defined]
    engine._engine.is_merged = False  # type: ignore[attr-defined]
    engine.publish(adapter, 2)  # which goes back to un-merged, also in a new process
    engine._restart(EngineDied("once more"))
    assert not engine._engine.is_merged  # type: ignore[attr-defined]


@pytest.mark.parametrize("call", ["score", "adapter_checksum", "reset_prefix_cache", "publish"])
def test_requests_lost_in_any_call_are_reported_by_the_next_poll(adapter: Path, call: str) -> None:
    class DiesOnce(MortalEngine):
        def score(self, token_ids) -> list[float]:
            return [0.0]

    engines = [DiesOnce(iter([10])), DiesOnce(iter([10]))]
    engine = SupervisedEngine(iter(engines).__next__, folder=adapter / "kept")
    engine.publish(adapter, 1)
    engine.submit(SampleRequest("a", (1,), 0, 5))

    def die(*_: object) -> None:
        raise EngineDied("rollout engine: its process ended by signal SIGKILL.")

    setattr(engines[0], call, die)
    arguments = {"score": [(1, 2)], "publish": [adapter, 2]}
    getattr(engine, call)(*arguments.get(call, []))
    assert engines[1].version == (2 if call == "publish" else 1)
    with pytest.raises(EngineRestarted):
        engine.poll()
    assert engine.poll() == []
    engine.submit(SampleRequest("a", (1,), 0, 5))
    while not (found := engine.poll()):
        pass
    assert found[0].request_id == "a"


def test_an_engine_that_always_dies_is_an_error_after_a_few_times(adapter: Path) -> None:
    lines: list[str] = []
    engine = SupervisedEngine(lambda: MortalEngine(iter([0])), folder=adapter / "kept", notify=lines.append)
    engine.publish(adapter, 1)
    with pytest.raises(EngineError, match=r"failed 3 times since .*SIGKILL"):
        groups_from(engine, deterministic=False)
    assert lines == [
        "warning: rollout engine: its process ended by signal SIGKILL. Starting it again (1 of 3)",
        "warning: rollout engine: its process ended by signal SIGKILL. Starting it again (2 of 3)",
    ]


def test_a_request_that_always_kills_the_engine_ends_the_run_also_after_completions(adapter: Path) -> None:
    """Each life brings completions before it ends: they must not count as progress for ever."""
    engine = SupervisedEngine(lambda: MortalEngine(iter([2])), folder=adapter / "kept")
    engine.publish(adapter, 1)
    with pytest.raises(EngineError, match="failed 3 times"):
        groups_from(engine, deterministic=True)


def test_an_engine_that_never_answered_is_not_started_again(adapter: Path) -> None:
    started = []

    class Stillborn(MortalEngine):
        def publish(self, adapter_dir: Path, version: int) -> None:
            raise EngineDied("rollout engine: no such model")

    def start() -> Stillborn:
        started.append(1)
        return Stillborn(iter([0]))

    with pytest.raises(EngineError, match="no such model"):
        SupervisedEngine(start, folder=adapter / "kept").publish(adapter, 1)
    assert started == [1]


def test_an_engine_that_dies_while_it_starts_says_what_to_take_instead(adapter: Path) -> None:
    """The process dies as vLLM may while it is imported, or while it looks at the model's class."""
    started = []

    def start() -> MortalEngine:
        started.append(1)
        raise EngineDied("rollout engine: its process ended with exit status 1.\nlast words")

    with pytest.raises(EngineError, match=r"(?s)status 1.*last words.*set rollout\.engine: transformers") as caught:
        SupervisedEngine(start, folder=adapter / "kept")
    assert started == [1] and not isinstance(caught.value, EngineDied)


def test_an_engine_that_was_closed_is_not_started_again(adapter: Path) -> None:
    """As by Ctrl-C, while another thread waits for it: to that thread it seems to have died."""
    started: list[MortalEngine] = []

    class Closing(MortalEngine):
        def poll(self) -> list[Completion]:
            engine.close()
            raise EngineDied("rollout engine: it was closed or has died")

    def start() -> Closing:
        started.append(Closing(iter([100])))
        return started[-1]  # type: ignore[return-value]

    engine = SupervisedEngine(start, folder=adapter / "kept")
    engine.publish(adapter, 1)
    with pytest.raises(EngineError, match="it was closed"):
        engine.poll()
    assert len(started) == 1


def test_a_new_process_that_holds_other_tensors_stops_the_run(adapter: Path) -> None:
    class Forgetful(MortalEngine):
        def adapter_checksum(self) -> str | None:
            return "other tensors"

    engines = iter([MortalEngine(iter([1])), Forgetful(iter([10]))])
    engine = SupervisedEngine(lambda: next(engines), folder=adapter / "kept")
    engine.publish(adapter, 1)
    assert engine.adapter_checksum() == "tensors of 1"
    engine.submit(SampleRequest("a", (1,), 0, 5))
    with pytest.raises(EngineError, match="does not hold adapter version 1"):
        for _ in range(3):
            engine.poll()


def test_what_is_kept_of_a_users_adapter_does_not_change_with_it(adapter: Path) -> None:
    """The next engine must be given what the last one served."""
    engine = SupervisedEngine(lambda: MortalEngine(iter([1])), folder=adapter / "kept", scratch=adapter / "scratch")
    engine.publish(adapter, 1)
    (adapter / "adapter_config.json").write_text("edited while it is served")
    [kept] = (adapter / "kept").rglob("adapter_config.json")
    assert kept.read_text() == "{}"


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "hung"])
def test_a_real_vllm_that_dies_serves_the_same_tokens_again(
    how: str, tmp_path: Path, tiny_model_dir: Path, tiny_adapter_dir: Path
) -> None:
    from trapo_lite.engines.vllm.engine import VLLMEngine
    from trapo_lite.engines.vllm.options import VLLMOptions

    options = VLLMOptions(
        model_path=str(tiny_model_dir),
        max_model_len=TINY_MAX_LEN,
        lora_rank=TINY_RANK,
        dtype=VLLM_DTYPE,
        kv_cache_gib=0.05,
        can_merge=True,
    )
    started: list[VLLMEngine] = []
    folder = AdapterFolder(tmp_path)

    def start() -> VLLMEngine:
        started.append(VLLMEngine(options, log_path=tmp_path / "vllm.log", folder=folder))
        return started[-1]

    engine = SupervisedEngine(start, folder=folder.path / "served", on_close=folder.close)
    try:
        engine.publish(tiny_adapter_dir, 1)
        checksum = engine.adapter_checksum()
        unmerged = engine.score(range(5, 60))
        engine.merge()
        merged = engine.score(range(5, 60))
        requests = [SampleRequest(str(seed), (5, 6, 7, 8), seed, 40) for seed in range(4)]

        def draw(*, is_interrupted: bool) -> dict[str, tuple[int, ...]]:
            drawn: dict[str, tuple[int, ...]] = {}
            for request in requests:
                engine.submit(request)
            while len(drawn) < len(requests):
                try:
                    drawn |= {completion.request_id: completion.token_ids for completion in engine.poll()}
                except EngineRestarted:
                    for request in requests:
                        engine.submit(request)
                if is_interrupted and len(started) == 1:
                    started[0].silence_limit_s = 3.0
                    pid = started[0]._child.process.pid
                    os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            return drawn

        expected = draw(is_interrupted=False)
        assert draw(is_interrupted=True) == expected
        assert len(started) == 2 and engine.adapter_checksum() == checksum
        assert engine.score(range(5, 60)) == merged != unmerged
    finally:
        engine.close()
    assert not folder.path.exists()
