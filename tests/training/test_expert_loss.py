"""The loss on held-out expert solutions, against the base and the saved adapter in plain transformers and PEFT."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from run_differences import read_metrics
from tiny_runs import GRPO, SFT, data_file, make_config, model_dir
from transformers import AutoModelForCausalLM, AutoTokenizer

from trapo_lite.training.trainer import train

pytestmark = pytest.mark.slow


def write_rows(file: Path, numbers: range, *, with_solutions: bool = True) -> Path:
    rows = [{"problem": f"{n}+1?", "answer": str(n + 1), "solution": f"It is \\boxed{{{n + 1}}}"} for n in numbers]
    if not with_solutions:
        rows = [{key: row[key] for key in ("problem", "answer")} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def loss_in_transformers(folder: Path, base: Path, rows: list[dict]) -> float:
    """Return the mean of -log p over the tokens of the solutions and their end, one row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    total, count = 0.0, 0
    for row in rows:
        prompt = tokenizer(row["problem"] + "\n", add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(row["solution"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
        total, count = total + float(loss) * len(answer), count + len(answer)
    return total / count


@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_it_is_what_transformers_computes_with_the_adapter_after_the_update(
    make_config,
    model_dir: Path,
    tmp_path: Path,
    layout: str,
) -> None:
    held_out = write_rows(tmp_path / "held_out.jsonl", range(100, 105))
    config = make_config(
        algorithm=SFT,
        model={"layout": layout},
        optim={"lr": 1e-2},
        eval={"every": 2, "data": str(held_out), "num_problems": 4},
    )
    folder = train(config)
    first, second = read_metrics(folder / "metrics.jsonl")
    assert "eval/expert_loss" not in first
    rows = list(map(json.loads, held_out.read_text().splitlines()))[:4]
    expected = loss_in_transformers(folder / "adapter", model_dir, rows)
    assert second["eval/expert_loss"] == pytest.approx(expected, abs=1e-5)
    assert second["time/eval"] > 0


def test_without_solutions_there_is_none_and_it_changes_nothing(make_config, tmp_path: Path) -> None:
    weights = []
    for with_solutions in (True, False):
        file = write_rows(tmp_path / f"{with_solutions}.jsonl", range(100, 104), with_solutions=with_solutions)
        config = make_config(name=str(with_solutions), algorithm=GRPO, eval={"every": 1, "data": str(file)})
        folder = train(config)
        assert all(("eval/expert_loss" in row) == with_solutions for row in read_metrics(folder / "metrics.jsonl"))
        weights.append((folder / "adapter/adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
