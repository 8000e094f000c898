"""GPUs that are there and cannot be used end a run with one message; a machine without any runs on the CPU."""

import os
from pathlib import Path

import pytest
import torch

from trapo_lite.core.errors import ConfigError
from trapo_lite.run.cards import require_usable_cards
from trapo_lite.run.processes import Ranks


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """machine(listed, usable, visible=None, capability=(8, 0)): so many cards in nvidia-smi and in a torch for CUDA."""

    def make(listed: int, usable: int, *, visible: str | None = None, capability=(8, 0)) -> None:
        lines = "".join(f"echo '{index}, GPU-{index}, A100, 580.1, 81920, 4, 8.0'\n" for index in range(listed))
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}[ {listed} -gt 0 ]\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        (tmp_path / "Python.h").touch()
        monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
        monkeypatch.setenv("CC", "cc")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda card: "Tesla T4")

    return make


def too_old() -> None:
    raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020).\nPlease update.")


def test_gpus_that_torch_cannot_use_are_no_silent_run_on_the_cpu(machine, monkeypatch):
    """What a driver for CUDA 12 does: nvidia-smi answers, torch says that there is nothing."""
    machine(listed=8, usable=0)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    with pytest.raises(ConfigError, match=r"lists 8, but torch .*driver on your system is too old .*needs 580.*CPU$"):
        Ranks()


@pytest.mark.parametrize("visible", ["", "-1", "-1,0"])
def test_hidden_gpus_are_a_run_on_the_cpu_that_was_asked_for(machine, visible):
    machine(listed=8, usable=0, visible=visible)
    require_usable_cards(num_processes=2)


def test_a_machine_without_gpus_runs_on_the_cpu(machine, monkeypatch):
    machine(listed=0, usable=0)
    require_usable_cards(num_processes=2)
    machine(listed=8, usable=0)
    monkeypatch.setattr(torch.version, "cuda", None)  # the build for the CPU, which somebody has chosen
    require_usable_cards(num_processes=2)


@pytest.mark.parametrize(
    ("cards", "processes", "message"),
    [
        (
            {"listed": 2, "usable": 1, "visible": "0,7"},
            1,
            r"CUDA_VISIBLE_DEVICES: found '0,7', but only the first 1 of",
        ),
        ({"listed": 2, "usable": 0, "visible": "7"}, 1, r"lists 2, but torch .* CUDA_VISIBLE_DEVICES=7 names"),
        ({"listed": 4, "usable": 4}, 8, r"launch: 8 processes for 4 GPUs.*--num_processes 4"),
        ({"listed": 4, "usable": 1, "visible": "2"}, 2, r"launch: 2 processes for 1 GPU, "),
        ({"listed": 1, "usable": 1, "capability": (7, 5)}, 1, r"Tesla T4 has compute capability 7\.5, bfloat16 needs"),
    ],
)
def test_cards_that_are_not_as_asked_for_are_one_clear_error(machine, monkeypatch, cards, processes, message):
    monkeypatch.setattr(torch.cuda, "init", too_old)
    machine(**cards)
    with pytest.raises(ConfigError, match=message):
        require_usable_cards(num_processes=processes)


def test_cards_that_are_as_asked_for_pass(machine):
    machine(listed=8, usable=2, visible="4,GPU-6")
    require_usable_cards(num_processes=2)
    machine(listed=8, usable=8)
    require_usable_cards()


def test_what_triton_compiles_with_is_asked_for_before_a_model_is_loaded(machine, monkeypatch, tmp_path):
    machine(listed=1, usable=1)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^GPU: no C compiler.*install gcc"):
        require_usable_cards()


def test_the_processes_of_a_launch_are_counted_before_they_meet(machine, monkeypatch):
    machine(listed=1, usable=1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes for 1 GPU"):
        Ranks()
