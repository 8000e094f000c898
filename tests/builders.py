"""Build rollouts and tiny models for tests."""

import random
from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from trapo_lite.config import LoraSection
from trapo_lite.core.types import Rollout, Verdict
from trapo_lite.model.policy import Policy

TINY_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def config_of(model_type: str, **options: Any) -> PreTrainedConfig:
    """Return a tiny configuration of any type of model. Only a class that limits its positions gets a limit."""
    config_class = CONFIG_MAPPING[model_type]
    sizes, limit = dict(TINY_SIZES), "max_position_embeddings"
    if not hasattr(config_class, limit) and limit not in config_class.attribute_map:
        del sizes[limit]
    return config_class(**sizes | options)


def longrope(original: int) -> dict[str, Any]:
    """Return RoPE for heads of 8 whose frequencies change past `original` positions."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 1.5, 3.0, 6.0],
        "original_max_position_embeddings": original,
    }


def rollout(
    prompt: Sequence[int],
    prefix: Sequence[int],
    completion: Sequence[int],
    *,
    reward: float = 0.0,
    train_prefix: bool | None = None,
    slot: int = 0,
    logprobs: Sequence[float] | None = None,
    problem_id: str = "p",
) -> Rollout:
    return Rollout(
        problem_id=problem_id,
        slot=slot,
        prompt_ids=tuple(prompt),
        prefix_ids=tuple(prefix),
        completion_ids=tuple(completion),
        completion_logprobs=tuple(logprobs if logprobs is not None else [-1.0] * len(completion)),
        finish_reason="stop" if completion else "expert",
        trace=0 if prefix else None,
        train_prefix=bool(prefix) if train_prefix is None else train_prefix,
        adapter_version=1,
        verdict=Verdict("correct" if reward else "wrong"),
        reward=reward,
    )


def random_rollouts(rng: random.Random, *, vocab_size: int = 64, problem_id: str = "p") -> list[Rollout]:
    """Return a TRAPO group: four free rollouts, then prefixes of one or two traces, with random lengths and rewards."""

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(rng.randint(low, high))]

    prompt, traces = ids(1, 12), [ids(6, 30), ids(6, 30)]
    half = traces[0][: len(traces[0]) // 2]
    prefixes = [[], [], [], [], half[: len(half) // 2], half[: len(half) // 2], half, traces[rng.randrange(2)]]
    rollouts = []
    for slot, prefix in enumerate(prefixes):
        completion = ids(0, 20) if slot < 7 else []
        rollouts.append(
            rollout(
                prompt,
                prefix,
                completion,
                reward=float(rng.random() < 0.5),
                slot=slot,
                logprobs=[-rng.random() * 4 for _ in completion],
                train_prefix=bool(prefix) and slot != 4,
                problem_id=problem_id,
            )
        )
    return rollouts


def tiny_qwen2(
    *,
    seed: int = 0,
    vocab_size: int = 64,
    dtype: torch.dtype = torch.float32,
    tie_word_embeddings: bool = False,
) -> Qwen2ForCausalLM:
    """Return two layers with grouped-query attention, whose random weights are large enough to disagree about."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=tie_word_embeddings,
        attn_implementation="packed_tree",
    )
    return Qwen2ForCausalLM(config).to(dtype).eval()


def trained_policy(*, rank: int, layout: Literal["tree", "rows"] = "tree") -> Policy:
    """Return a policy on `tiny_qwen2` as if it had learnt something: no adapter tensor is zero."""
    base, lora = tiny_qwen2(), LoraSection(r=rank, alpha=2 * rank)
    if layout == "rows":
        base.set_attn_implementation("sdpa")
    policy = Policy(base, lora, attention="sdpa", gradient_checkpointing=False, layout=layout)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy
