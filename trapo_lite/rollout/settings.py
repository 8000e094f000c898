"""Define the settings of the sampler, and take them from a configuration."""

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import Config
from trapo_lite.config.rewards import reward_bounds
from trapo_lite.data.chat import stop_ids_of

StartOrder = Literal["barrier", "pipelined", "speculative"]


@dataclass(frozen=True)
class SamplingSettings:
    """SamplingSettings hold all that decides which tokens are sampled, besides the weights and the problems."""

    seed: int
    max_response_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    start_order: StartOrder = "pipelined"
    deterministic: bool = False
    truncated: Literal["graded", "zero", "masked"] = "graded"
    """What becomes of completions that are cut at the limit (`rollout.truncated`)."""
    reward_bounds: tuple[float, float] = (0.0, 1.0)
    """The lowest and the highest reward that a rollout can have."""


def sampling_settings(
    config: Config, tokenizer: PreTrainedTokenizerBase, *, for_eval: bool = False
) -> SamplingSettings:
    """Return the settings that the configuration gives for training or for evaluation."""
    limit, temperature = config.rollout.max_response_tokens, config.rollout.temperature
    if for_eval:
        limit, temperature = config.eval.max_response_tokens or limit, config.eval.temperature
    return SamplingSettings(
        seed=config.run.seed,
        max_response_tokens=limit,
        stop_ids=stop_ids_of(config.data, tokenizer, model=config.model.name),
        temperature=temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        start_order=config.rollout.schedule,
        deterministic=config.run.deterministic,
        truncated="graded" if for_eval else config.rollout.truncated,
        reward_bounds=reward_bounds(config.reward.functions),
    )
