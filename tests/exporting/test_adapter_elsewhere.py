"""The adapter that a run writes is PEFT's: loaded by PEFT alone, it gives the log-probs that the run recorded."""

import json
from pathlib import Path

import pytest
import torch
from byte_model import byte_tokenizer
from huggingface_hub import ModelCard
from peft import PeftModel
from tiny_runs import data_file, finished_runs, make_config, model_dir, trained  # noqa: F401
from transformers import AutoModelForCausalLM


def recorded_and_computed(model: object, rollouts: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probs of all sampled tokens, as recorded and as the model computes them."""
    recorded, computed = [], []
    for row in map(json.loads, rollouts.read_text().splitlines()):
        ids = byte_tokenizer().encode(row["prompt"]) + row["prefix_ids"] + row["completion_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)  # type: ignore[operator]
        first = len(ids) - len(row["completion_ids"])
        computed += [logprobs[at - 1, ids[at]].item() for at in range(first, len(ids))]
        recorded += row["completion_logprobs"]
    return torch.tensor(recorded), torch.tensor(computed)


@pytest.mark.slow
def test_peft_loads_what_a_run_wrote(trained, model_dir: Path) -> None:  # noqa: F811
    folder = trained(optim={"lr": 0.05}, train={"max_steps": 2, "save_every": 1})
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    second = folder / "rollouts/step-000002.jsonl"  # sampled with the adapter of step 1
    recorded, of_base = recorded_and_computed(base, second)
    model = PeftModel.from_pretrained(base, str(folder / "checkpoints/step-000001")).eval()
    _, of_policy = recorded_and_computed(model, second)
    assert len(recorded) > 100 and (of_base - recorded).abs().mean() > 0.01, "the adapter does too little to be tested"
    torch.testing.assert_close(of_policy, recorded, atol=1e-4, rtol=0)  # sums in another order

    model.load_adapter(str(folder / "adapter"), adapter_name="final")
    model.set_adapter("final")
    _, of_final = recorded_and_computed(model, second)
    assert (of_final - of_policy).abs().mean() > 0.01, "the second step changed the adapter"
    assert ModelCard.load(folder / "adapter/README.md").data.to_dict()["library_name"] == "peft"
