"""Describe the plan of a step from the configuration and the model's config.json: no weights, no GPU."""

import math
import re
from dataclasses import dataclass, replace

import torch

from trapo_lite.config import Config
from trapo_lite.config.algorithm import FirstStageSection, StageSection
from trapo_lite.config.choices import Constant
from trapo_lite.config.over_steps import OverSteps, in_words
from trapo_lite.config.paths import check_name
from trapo_lite.config.rewards import described
from trapo_lite.config.teachers import SolutionTeacher
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.in_words import counted, duration, size_text
from trapo_lite.model.base import model_shape
from trapo_lite.model.layout import check_model
from trapo_lite.model.shape import ModelShape
from trapo_lite.planning.memory import checkpoint_bytes, plan_memory, remedies, shortcoming, tokens_at_once
from trapo_lite.planning.published_sizes import with_published_sizes
from trapo_lite.planning.time import plan_time
from trapo_lite.run.gpus import GIB, GPUS, Gpu

SHARDED = "shard the base over the GPUs (--sharded here, configs/accelerate/fsdp2.yaml to train)"
SERVERS = "rollouts on other GPUs (rollout.engine=server)"


def plan_lines(config: Config) -> list[str]:
    """Return lines on what one step will do, for a person to read before paying for it."""
    model, lora, algorithm, rollout = config.model, config.lora, config.algorithm, config.rollout
    optim, train = config.optim, config.train
    times_drawn = 1 + rollout.replace_uninformative
    again = (
        "" if times_drawn == 1 else f", if every problem is replaced {counted(rollout.replace_uninformative, 'time')}"
    )
    shares = "" if config.data.shares is None else f", shares {', '.join(f'{share:g}' for share in config.data.shares)}"
    sampled = rollout.num_problems * max(stage.num_sampled for stage in algorithm.stages)
    most = sampled * rollout.max_response_tokens * times_drawn
    precision = model.dtype if model.quantize == "none" else f"{model.dtype}, {model.quantize}"
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    lines = [
        f"run       {config.run.folder}, seed {config.run.seed}{', deterministic' if config.run.deterministic else ''}",
        f"model     {model.name}, {precision}, LoRA r {lora.r}, alpha {lora.alpha:g} on {targets}",
        f"data      {', '.join(config.data.sources)}{shares}",
        f"method    {algorithm.name}",
    ]
    for stage in algorithm.stages:
        if algorithm.first_stage is not None:
            lines.append(_stage_title(config, stage))
        lines += _rollout_lines(config, stage)
    if not config.reward.is_math:
        lines.append(f"reward    {described(config.reward.functions)}")
    for number, stage in enumerate(algorithm.stages, start=1):
        of_stage = f"of stage {number}: " if len(algorithm.stages) > 1 else ""
        lines.append(f"loss      {of_stage}{_loss(config, stage)}")
    if algorithm.utility.type != "none":
        lines.append(f"utility   {algorithm.utility.describe()} decides on help and its loss")
    several = f", {optim.updates_per_batch} updates by each step's rollouts" if optim.updates_per_batch > 1 else ""
    lines += [
        f"update    {optim.name}, lr {optim.lr:g} {optim.scheduler}, clip {optim.grad_clip}, "
        f"{train.tokens_per_batch} tokens a forward pass{several}",
        f"length    {counted(train.max_steps, 'step')}, a checkpoint every {train.save_every}, "
        + (f"evaluation every {config.eval.every}" if config.eval.every else "no evaluation on the way"),
        f"at most   {most:,} sampled tokens a step" + again,
    ]
    return lines


def _stage_title(config: Config, stage: StageSection) -> str:
    """Return which steps a stage has, and its learning rate."""
    if isinstance(stage, FirstStageSection):
        lr = config.optim.lr if stage.lr is None else stage.lr
        return f"stage 1   steps 1 to {stage.num_steps}, lr {lr:g}"
    first = config.algorithm.first_stage
    return f"stage 2   from step {first.num_steps + 1 if first else 1}, lr {config.optim.lr:g}"


def _rollout_lines(config: Config, stage: StageSection) -> list[str]:
    """Return what a stage draws in a step, and when each of its micro-groups is guided."""
    rollout = config.rollout
    lines = [
        f"rollouts  {counted(rollout.num_problems, 'problem')} x {stage.group_size} a step{_by(config, stage)}, "
        f"temperature {rollout.temperature:g}, at most {rollout.max_response_tokens} tokens each"
    ]
    sections = stage.schedule if isinstance(stage.schedule, list) else stage.micro_groups
    for index, (group, section) in enumerate(zip(stage.micro_groups, sections, strict=True), start=1):
        lines.append(f"  micro-group {index}: {counted(group.num_rollouts, 'rollout')}, ")
        if group.prefix_ratio == 0.0 or group.help_below == 0.0:
            lines[-1] += "unguided"
        else:
            when = "always" if group.help_below is None else f"if the mean reward is below {group.help_below:.3g}"
            ratios = ", ".join(f"{ratio:.0%}" for ratio in group.drawn_from)
            share = f"one of {ratios}" if ratios else f"{group.prefix_ratio:.0%}"
            if isinstance(section.prefix_ratio, OverSteps):
                share = f"a share of {in_words(section.prefix_ratio)}"
            otherwise = ", otherwise nothing" if group.otherwise == "skip" else ""
            where = " in the prompt" if group.prefix_in == "prompt" else ""
            instead = ", instead of RL" if group.replaces_rl else ""
            lines[-1] += f"{share} of the expert trace{where} {when}{instead}{otherwise}"
    return lines


