"""Runs give functions of the user's what they ask for, and learn from what they return; the workers are real."""

import json
import re
from pathlib import Path

import pytest
import torch
from builders import rollout
from run_differences import read_metrics
from tiny_runs import GRPO, SFT, TRAPO, data_file, make_config, model_dir

from trapo_lite.config.algorithm import AlgorithmSection
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.errors import CheckpointError, ConfigError, RewardError
from trapo_lite.training.inputs import read_inputs
from trapo_lite.training.trainer import train

pytestmark = pytest.mark.slow

ROWS = [{"question": f"{a}+{b}?", "total": a + b, "steps": f"{a} and {b}: {a + b}"} for a in range(3) for b in range(4)]


@pytest.fixture
def own(tmp_path: Path):
    """Write rows with columns of their own and a module; return the sections that name them."""
    file, module = tmp_path / "own.jsonl", tmp_path / "mine.py"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def write(source: str, *functions: dict) -> dict[str, dict]:
        module.write_text(source)
        mine = {"type": "function", "path": f"{module}:score"}
        columns = {"problem": "question", "solutions": "steps"}
        return {
            "data": {"train": str(file), "columns": columns},
            "reward": {"functions": [mine, *functions], "num_workers": 1},
        }

    return write


def lines_of(run: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (run / f"rollouts/step-{step:06d}.jsonl").read_text().splitlines()]


def no_engine(*_, **__):
    pytest.fail("the engine was started")


def test_a_run_learns_from_what_a_function_of_row_and_response_returns(make_config, own) -> None:
    """The rows have no answer. The reward is what the function says, the length is logged only."""
    source = "def score(response, row): return 3.0 if str(row['total']) in response else len(response) / 1000\n"
    length = {"type": "length", "free_tokens": 1, "most_tokens": 100, "weight": 0}
    run = train(make_config(algorithm=TRAPO, **own(source, length)))
    total_by_problem = {f"own-{number}": row["total"] for number, row in enumerate(ROWS)}
    metrics = read_metrics(run / "metrics.jsonl")
    for step in (1, 2):
        lines = lines_of(run, step)
        for line in lines:
            text = re.sub(r"<\|\w+\|>", "", line["prefix"] + line["completion"])  # special tokens are in the log only
            expected = 3.0 if str(total_by_problem[line["problem_id"]]) in text else len(text) / 1000
            assert line["reward"] == line["scores"]["score"] == pytest.approx(expected)
            assert line["verdict"] == ("correct" if expected >= 1 else "wrong")
            assert -1.0 <= line["scores"]["length"] <= 0.0
        assert {line["reward"] for line in lines} > {3.0}
        row = metrics[step - 1]
        assert row["reward/mean"] == pytest.approx(sum(line["reward"] for line in lines) / len(lines))
        assert row["score/score"] == row["reward/mean"] and row["score/length"] < 0.0 and row["reward/none"] == 0.0


def test_a_rollout_without_a_reward_gets_no_advantage(make_config, own, capsys: pytest.CaptureFixture) -> None:
    """The function fails on short responses; they are shown once, counted, and no baseline holds them."""
    source = "def score(response, row):\n    return 1 / (len(response) > 40) if response else 0.5\n"
    run = train(make_config(algorithm=GRPO, rollout={"max_response_tokens": 60}, **own(source)))
    printed = capsys.readouterr().out
    assert printed.count("the reward function score failed for problem own-") == 1 and "ZeroDivisionError" in printed
    lines = [line for step in (1, 2) for line in lines_of(run, step)]
    failed = [line for line in lines if line["verdict"] == "failed"]
    assert 0 < len(failed) < len(lines)
    for line in failed:
        assert (line["reward"], line["advantage"], line["scores"]) == (None, 0.0, {"score": None})
    for row, step in zip(read_metrics(run / "metrics.jsonl"), (1, 2), strict=True):
        num_failed = sum(line["verdict"] == "failed" for line in lines_of(run, step))
        assert row["reward/none"] == row["verdict/failed"] == num_failed / len(lines_of(run, step))


