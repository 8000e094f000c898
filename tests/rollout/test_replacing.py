"""Problems from which nothing is learned are replaced by others: the same ones whatever finishes first."""

import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from scripted import STOP_ID, ScriptedEngine, ScriptedVerifier, decode, is_boundary
from tiny_runs import GRPO, SFT, data_file, make_config, model_dir

from trapo_lite.core.errors import ConfigError
from trapo_lite.core.micro_groups import MicroGroup
from trapo_lite.core.types import Problem, Rollout
from trapo_lite.engines.base import EngineRestarted
from trapo_lite.rollout.sampler import sample_groups
from trapo_lite.rollout.settings import SamplingSettings
from trapo_lite.training.trainer import train

__all__ = ["data_file", "make_config", "model_dir"]

MODES = list(itertools.product(("barrier", "pipelined", "speculative"), (False, True)))
NAMES = "abcdefghijkl"
MIXED = set("bdgl")  # problems whose rollouts score differently


def problem(name: str) -> Problem:
    return Problem(id=name, prompt_ids=(1, 2, ord(name)), answer=name)


def has_two_rewards(rollouts: Sequence[Rollout]) -> bool:
    return len({rollout.reward for rollout in rollouts}) > 1


def by_hand(names: str, others: Sequence[str]) -> tuple[str, str]:
    """The kept and the replaced problems: each place goes down its own list until a mixed one or the end."""
    kept, replaced = "", ""
    for name, substitutes in zip(names, others, strict=True):
        tried = list(name + substitutes)
        while tried[0] not in MIXED and len(tried) > 1:
            replaced += tried.pop(0)
        kept += tried[0]
    return kept, replaced


class Judge:
    """Score the rollouts of a mixed problem by their text, and those of another all alike."""

    def __call__(self, text: str, gold: str) -> float:
        return float(sum(map(ord, text)) % 7) if gold in MIXED else 1.0


class DyingEngine(ScriptedEngine):
    """An engine that dies once, at its fifth poll, and loses what it had."""

    num_polls = 0

    def poll(self):
        self.num_polls += 1
        if self.num_polls == 5:
            self._in_flight.clear()
            raise EngineRestarted("it was killed")
        return super().poll()


def draw(names: str, others: Sequence[str], engine: ScriptedEngine, *, schedule: str, deterministic: bool):
    settings = SamplingSettings(
        seed=5,
        max_response_tokens=40,
        stop_ids=(STOP_ID,),
        start_order=schedule,  # type: ignore[arg-type]
        deterministic=deterministic,
        reward_bounds=(0.0, 6.0),
    )
    with ScriptedVerifier(Judge()) as verifier:
        return sample_groups(
            engine,
            verifier,
            [problem(name) for name in names],
            step=1,
            micro_groups=[MicroGroup(3, 0.0, 0.0), MicroGroup(2, 0.0, 0.0)],
            settings=settings,
            decode=decode,
            is_boundary=is_boundary,
            substitutes=[[problem(name) for name in row] for row in others],
            is_informative=has_two_rewards,
        )


@pytest.mark.parametrize("engine_type", [ScriptedEngine, DyingEngine])
@pytest.mark.parametrize(("schedule", "deterministic"), MODES)
def test_each_place_takes_its_own_substitutes_in_their_order(schedule, deterministic, engine_type) -> None:
    names, others = "abc", ["def", "ghi", "jk"]
    kept, replaced = by_hand(names, others)
    assert (kept, replaced) == ("dbk", "acj")  # a first substitute, no substitute, and a list that ends without success
    seen = []
    for order_seed in range(4):
        groups, report = draw(
            names, others, engine_type(order_seed=order_seed), schedule=schedule, deterministic=deterministic
        )
        assert "".join(group[0].problem_id for group in groups) == kept
        assert "".join(group[0].problem_id for group in report.replaced) == replaced
        assert all(len(group) == 5 for group in [*groups, *report.replaced])
        seen.append((groups, report.replaced))
    assert all(result == seen[0] for result in seen)


def test_a_problem_has_the_same_rollouts_as_a_substitute_and_from_the_start() -> None:
    drawn = partial(draw, schedule="pipelined", deterministic=False)
    as_substitute = drawn("a", ["d"], ScriptedEngine())[0][0]
    assert as_substitute == drawn("d", [""], ScriptedEngine())[0][0]


# ----- whole runs on a tiny model: rewards by the response's length, so that some problems tell rollouts apart

REWARDS = """
def score(problem, response):
    return 1.0 if problem[0] != "0" and len(response.encode()) % 2 else 0.0
"""


@pytest.fixture
def make_replacing(make_config, tmp_path: Path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    functions = [{"type": "function", "path": f"{tmp_path / 'rewards.py'}:score"}]

    def make(name: str, *, times: int = 3, **changes: dict):
        rollout = {"replace_uninformative": times, "num_problems": 2, "max_response_tokens": 6}
        changes["rollout"] = rollout | changes.get("rollout", {})
        return make_config(name=name, reward={"functions": functions}, **({"algorithm": GRPO} | changes))

    return make


def lines_of(run: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (run / "rollouts" / f"step-{step:06d}.jsonl").read_text().splitlines()]


def test_a_run_replaces_problems_and_resumes_with_the_same_ones(make_replacing) -> None:
    whole, resumed = make_replacing("whole", train={"max_steps": 3}), make_replacing("resumed", train={"max_steps": 3})
    train(whole)
    num_replaced = 0
    for step, row in enumerate(map(json.loads, (whole.run.folder / "metrics.jsonl").open()), start=1):
        lines = lines_of(whole.run.folder, step)
        replaced = [line for line in lines if line["replaced"]]
        assert len(lines) - len(replaced) == 2 * 4
        assert row["rollout/replaced"] == len(replaced) / len(lines)
        for group in (replaced[start : start + 4] for start in range(0, len(replaced), 4)):
            assert len({line["reward"] for line in group}) == 1 and {line["advantage"] for line in group} == {0.0}
        num_replaced += len(replaced)
    assert num_replaced > 0
    train(resumed.model_copy(update={"train": resumed.train.model_copy(update={"max_steps": 1})}))
    train(resumed)
    for step in (1, 2, 3):
        assert lines_of(resumed.run.folder, step) == lines_of(whole.run.folder, step)
    adapters = [config.run.folder / "adapter" / "adapter_model.safetensors" for config in (whole, resumed)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_nothing_to_replace_with_or_nothing_sampled_is_refused(make_replacing, data_file: Path) -> None:
    every = len(data_file.read_text().splitlines())
    with pytest.raises(ConfigError, match=r"rollout\.replace_uninformative: every step draws all 12 problems"):
        train(make_replacing("all", rollout={"num_problems": every}))
    with pytest.raises(ConfigError, match=r"rollout\.replace_uninformative: .*samples nothing"):
        make_replacing("sft", algorithm=SFT)
