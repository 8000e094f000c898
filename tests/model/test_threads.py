"""CPU threads are chosen by the model's width, unless the configuration gives a number."""

import os

import pytest
import torch
from byte_model import write_byte_model

from trapo_lite.config import Config, load_config
from trapo_lite.engines.start import ask_vllm
from trapo_lite.engines.vllm import engine as vllm_engine
from trapo_lite.engines.vllm.options import VLLMOptions
from trapo_lite.model import threads
from trapo_lite.model.threads import engine_threads, set_threads, thread_lines


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Give torch three threads before, and the machine four cores and no GPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    yield
    torch.set_num_threads(before)


def config_of(folder, width: int, *overrides: str) -> Config:
    model = write_byte_model(folder / "model", hidden_size=width)
    return load_config(["configs/tiny_cpu.yaml"], [f"model.name={model}", *UNSET, *overrides])


UNSET = ("run.num_threads=null", "rollout.num_threads=null", "run.deterministic=false")


@pytest.mark.parametrize(
    ("width", "overrides", "own", "vllm"),
    [
        (64, [], 1, 1),
        (512, ["reward.num_workers=1"], 3, 3),  # torch's own number, and a core less than there are
        (512, ["run.deterministic=true"], 1, 1),
        (64, ["run.num_threads=2", "rollout.num_threads=4"], 2, 4),
    ],
)
def test_narrow_models_and_deterministic_runs_get_one(tmp_path, width, overrides, own, vllm) -> None:
    config = config_of(tmp_path, width, *overrides)
    set_threads(config)
    assert (torch.get_num_threads(), engine_threads(config)) == (own, vllm)
    [line] = thread_lines(config, num_engines=1)
    assert line == f"threads: {own} for updates (run.num_threads), {vllm} for vLLM (rollout.num_threads); 4 cores"


def test_several_engines_share_the_cores_and_a_gpu_needs_none(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, 512)
    assert engine_threads(config, num_engines=2) == 1
    assert "vLLM" not in thread_lines(config_of(tmp_path, 512, "rollout.engine=transformers"), num_engines=1)[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine_threads(config) == 1 and thread_lines(config, num_engines=1) == []


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("250000 100000", 2), ("1000 100000", 1)])
def test_a_containers_quota_counts(tmp_path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert threads.num_cores() == cores


class Recorder:
    """A Recorder stands for vLLM's process, and keeps the options it would start with."""

    started: VLLMOptions

    def __init__(self, options: VLLMOptions, **_: object) -> None:
        Recorder.started = options

    def wait_for_class(self) -> None: ...

    def close(self) -> None: ...


def test_vllm_starts_with_the_number_that_is_chosen(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "VLLMEngine", Recorder)
    for check in ("require_vllm", "require_card"):
        monkeypatch.setattr(vllm_engine, check, lambda **options: None)
    ask_vllm(config_of(tmp_path, 512, "reward.num_workers=1"), notify=print)
    assert Recorder.started.num_threads == 3
