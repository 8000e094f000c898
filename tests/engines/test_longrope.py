"""Past its original length, Phi's RoPE is the same in the trainer and in the engines, for sequences of every length."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import config_of, rollout
from conftest import VLLM_DTYPE, VLLM_ROUNDING
from served_by_vllm import IDS, WIDE_HEADS, load_fresh, vllm_options
from transformers import AutoConfig, AutoModelForCausalLM

from trapo_lite.config import Config, validate
from trapo_lite.config.algorithm import AlgorithmSection
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.batching import cut
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.engines.transformers.engine import TransformersEngine
from trapo_lite.engines.vllm.engine import VLLMEngine
from trapo_lite.exporting.merge import load_float32_base
from trapo_lite.model.base import with_one_rope
from trapo_lite.model.layout import check_model
from trapo_lite.model.policy import Policy
from trapo_lite.model.positions import longest_with_one_rope, one_rope
from trapo_lite.training.resume import run_identity

ORIGINAL, LONGEST = 20, 64
GRPO = AlgorithmSection().build()
SHORT = IDS[:12]


def write_phi(folder: Path) -> Path:
    factors = {"short_factor": [1.0] * 16, "long_factor": [1.0 + number for number in range(16)]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors, "original_max_position_embeddings": ORIGINAL}
    config = config_of(
        "phi3",
        **WIDE_HEADS,
        sliding_window=None,
        initializer_range=0.2,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters=rope,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@torch.no_grad()
def scores_of(folder: Path, ids: list[int]) -> torch.Tensor:
    logits = load_fresh(folder)(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0].float()
    return logits[:-1].log_softmax(dim=-1).gather(1, torch.tensor(ids)[1:, None]).squeeze(1)


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    return write_phi(tmp_path / "phi")


@pytest.fixture
def expected(phi: Path, tmp_path: Path) -> dict[int, torch.Tensor]:
    """Return scores of transformers alone, by length: of a copy that has the long factors under both names."""
    always_long = write_phi(tmp_path / "always_long")
    file = always_long / "config.json"
    fields = json.loads(file.read_text())
    fields["rope_parameters"]["short_factor"] = fields["rope_parameters"]["long_factor"]
    file.write_text(json.dumps(fields))
    assert (scores_of(phi, SHORT) - scores_of(always_long, SHORT)).abs().max() > 0.1
    torch.testing.assert_close(scores_of(phi, IDS), scores_of(always_long, IDS))  # it is past the original length
    return {len(ids): scores_of(always_long, ids) for ids in (SHORT, IDS)}


def resolved(folder: Path, *, max_model_len: int, **model: Any) -> Config:
    """Return a run's configuration as `read_inputs` resolves it."""
    limits = {"data": {"max_prompt_tokens": 8}, "rollout": {"max_response_tokens": max_model_len - 8}}
    config = validate({"model": {"name": str(folder), "dtype": "float32", **model}, **limits})
    assert config.max_model_len == max_model_len
    return with_one_rope(config, max_model_len=config.max_model_len)[0]


def start_transformers(config: Config) -> RolloutEngine:
    overrides = config.model.config_overrides
    return TransformersEngine(config.model.name, max_model_len=config.longest_sequence, config_overrides=overrides)


def start_vllm(config: Config) -> RolloutEngine:
    options = replace(vllm_options(Path(config.model.name), VLLM_DTYPE), config_overrides=config.model.config_overrides)
    assert options.max_model_len == LONGEST
    return VLLMEngine(options, log_path=Path(config.model.name).parent / "vllm.log", start_limit_s=300.0)


def start_vllm_as_it_is(config: Config) -> RolloutEngine:
    """Start it without the overrides: what vLLM chooses by itself is what they write out."""
    return start_vllm(config.model_copy(update={"model": config.model.model_copy(update={"config_overrides": {}})}))


