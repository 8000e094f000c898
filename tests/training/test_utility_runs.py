"""A run that measures the use of help: what it knows is in its checkpoints, and the same in every process."""

import json
from pathlib import Path

import pytest
from run_differences import differences, read_metrics
from tiny_runs import TRAPO, data_file, make_config, model_dir

from trapo_lite.core.types import Problem
from trapo_lite.run.folder import step_folders
from trapo_lite.training.trainer import train
from trapo_lite.training.utility import UtilityState

BY_UTILITY = {**TRAPO, "name": "utility", "utility": {"type": "control", "explore": 0.3}}


@pytest.mark.slow
def test_a_resumed_run_knows_what_it_knew(make_config) -> None:
    def config(name: str, num_steps: int):
        return make_config(name=name, algorithm=BY_UTILITY, train={"max_steps": num_steps, "save_every": 1})

    whole = train(config("whole", 4))
    train(config("parts", 2))
    parts = train(config("parts", 4))
    assert differences(parts, whole) == []
    states = [json.loads((step_folders(run / "checkpoints")[-1] / "state.json").read_text()) for run in (whole, parts)]
    assert states[0]["utility"] == states[1]["utility"] and states[0]["utility"].keys() == {"0 1"}
    [helped, alone] = states[0]["utility"]["0 1"]
    assert helped["weight"] > 0 and alone["weight"] > 0


@pytest.mark.slow
def test_the_table_of_metrics_says_what_is_known(make_config) -> None:
    rows = read_metrics(train(make_config(algorithm=BY_UTILITY)) / "metrics.jsonl")
    for row in rows:
        assert 0.0 < row["utility/probability_2"] < 1.0 and -1.0 < row["utility/gain_2"] < 1.0
        assert "utility/gain_3" not in row  # a whole solution


@pytest.mark.slow
def test_a_run_without_utility_has_none_of_it(make_config) -> None:
    folder = train(make_config(algorithm=TRAPO))
    assert not any(name.startswith("utility/") for row in read_metrics(folder / "metrics.jsonl") for name in row)
    state = json.loads((step_folders(folder / "checkpoints")[-1] / "state.json").read_text())
    assert "utility" not in state


def test_a_first_stage_is_not_measured(make_config, tmp_path: Path) -> None:
    first = {"num_steps": 1, "schedule": TRAPO["schedule"]}
    config = make_config(algorithm={**BY_UTILITY, "first_stage": first})
    state = UtilityState(config, [Problem("a", (1,), "1", expert_ids=((1, 2),))])
    groups = config.algorithm.micro_groups
    assert state.schedule(0, groups) is groups and callable(state.schedule(1, groups))
