"""The sizes that plans take without a network give the parameters that the publishers state."""

import pytest

from trapo_lite import cli
from trapo_lite.config import validate
from trapo_lite.model.base import model_shape
from trapo_lite.planning.published_sizes import SIZES, with_published_sizes

# Billions of parameters as the models' own pages state them, embeddings counted once if they are tied to the head.
STATED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.135,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 0.362,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.71,
    "Qwen/Qwen2.5-0.5B-Instruct": 0.49,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.54,
    "Qwen/Qwen2.5-3B-Instruct": 3.09,
    "Qwen/Qwen2.5-7B-Instruct": 7.61,
    "Qwen/Qwen2.5-14B-Instruct": 14.7,
    "Qwen/Qwen2.5-32B-Instruct": 32.5,
    "Qwen/Qwen2.5-Math-1.5B": 1.54,
    "Qwen/Qwen2.5-Math-1.5B-Instruct": 1.54,
    "Qwen/Qwen2.5-Math-7B": 7.62,
    "Qwen/Qwen2.5-Math-7B-Instruct": 7.62,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1.78,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7.62,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": 14.8,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8.03,
    "Qwen/Qwen3-0.6B": 0.6,
    "Qwen/Qwen3-1.7B": 1.7,
    "Qwen/Qwen3-4B": 4.0,
    "Qwen/Qwen3-4B-Instruct-2507": 4.0,
    "Qwen/Qwen3-4B-Thinking-2507": 4.0,
    "Qwen/Qwen3-8B": 8.2,
    "Qwen/Qwen3-14B": 14.8,
    "Qwen/Qwen3-32B": 32.8,
    "meta-llama/Llama-3.2-1B-Instruct": 1.23,
    "meta-llama/Llama-3.2-3B-Instruct": 3.21,
    "meta-llama/Llama-3.1-8B-Instruct": 8.03,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.25,
    "google/gemma-3-1b-it": 1.0,
}


def test_every_model_has_a_stated_number() -> None:
    unstated = {"Qwen/Qwen3.5-4B"}  # its page states 4 billion, its vision tower included
    assert SIZES.keys() == STATED.keys() | unstated


@pytest.mark.parametrize("name", STATED)
def test_the_sizes_give_the_stated_parameters(name: str) -> None:
    with with_published_sizes(validate({"model": {"name": name}})) as config:
        assert model_shape(config).parameters / 1e9 == pytest.approx(STATED[name], rel=0.015)


def test_a_plan_of_such_a_model_asks_no_hub(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("trapo_lite.config.hub.hub_problem", lambda: pytest.fail("the hub was asked"))
    cli.plan(["--config", "qwen3_1.7b.yaml", "--gpu", "3090"])
    shown = capsys.readouterr().out
    assert "1.72 billion parameters, by the sizes that its publisher gives" in shown and "RTX 3090" in shown