@pytest.mark.parametrize(
    ("start", "rounding"),
    [
        pytest.param(start_transformers, 1e-4, id="transformers", marks=pytest.mark.slow),
        pytest.param(start_vllm, VLLM_ROUNDING, id="vllm", marks=pytest.mark.long),
        pytest.param(start_vllm_as_it_is, VLLM_ROUNDING, id="vllm by itself", marks=pytest.mark.long),
    ],
)
def test_an_engine_for_long_sequences_has_the_long_factors_at_every_length(
    start: Callable[[Config], RolloutEngine], rounding: float, phi: Path, expected: dict[int, torch.Tensor]
) -> None:
    engine = start(resolved(phi, max_model_len=LONGEST))
    try:
        for ids in (SHORT, IDS):
            found = torch.tensor(engine.score(ids))
            torch.testing.assert_close(found, expected[len(ids)], rtol=0, atol=rounding)
    finally:
        engine.close()


@pytest.mark.slow
def test_a_run_of_short_sequences_has_the_short_factors(phi: Path) -> None:
    config = resolved(phi, max_model_len=ORIGINAL)
    assert config.model.config_overrides == {}
    engine = start_transformers(config)
    torch.testing.assert_close(torch.tensor(engine.score(SHORT)), scores_of(phi, SHORT), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_the_trainer_computes_as_the_engine_serves(layout: str, phi: Path, expected: dict[int, torch.Tensor]) -> None:
    """A short and a long rollout are packed together, too."""
    config = resolved(phi, max_model_len=LONGEST, layout=layout)
    policy = Policy.load(config.model, config.lora, device="cpu", layout=check_model(config))
    prompt = 4
    pair = [
        rollout(ids[:prompt], [], ids[prompt:], slot=slot, reward=float(slot)) for slot, ids in enumerate((SHORT, IDS))
    ]
    parts = cut([make_group(GRPO, pair)], budget=1 if layout == "rows" else 1000)
    assert len(parts) == (2 if layout == "rows" else 1)
    with torch.no_grad():
        found = [policy.token_logprobs(policy.prepare([part]), temperature=1.0)[0] for part in parts]
    wanted = torch.cat([expected[len(ids)][prompt - 1 :] for ids in (SHORT, IDS)])
    torch.testing.assert_close(torch.cat(found), wanted, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_exported_checkpoint_is_as_trained_at_every_length(
    phi: Path, expected: dict[int, torch.Tensor], tmp_path: Path
) -> None:
    base = load_float32_base(resolved(phi, max_model_len=LONGEST).model)
    base.save_pretrained(tmp_path / "exported")
    for ids in (SHORT, IDS):
        torch.testing.assert_close(scores_of(tmp_path / "exported", ids), expected[len(ids)], rtol=0, atol=1e-4)


def test_a_resumed_run_that_would_take_other_factors_has_another_identity(phi: Path) -> None:
    def identity(max_response_tokens: int) -> dict[str, Any]:
        evaluation = {"every": 1, "data": "dev.jsonl", "max_response_tokens": max_response_tokens}
        short = {"data": {"max_prompt_tokens": 8}, "rollout": {"max_response_tokens": ORIGINAL - 8}}
        config = validate({"model": {"name": str(phi)}, "eval": evaluation, **short})
        config, lines = with_one_rope(config, max_model_len=config.max_model_len)
        assert bool(lines) == (max_response_tokens + 8 > ORIGINAL)
        return run_identity(config, prompt={}, data_fingerprint="", num_processes=1)

    assert identity(8) == identity(ORIGINAL - 8)
    assert identity(8)["configuration"] != identity(ORIGINAL - 7)["configuration"]


def test_both_scales_are_those_past_the_original_length(phi: Path) -> None:
    """PhiMoE has scales of its own, beside the factors."""
    config = AutoConfig.from_pretrained(phi)
    config.rope_parameters |= {"short_mscale": 1.1, "long_mscale": 1.3}
    assert one_rope(config, max_model_len=ORIGINAL) is None
    assert longest_with_one_rope(config) == ORIGINAL
    found = one_rope(config, max_model_len=ORIGINAL + 1)
    assert found is not None and found["short_mscale"] == 1.3 and found["short_factor"] == found["long_factor"]
    config.rope_parameters = found
    assert longest_with_one_rope(config) is None and one_rope(config, max_model_len=LONGEST) is None
