"""Compare what the transformers engine draws from with a freshly loaded model, for every family."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import config_of
from families import FAMILIES, Family, write_model
from family_results import check_result, read_results
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from trapo_lite.core.errors import EngineError
from trapo_lite.engines import parity
from trapo_lite.engines.base import SampleRequest
from trapo_lite.engines.transformers import engine as engine_module
from trapo_lite.engines.transformers.cache import ATTENTION, read_at_once
from trapo_lite.engines.transformers.engine import TransformersEngine

DRAWING = {family: line["result"] for (family, kind), line in read_results().items() if kind == "drawing"}
SERVED = [family for family, result in DRAWING.items() if result == "yes"]
REFUSED_BY_CLASS = [family for family, result in DRAWING.items() if result == "no"]
REFUSED_BY_VALUES = {
    "bart, which takes no positions": Family("bart", {"decoder_layers": 2, "decoder_attention_heads": 4}),
    "bert, which sees later tokens": Family("bert", {}),
}


def start(family: Family, folder: Path, **options: Any) -> TransformersEngine:
    return TransformersEngine(str(write_model(family, folder)), max_model_len=64, **options)


def check_draws(engine: TransformersEngine, fresh: nn.Module) -> None:
    """Draw from rows of different lengths that join late and leave early, two of one prompt; compare each alone."""
    rng = random.Random(0)
    long, *others = (tuple(rng.randrange(3, 64) for _ in range(length)) for length in (17, 2, 17, 5, 9))
    prompts = {str(seed): prompt for seed, prompt in enumerate((long, long, *others))}
    for seed, (name, prompt) in enumerate(prompts.items()):
        engine.submit(SampleRequest(name, prompt, seed=seed, max_tokens=6 + 3 * seed))
    completions = []
    while len(completions) < len(prompts):
        completions += engine.poll()
    for completion in completions:
        prompt = prompts[completion.request_id]
        ids = torch.tensor(prompt + completion.token_ids)
        with torch.no_grad():
            logp = fresh(input_ids=ids[None], use_cache=False).logits[0].log_softmax(dim=-1)
        at = torch.arange(len(prompt), len(ids))
        torch.testing.assert_close(torch.tensor(completion.logprobs), logp[at - 1, ids[at]], rtol=3e-4, atol=1e-4)


def load_fresh(folder: Path, attention: str = "eager") -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_draws_from_what_a_fresh_model_computes(family: str, tmp_path: Path) -> None:
    try:
        engine = start(FAMILIES[family], tmp_path, max_num_seqs=4)
    except EngineError as error:
        check_result(family, "drawing", "no", why=str(error).rpartition("; ")[0])
        return
    check_draws(engine, load_fresh(tmp_path))
    check_result(family, "drawing", "yes")


@pytest.mark.slow
def test_the_engine_draws_with_falcons_alibi(tmp_path: Path) -> None:
    """Falcon's eager attention adds it twice; with half of it, it computes what sdpa does."""
    engine = start(Family("falcon", {"alibi": True}), tmp_path, max_num_seqs=4)
    check_draws(engine, load_fresh(tmp_path, "sdpa"))


ADAPTED = {
    "qwen3.5, Gated DeltaNet": [
        "in_proj_qkv",
        "in_proj_z",
        "in_proj_a",
        "in_proj_b",
        "out_proj",
        "q_proj",
        "o_proj",
        "down_proj",
    ],
    "bamba, Mamba-2": ["in_proj", "out_proj", "q_proj", "o_proj", "down_proj"],
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ADAPTED)
def test_an_adapter_of_recurrent_layers_is_published_and_merged(family: str, tmp_path: Path) -> None:
    engine = start(FAMILIES[family], tmp_path, max_num_seqs=4)
    ids = list(range(3, 40))
    bare = engine.score(ids)
    fresh = get_peft_model(load_fresh(tmp_path), LoraConfig(r=4, lora_alpha=8, target_modules=ADAPTED[family]))
    for name, parameter in fresh.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    fresh.eval().save_pretrained(str(tmp_path / "adapter"))
    engine.publish(tmp_path / "adapter", 1)
    assert engine.adapter_checksum() == parity.checksum(tmp_path / "adapter", dtype=torch.float32)
    separate = engine.score(ids)
    assert sum(abs(new - old) for new, old in zip(separate, bare, strict=True)) > 0.1 * len(bare)
    check_draws(engine, fresh)
    engine.merge()
    assert engine.score(ids) == pytest.approx(separate, abs=1e-4)
    check_draws(engine, fresh)
    engine.unmerge()
    assert engine.score(ids) == separate


def refusal_of(family: Family) -> str:
    name = type(AutoModelForCausalLM.from_config(config_of(family.model_type))).__name__
    return rf"model.name: {name}.*; set rollout.engine: vllm.*or take another model"


@pytest.mark.parametrize("family", REFUSED_BY_CLASS)
def test_a_class_that_cannot_be_continued_is_refused_before_a_weight_is_read(family: str, tmp_path: Path) -> None:
    write_model(FAMILIES[family], tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(EngineError, match=refusal_of(FAMILIES[family])):
        TransformersEngine(str(tmp_path), max_model_len=64)


@pytest.mark.parametrize("family", REFUSED_BY_VALUES)
def test_a_class_that_draws_from_something_else_than_it_scores_is_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=refusal_of(REFUSED_BY_VALUES[family])):
        start(REFUSED_BY_VALUES[family], tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bloom, ALiBi", "codegen"])
def test_attention_that_ignores_the_mask_is_refused_at_the_start(
    family: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both add the mask to their scores, and the engine's own attention has a mask of True and False."""
    monkeypatch.setattr(engine_module, "attention_of", lambda section: ATTENTION)
    with pytest.raises(EngineError, match="its log-probs change by"):
        start(FAMILIES[family], tmp_path, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("family", SERVED)
def test_rounding_to_bfloat16_is_not_taken_for_a_mistake(family: str, tmp_path: Path) -> None:
    start(FAMILIES[family], tmp_path, dtype="bfloat16")


def test_prompts_of_equal_length_are_read_at_once() -> None:
    prompts = [(1, 2), (3,), (4, 5), (1, 2), (6, 7, 8)]
    batches = list(read_at_once(prompts, tuple, equal_lengths=True))
    assert batches == [[(3,)], [(1, 2), (4, 5), (1, 2)], [(6, 7, 8)]]


def test_padding_before_a_recurrent_layer_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bamba's projection has a bias, which makes padding something else than the zeros before the first token."""
    monkeypatch.setattr(engine_module, "read_at_once", lambda rows, prompt_of, equal_lengths: [rows] if rows else [])
    with pytest.raises(EngineError, match="its log-probs change by"):
        start(FAMILIES["bamba, Mamba-2"], tmp_path)
