"""Whole runs on a tiny model: algorithms with few rollouts, and a finished run that is trained once and copied."""

import json
import shutil
from pathlib import Path

import pytest
from byte_model import write_byte_model

from trapo_lite.config import Config, validate
from trapo_lite.training.trainer import train

GRPO = {"name": "grpo", "schedule": [{"num_rollouts": 4}], "prefix_loss": "none"}
SFT = {
    "name": "sft",
    "schedule": [{"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": None}],
    "prefix_loss": "nll",
}
LUFFY = {
    "name": "luffy",
    "schedule": [{"num_rollouts": 3}, {"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": None}],
    "prefix_loss": "luffy",
}
TRAPO = {
    "name": "trapo",
    "schedule": [
        {"num_rollouts": 2},
        {"num_rollouts": 2, "prefix_ratio": 0.5, "help_below": 0.5, "num_trained": 1},
        {"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": 1.0},
    ],
}


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("byte_model"))


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [
        {"problem": f"{a}+{b}?", "answer": str(a + b), "solution": f"{a} and {b}.\n\nSo \\boxed{{{a + b}}}"}
        for a in range(3)
        for b in range(4)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def make_config(model_dir: Path, data_file: Path, tmp_path: Path):
    def make(*, name: str = "run", algorithm: dict = TRAPO, **changes: dict) -> Config:
        raw = {
            "model": {"name": str(model_dir), "dtype": "float32"},
            "lora": {"r": 4, "alpha": 8},
            "data": {
                "train": str(data_file),
                "expert_text": "full",
                "prompt_template": "{problem}\n",
                "max_prompt_tokens": 16,
            },
            "rollout": {"engine": "transformers", "num_problems": 3, "max_response_tokens": 48},
            "reward": {"num_workers": 1},
            "algorithm": algorithm,
            "optim": {"lr": 1e-3},
            "train": {"max_steps": 2, "save_every": 1},
            "run": {
                "name": name,
                "dir": str(tmp_path),
                "deterministic": True,
                "num_threads": 1,
                "trackers": [],
            },
        }
        for section, values in changes.items():
            raw[section] = raw.get(section, {}) | values
        return validate(raw)

    return make


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A folder for finished runs, and what they were trained with -> where they are."""
    return tmp_path_factory.mktemp("finished"), {}


@pytest.fixture
def trained(make_config, finished_runs):
    """Give the folder that `train(make_config(...))` leaves; a copy, if such a run was trained before."""
    store, runs = finished_runs

    def trained(*, name: str = "run", **changes: object) -> Path:
        config = make_config(name=name, **changes)
        made_with = json.dumps(changes, sort_keys=True)
        if made_with in runs:
            shutil.copytree(runs[made_with], config.run.folder)
        else:
            train(config)
            runs[made_with] = shutil.copytree(config.run.folder, store / str(len(runs)))
        return config.run.folder

    return trained