def _loss(config: Config, stage: StageSection) -> str:
    prefix = ""
    if stage.prefix_loss.type != "none":
        prefix = f"{stage.prefix_loss.describe()} x {in_words(stage.prefix_loss.weight)} on expert tokens"
    own_loss = stage.completion_loss
    times = "" if own_loss.weight == 1.0 else f" x {in_words(own_loss.weight)}"
    own = f"{own_loss.describe()}{times} on own tokens" if stage.samples and own_loss.type != "none" else ""
    teacher = ""
    if isinstance(stage.teacher, SolutionTeacher):
        times = "" if stage.teacher.weight == 1.0 else f" x {stage.teacher.weight:g}"
        teacher = f"{stage.teacher.describe()}{times} on own tokens"
    extras = [
        f"{name} x {weight:g}"
        for name, weight in (("entropy", stage.entropy_weight), ("KL", stage.kl_weight))
        if weight > 0
    ]
    loss = " + ".join(part for part in (prefix, own, teacher, *extras) if part)
    divisor = "each component's number of tokens"
    if isinstance(stage.normalizer, Constant):
        num_tokens = stage.normalizer.num_tokens or config.rollout.max_response_tokens
        divisor = f"{num_tokens} tokens x {counted(config.rollout.num_problems, 'problem')}"
    return f"{loss}, divided by {divisor}"


def _by(config: Config, stage: StageSection) -> str:
    rollout = config.rollout
    if not stage.samples:
        return ", all from the expert"
    servers = f" ({', '.join(rollout.servers)})" if rollout.engine == "server" else ""
    merge = "" if rollout.merge == "never" else f", merge {rollout.merge}"
    return f" by {rollout.engine}{servers}, {rollout.schedule}{merge}"


@dataclass(frozen=True)
class MemoryReport:
    """A MemoryReport says what a step takes and whether that fits.

    lines:   for a person to read
    problem: what does not fit the GPU, or None
    cure:    what to change then
    """

    lines: list[str]
    problem: str | None
    cure: str


def memory_report(
    config: Config, *, gpu_name: str | None, gpu_memory: float | None, num_gpus: int, is_sharded: bool = False
) -> MemoryReport:
    """Return lines on a step's memory on each GPU and its longest time, and on what to change if it does not fit.

    gpu_memory: bytes; None: the named GPU's, or 24 GiB.  is_sharded: the base is sharded over the GPUs (FSDP2).
    Raises ConfigError for a GPU of unknown speed.
    """
    if is_sharded and config.model.quantize != "none":
        raise ConfigError("--sharded: nf4 weights are not sharded; set model.quantize=none, or leave it out")
    gpu, is_assumed = _gpu(gpu_name, gpu_memory)
    check_name(config.model.name)
    with with_published_sizes(config) as readable:
        is_published = readable is not config
        config = check_model(readable).written_out(readable)
        shape = model_shape(config)
    num_shards = num_gpus if is_sharded else 1
    plan = plan_memory(config, shape, gpu_memory=gpu.memory, num_shards=num_shards)
    share = f", a share of 1/{num_shards}" if num_shards > 1 else ""
    published = ", by the sizes that its publisher gives" if is_published else ""
    parts = [
        ("base", plan.base, f"{_count(shape.parameters)} parameters{share}{published}"),
        *([("gathered", plan.gathered, "embeddings, head and two layers, whole")] if num_shards > 1 else []),
        ("adapter", plan.adapter, f"{shape.adapter_parameters / 1e6:.1f} million, weights and gradients in float32"),
        ("optimizer", plan.optimizer, config.optim.name),
        ("activations", plan.activations, f"of {tokens_at_once(config)} tokens a forward pass"),
        ("one layer", plan.layer, "in its backward pass"),
        ("or the head", plan.head, "hidden rows and chunks of logits, if that is more"),
        ("or the step", plan.step, "copies of the gradient, if that is more than all three"),
        ("allocator", plan.fragmentation, "lost between blocks"),
        ("engine", plan.engine_weights, "its copy of the base, and what it needs besides"),
        ("KV cache", plan.kv_cache, f"{plan.kv_cache / plan.kv_token:,.0f} tokens"),
        ("reserve", plan.reserve, "CUDA contexts"),
    ]
    parts += [
        ("in updates", plan.during_update, "" if plan.keeps_cache else "without the KV cache"),
        ("in rollouts", plan.during_rollouts, ""),
    ]
    reason = "no card is named; name yours by --gpu"
    if not torch.cuda.is_available():
        reason = "there is no card here; name that of the run by --gpu"
    assumed = f" (assumed, because {reason})" if is_assumed else ""
    lines = [f"each of {num_gpus} x {gpu.name}, {gpu.memory / GIB:.1f} GiB{assumed}; estimates:"]
    lines += [f"  {name:<12}{size_text(size):>11}  {note}".rstrip() for name, size, note in parts]
    times = plan_time(config, shape, gpu, num_gpus=num_gpus)
    num_rollouts = config.rollout.num_problems * config.algorithm.largest_stage.group_size
    lines.append(
        f"a step takes at most {math.ceil(times.rollouts)} s of rollouts and {math.ceil(times.update)} s of updating, "
        f"if each of its {counted(num_rollouts, 'rollout')} is as long as it may be ({times.num_tokens:,} tokens in "
        "all of them together, prompts included)"
    )
    seconds = config.train.max_steps * (times.rollouts + times.update)
    lines.append(
        f"the run ({counted(config.train.max_steps, 'step')}) takes at most {duration(seconds)}, evaluations left "
        f"out; checkpoints take {size_text(checkpoint_bytes(config, shape.adapter_parameters))} on disk"
    )
    problem = shortcoming(config, shape, gpu_memory=gpu.memory, num_shards=num_shards)
    if problem is None:
        return MemoryReport([*lines, "fits"], None, "")
    cure = _cure(config, shape, gpu_memory=gpu.memory, num_shards=num_shards, num_gpus=num_gpus)
    return MemoryReport([*lines, f"does not fit: {problem}", f"change: {cure}"], problem, cure)


