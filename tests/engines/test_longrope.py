"""Past its original length, Phi's RoPE is the same in the trainer and in the engines, for sequences of every length."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import config_of, rollout
from conftest import VLLM_DTYPE, VLLM_ROUNDING
from served_by_vllm import IDS, WIDE_HEADS, load_fresh, vllm_options
from transformers import AutoModelForCausalLM

from trapo_lite.config import validate
from trapo_lite.config.algorithm import AlgorithmSection
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.batching import cut
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.engines.transformers.engine import TransformersEngine
from trapo_lite.engines.vllm.engine import VLLMEngine
from trapo_lite.model.base import model_lines
from trapo_lite.model.layout import check_model
from trapo_lite.model.policy import Policy

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


def start_transformers(phi: Path, max_model_len: int) -> RolloutEngine:
    return TransformersEngine(str(phi), max_model_len=max_model_len)


def start_vllm(phi: Path, max_model_len: int) -> RolloutEngine:
    assert max_model_len == LONGEST
    return VLLMEngine(vllm_options(phi, VLLM_DTYPE), log_path=phi.parent / "vllm.log", start_limit_s=300.0)


@pytest.mark.parametrize(
    ("start", "rounding"),
    [
        pytest.param(start_transformers, 1e-4, id="transformers", marks=pytest.mark.slow),
        pytest.param(start_vllm, VLLM_ROUNDING, id="vllm", marks=pytest.mark.long),
    ],
)
def test_an_engine_for_long_sequences_has_the_long_factors_at_every_length(
    start: Callable[[Path, int], RolloutEngine], rounding: float, phi: Path, expected: dict[int, torch.Tensor]
) -> None:
    engine = start(phi, LONGEST)
    try:
        for ids in (SHORT, IDS):
            found = torch.tensor(engine.score(ids))
            torch.testing.assert_close(found, expected[len(ids)], rtol=0, atol=rounding)
    finally:
        engine.close()


@pytest.mark.slow
def test_an_engine_for_short_sequences_has_the_short_factors(phi: Path) -> None:
    engine = start_transformers(phi, ORIGINAL)
    torch.testing.assert_close(torch.tensor(engine.score(SHORT)), scores_of(phi, SHORT), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_the_trainer_computes_as_the_engine_serves(layout: str, phi: Path, expected: dict[int, torch.Tensor]) -> None:
    """Also where a short and a long rollout are packed together."""
    limits = {"data": {"max_prompt_tokens": 20}, "rollout": {"max_response_tokens": LONGEST - 20}}
    config = validate({"model": {"name": str(phi), "dtype": "float32", "layout": layout}, **limits})
    policy = Policy.load(config.model, config.lora, device="cpu", layout=check_model(config))
    assert model_lines(config.model, max_model_len=config.max_model_len)[0].endswith("vLLM chooses in the same way")
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