def test_advantages_without_those_that_have_no_reward() -> None:
    """The mean of the rewards 1 and 4 is 2.5, computed by hand; the third rollout is no part of it."""
    group = [rollout([1], [], [2], slot=slot, reward=reward) for slot, reward in enumerate((1.0, 4.0, 9.0))]
    group[2] = type(group[2])(**{**vars(group[2]), "reward": None})
    assert make_group(AlgorithmSection().build(), group).advantages == (-1.5, 1.5, 0.0)
    standardized = AlgorithmSection(advantage="standardized").build()
    found = torch.tensor(make_group(standardized, group).advantages)
    torch.testing.assert_close(found, torch.tensor([-1.5, 1.5, 0.0]) / (4.5**0.5), rtol=1e-5, atol=1e-5)
    none = [type(one)(**{**vars(one), "reward": None}) for one in group]
    assert make_group(AlgorithmSection().build(), none).advantages == (0.0, 0.0, 0.0)


def test_a_function_that_fails_on_every_rollout_stops_the_run_in_the_first_step(make_config, own, tmp_path) -> None:
    source = "def score(response, row):\n    return {'': 0.0, row['steps']: 1.0}[response]\n"
    config = make_config(algorithm=GRPO, **own(source))
    with pytest.raises(RewardError, match=r"(?s)score failed on all of 12 responses.*mine\.py.*line 2.*KeyError"):
        train(config)
    assert not (config.run.folder / "metrics.jsonl").exists() or read_metrics(config.run.folder / "metrics.jsonl") == []


def test_such_a_run_stops_within_a_large_step(make_config, own) -> None:
    source = "def score(response, row):\n    return {'': 0.0, row['steps']: 1.0}[response]\n"
    rollout = {"num_problems": 12, "max_response_tokens": 8}
    config = make_config(algorithm=GRPO | {"schedule": [{"num_rollouts": 8}]}, rollout=rollout, **own(source))
    with pytest.raises(RewardError, match=r"(?s)score failed on all of 64 responses.*problem own-.*KeyError"):
        train(config)


