"""Make the adapter's optimizer, compute its learning rate, and take its step."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trapo_lite.config import Config, OptimSection
from trapo_lite.config.algorithm import FirstStageSection
from trapo_lite.core.errors import UpdateError
from trapo_lite.model.policy import Policy


def make_optimizer(section: OptimSection, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of the adapter; `apply_gradient` sets its learning rate before every step."""
    if section.name == "sgd":
        return torch.optim.SGD(parameters, lr=section.lr, weight_decay=section.weight_decay)
    make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    if section.name != "adamw":
        import bitsandbytes

        classes = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}
        make = getattr(bitsandbytes.optim, classes[section.name])
    return make(parameters, lr=section.lr, betas=section.betas, weight_decay=section.weight_decay)


def learning_rate(section: OptimSection, *, step: int, max_steps: int) -> float:
    """Return the learning rate of update `step`, counted from 0.

    It rises linearly during warm-up, then stays constant or falls to 0 at `max_steps`.

    >>> section = OptimSection(lr=1.0, warmup_steps=2, scheduler="linear")
    >>> [learning_rate(section, step=step, max_steps=6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < section.warmup_steps:
        return section.lr * (step + 1) / section.warmup_steps
    progress = (step - section.warmup_steps) / (max_steps - section.warmup_steps)
    factor = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return section.lr * factor[section.scheduler]


def learning_rate_at(config: Config, step: int) -> float:
    """Return the learning rate of update `step` of a run, of which each stage has its own warm-up and decay."""
    steps = config.algorithm.steps_of_stage(step, max_steps=config.train.max_steps)
    stage, optim = config.algorithm.stage_at(step), config.optim
    if isinstance(stage, FirstStageSection) and stage.lr is not None:
        optim = optim.model_copy(update={"lr": stage.lr})
    return learning_rate(optim, step=step - steps.start, max_steps=len(steps))


def apply_gradient(
    policy: Policy, optimizer: torch.optim.Optimizer, gradient: Tensor, *, lr: float, grad_clip: float | None
) -> float:
    """Clip the summed gradient to norm `grad_clip`, take one optimizer step and return the norm before clipping."""
    norm = gradient.norm()
    if not torch.isfinite(norm):
        raise UpdateError(
            f"update: the gradient's norm is {norm.item()}; lower optim.lr, or check mismatch/abs in metrics.jsonl"
        )
    if grad_clip is not None:
        gradient = gradient * (grad_clip / (norm + 1e-6)).clamp(max=1.0)
    sizes = [parameter.numel() for parameter in policy.adapter.parameters]
    for parameter, part in zip(policy.adapter.parameters, gradient.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return norm.item()