def _count(number: int) -> str:
    """Return a number of parameters in billions, or in millions where there are few."""
    return f"{number / 1e9:.2f} billion" if number >= 1e8 else f"{number / 1e6:.2f} million"


def _cure(config: Config, shape: ModelShape, *, gpu_memory: float, num_shards: int, num_gpus: int) -> str:
    """Return what makes it fit: options on this card, else the base over all cards, rollouts on others, or both."""
    elsewhere = config.rollout.model_copy(update={"engine": "server"})
    on_servers = config.model_copy(update={"rollout": elsewhere})
    attempts = [(config, num_shards, [])]
    if num_shards < num_gpus and config.model.quantize == "none":
        attempts.append((config, num_gpus, [SHARDED]))
    if config.rollout.engine != "server":
        attempts += [(on_servers, shards, [*notes, SERVERS]) for _, shards, notes in attempts[::-1]]
    for changed, shards, notes in attempts:
        fits = shortcoming(changed, shape, gpu_memory=gpu_memory, num_shards=shards) is None
        options = remedies(changed, shape, gpu_memory=gpu_memory, num_shards=shards)
        if fits or options:
            return ", ".join([*notes, " ".join(options)] if options else notes)
    return "nothing here helps: take a smaller model, larger GPUs or more of them"


def parse_memory(text: str) -> float:
    """Return the bytes of "23.5GB" or "80" (GiB). CUDA gives out a little less than is printed on a card.

    >>> parse_memory("24GB") == parse_memory("24") == 24 * 2**30
    True
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"--gpu-memory: found {text!r}; write 24GB, say")
    return float(match[1]) * GIB


def _gpu(name: str | None, memory: float | None) -> tuple[Gpu, bool]:
    """Return the card, and whether it is a guess. A guess is a card with that much memory.

    name: as in the table, or its end, such as "3090".
    """
    if name is None:  # a card sold with 24 GB gives out 23.5 or 22.2
        enough = [gpu for gpu in GPUS.values() if memory is not None and gpu.memory >= 0.92 * memory]
        gpu = min(enough, key=lambda gpu: (gpu.memory, gpu.tflops)) if enough else GPUS["RTX 4090"]
    else:
        by_spelling = {_squeezed(known): gpu for known, gpu in GPUS.items()}
        ending = [gpu for known, gpu in by_spelling.items() if known.endswith(_squeezed(name))]
        match = by_spelling.get(_squeezed(name)) or (ending[0] if len(ending) == 1 else None)
        if match is None:
            raise ConfigError(
                f"--gpu: found {name!r}; known are {', '.join(GPUS)}; for another, take one like it and --gpu-memory"
            )
        gpu = match
    return gpu if memory is None else replace(gpu, memory=memory), name is None


def _squeezed(name: str) -> str:
    return name.replace(" ", "").casefold()
