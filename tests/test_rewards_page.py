"""The page on rewards names what there is, and its examples work."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trapo_lite import cli
from trapo_lite.config import validate
from trapo_lite.config.rewards import REWARD_TYPES
from trapo_lite.core.types import Problem, Response
from trapo_lite.reward import Scorer
from trapo_lite.reward.own import PARAMETERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")


def test_the_page_names_every_type_and_every_parameter() -> None:
    names = {row.split("|")[1].strip().strip("`") for row in PAGE.splitlines() if row.startswith("| `")}
    types = {kind.model_fields["type"].default for kind in REWARD_TYPES}
    assert types - {"function"} <= names and PARAMETERS.keys() <= names


def test_the_first_example_is_a_configuration() -> None:
    block = re.search(r"\n\n((?:    .*\n)+)", PAGE)
    assert block is not None
    section = validate(yaml.safe_load(block[1])).reward
    assert [function.label for function in section.functions] == ["math", "polite", "length"]


@pytest.mark.slow
def test_the_function_of_the_page_works(tmp_path: Path) -> None:
    source = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert source is not None
    (tmp_path / "mine.py").write_text(source[1])
    section = validate({"reward": {"functions": {"type": "function", "path": f"{tmp_path}/mine.py:score"}}}).reward
    problem = Problem("p", (), "", row={"total": 4})
    texts = {'{"sum": 4}': 1.0, '{"sum": 5}': 0.0, 'It is {"sum": 4}': 0.0, "": 0.0}
    with Scorer(section) as scorer:
        scores = scorer.score([Response(problem, text) for text in texts])
    assert [score.reward for score in scores] == list(texts.values())


@pytest.mark.slow
def test_a_dry_run_refuses_a_function_that_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine.py").write_text("def score(response, row): return len(row)\n")
    command = ["--config", "configs/tiny_cpu.yaml", "--dry-run", "rollout.engine=transformers"]
    cli.train([*command, f"reward.functions=[math, {{type: function, path: {tmp_path}/mine.py:score, weight: 0.5}}]"])
    assert "\nreward    math + 0.5 score\n" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        cli.train([*command, f"reward.functions={{type: function, path: {tmp_path}/mine.py:scor}}"])
    assert end.value.code == 2 and "there is no 'scor'; it has score" in capsys.readouterr().err


@pytest.mark.slow
def test_the_reward_of_the_example_is_one_for_its_own_solutions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples/own_task"))
    import json_rewards
    import own_task

    own_task.write_rows(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert len(rows) == own_task.NUM_ROWS["test"]
    assert {json_rewards.score(row["worked"], row) for row in rows} == {1.0}
    wrong = [json.dumps(json.loads(row["worked"]) | {"sum": row["total"] + 1}) for row in rows]
    assert {json_rewards.score(text, row) for text, row in zip(wrong, rows, strict=True)} == {0.1}
    for text in ("", "6", "[1]", '{"sum": 6}', "The answer is 6", rows[0]["worked"] + "."):
        assert json_rewards.score(text, rows[0]) == 0.0


@pytest.mark.long
def test_the_example_learns(tmp_path: Path) -> None:
    """A part of its run shows that base, training and evaluation fit each other, and that it begins to learn."""
    script = ROOT / "examples/own_task/own_task.py"
    options = ["train.max_steps=12", "eval.every=0", "rollout.engine=transformers"]
    done = subprocess.run(
        [sys.executable, str(script), *options], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (
        float(re.search(rf"^{name} +right (\d\.\d+)", done.stdout, re.MULTILINE)[1]) for name in ("before", "after")
    )
    assert after > before + 0.1
