"""Estimate the time of a step from the configuration, the model's sizes and the GPU's published speed."""

from dataclasses import dataclass

from trapo_lite.config import Config
from trapo_lite.model.shape import ModelShape, num_pairs
from trapo_lite.planning.memory import plan_memory
from trapo_lite.run.gpus import Gpu

UTILISATION = 0.35  # share of the peak FLOPs in the update
DECODE_EFFICIENCY = 0.6  # share of the memory's bandwidth in decoding


@dataclass(frozen=True)
class TimePlan:
    """Hold the seconds of a step in which every rollout is as long as it may be, so that most steps take less."""

    rollouts: float
    update: float
    num_tokens: int


def plan_time(config: Config, shape: ModelShape, gpu: Gpu, *, num_gpus: int) -> TimePlan:
    """Estimate by the roofline: decoding reads weights and cache once per token, the update computes."""
    plan = plan_memory(config, shape, gpu_memory=gpu.memory)
    stage, limit = config.algorithm.largest_stage, config.rollout.max_response_tokens
    prompt, problems = config.data.max_prompt_tokens, config.rollout.num_problems / num_gpus
    rollouts = 0.0
    if stage.samples:
        together = stage.group_size * problems
        fitting = max(1.0, plan.kv_cache / (plan.kv_token * (prompt + limit / 2))) if plan.kv_cache else together
        batch = min(together, fitting, config.rollout.max_num_seqs)
        read = (plan.base + batch * plan.kv_token * (prompt + limit / 2)) / (gpu.bandwidth * DECODE_EFFICIENCY)
        computed = 2 * shape.parameters * batch / (gpu.tflops * 1e12 * UTILISATION)
        rollouts = limit * max(read, computed) * max(1.0, together / batch)
    rows = round(problems * stage.group_size)
    num_prompts = rows if config.model.layout == "rows" else round(problems)
    tokens = rows * limit + num_prompts * prompt
    flop = shape.training_flop(
        num_tokens=tokens,
        num_visible=rows * num_pairs(prompt, limit, window=prompt + limit),
        num_in_window=rows * num_pairs(prompt, limit, window=shape.window) if shape.num_sliding else None,
        num_trained=rows * limit,
    )
    if config.model.gradient_checkpointing:
        flop *= 1.5  # the forward pass is repeated: 2 of 4 operations per weight
    if config.algorithm.any_teacher is not None:
        given = config.teacher_prompt_tokens

        def num_seen(window: int) -> int:
            return rows * num_pairs(given, limit, window=window) + num_prompts * num_pairs(0, given, window=window)

        flop += shape.reading_flop(
            num_tokens=rows * limit + num_prompts * given,
            num_visible=num_seen(given + limit),
            num_in_window=num_seen(shape.window) if shape.num_sliding else None,
            num_read=rows * limit,
        )
    return TimePlan(rollouts, flop / (gpu.tflops * 1e12 * UTILISATION), tokens * num_gpus)