def test_a_function_gets_step_length_and_whether_a_rollout_was_cut(make_config, own) -> None:
    """What the function got is compared with the log. It returns less than any threshold, so that experts help."""
    source = "def score(step, num_tokens, is_truncated): return -1000 * step - num_tokens - 0.5 * is_truncated\n"
    rollout = {"max_response_tokens": 24}
    run = train(make_config(algorithm=TRAPO, rollout=rollout, train={"max_steps": 3}, **own(source)))
    reasons = set()
    for step in (1, 2, 3):
        for line in lines_of(run, step):
            num_tokens = len(line["prefix_ids"]) + len(line["completion_ids"])
            assert line["reward"] == -1000 * (step - 1) - num_tokens - 0.5 * (line["finish_reason"] == "length")
            reasons.add(line["finish_reason"])
    assert reasons >= {"length", "expert"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def scor(response): return 1", r"there is no 'score'; it has scor$"),
        ("def score(prompts): return 1", r"it takes prompts; a reward function may take"),
        ("import nothing_there", r"(?s)cannot be imported: .*nothing_there"),
        ("def score(response): return 'good'", r"(?s)score fails on problem own-0, with its expert solution and with"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(make_config, own, source: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        train(make_config(**own(source)), start_engine=no_engine)


def test_a_missing_file_is_named(make_config, own) -> None:
    sections = own("def score(response): return 1")
    sections["reward"]["functions"][0]["path"] = "nowhere.py:score"
    with pytest.raises(ConfigError, match=r"reward\.functions: nowhere\.py:score: no file 'nowhere\.py' in"):
        train(make_config(**sections), start_engine=no_engine)


def test_an_answer_is_needed_if_a_function_compares_with_one(make_config, own) -> None:
    assert {problem.answer for problem in read_inputs(make_config(**own("def score(row): return 1"))).problems} == {""}
    with pytest.raises(Exception, match=r"answer: found none of the columns"):
        read_inputs(make_config(**own("def score(row): return 1", {"type": "exact", "weight": 0})))


def test_a_resumed_run_says_that_a_function_has_changed(make_config, own, capsys: pytest.CaptureFixture) -> None:
    sections = own("def score(response): return len(response) / 10\n")

    def config(steps: int, *, deterministic: bool):
        return make_config(
            algorithm=SFT,
            train={"max_steps": steps},
            run={"deterministic": deterministic},
            **sections,
        )

    train(config(1, deterministic=True))
    own("def score(response): return len(response) / 20\n")
    with pytest.raises(CheckpointError, match=r"the reward function score: changed.*run\.deterministic"):
        train(config(2, deterministic=True))
    capsys.readouterr()
    train(config(2, deterministic=False))
    assert "function score: changed" in capsys.readouterr().out.replace("\n", "")


def test_an_evaluation_grades_a_file_by_the_functions_and_a_benchmark_by_math(
    make_config, own, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from trapo_lite.evaluation.evaluate import evaluate
    from trapo_lite.evaluation.target import EvalTarget

    sections = own("def score(response, row, step): return 2.0 if step == -1 and row['total'] >= 0 else 0.0\n")
    evaluation = {"data": sections["data"]["train"], "num_problems": 3, "num_samples": 2, "max_response_tokens": 8}
    config = make_config(eval=evaluation, **sections)
    [result] = evaluate(EvalTarget(config, None, tmp_path / "out")).values()
    assert result.accuracy == 1.0 and result.mean_reward == 2.0 and result.verdicts == {"correct": 6}
    assert config.reward.for_benchmarks.is_math
    summary = json.loads((tmp_path / "out/own.json").read_text())
    assert summary["reward"] == 2.0 and summary["rewards"][0]["type"] == "function" and len(summary["functions"]) == 1
    assert summary["majority"] is None and "majority" not in capsys.readouterr().out  # it extracts no answers
    own("def score(response): return 0.0\n")
    with pytest.raises(ConfigError, match=r"another version of a reward function graded"):
        evaluate(EvalTarget(config, None, tmp_path / "out"))


def test_an_evaluation_from_another_folder_names_the_missing_file_first(
    make_config, own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trapo_lite.evaluation import evaluate
    from trapo_lite.evaluation.target import EvalTarget

    sections = own("def score(response): return 1")
    sections["reward"]["functions"][0]["path"] = "mine.py:score"
    config = make_config(eval={"data": sections["data"]["train"]}, **sections)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(evaluate, "load_tokenizer", no_engine)
    with pytest.raises(ConfigError, match=r"reward\.functions: mine\.py:score: no file 'mine\.py' in .*elsewhere;"):
        evaluate.evaluate(EvalTarget(config, None, tmp_path / "out"))


def test_evaluation_data_that_a_function_cannot_judge_end_the_run_at_once(make_config, own, tmp_path: Path) -> None:
    others = tmp_path / "others.jsonl"
    others.write_text(json.dumps({"problem": "1+1?", "answer": "2", "solution": "2"}) + "\n")
    sections = own("def score(response, row): return float(str(row['total']) in response)\n")
    config = make_config(eval={"every": 1, "data": str(others)}, **sections)
    with pytest.raises(RewardError, match=r"(?s)fails on problem .*judge in eval\.data\..*KeyError: 'total'"):
        train(config, start_engine=no_engine)


def test_an_evaluation_knows_a_function_whose_file_has_moved(make_config, own, tmp_path: Path, capsys) -> None:
    from trapo_lite.evaluation.evaluate import evaluate
    from trapo_lite.evaluation.target import EvalTarget

    sections = own("def score(response): return 1.0\n")
    config = make_config(eval={"data": sections["data"]["train"], "num_problems": 2}, **sections)
    evaluate(EvalTarget(config, None, tmp_path / "out"))
    (tmp_path / "moved").mkdir()
    (tmp_path / "mine.py").rename(tmp_path / "moved" / "mine.py")
    sections["reward"]["functions"][0]["path"] = f"{tmp_path}/moved/mine.py:score"
    config = make_config(eval={"data": sections["data"]["train"], "num_problems": 2}, **sections)
    capsys.readouterr()
    evaluate(EvalTarget(config, None, tmp_path / "out"))
    assert "holds all answers already" in capsys.readouterr().out
    config = make_config(eval={"data": sections["data"]["train"], "num_problems": 3}, **sections)
    with pytest.raises(ConfigError, match="holds answers to other problems than those given now"):
        evaluate(EvalTarget(config, None, tmp_path / "out"))
