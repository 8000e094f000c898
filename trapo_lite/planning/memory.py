"""Estimate the memory of each GPU in a step, part by part, and the step's time, by arithmetic. Nothing is loaded.

Weights, adapter and optimizer are exact. What autograd keeps of a decoder layer was counted with saved-tensor hooks
(tests/planning/test_memory_plan.py counts again). `RESERVE` and `FRAGMENTATION` allow for allocator and CUDA contexts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trapo_lite.config import Config
from trapo_lite.core.batching import bucket
from trapo_lite.core.errors import ConfigError
from trapo_lite.engines.vllm.options import round_up_lora_rank
from trapo_lite.model.logprobs import CHUNK_ELEMENTS
from trapo_lite.model.shape import ModelShape
from trapo_lite.run.calling import command
from trapo_lite.run.gpus import GIB

Change = Callable[[Config], Config]

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, a byte per 64 weights, 4 bytes per 256 of these bytes
ENGINE_NF4_BYTES = 0.5 + 4 / 64  # the engine keeps a float32 per 64 weights
RECURRENT_LAYER = 4.5
"""What a layer of a recurrence keeps, as a multiple of `layer_bytes`, in transformers' form in plain torch: 3.8 for
Gated DeltaNet of the sizes of Qwen3.5-4B, 4.4 for Mamba-2 of those of Granite 4 Micro H. Kernels keep less."""
ADAPTER_SLOTS = 2  # the engine's max_loras: the adapter in use and the next one
RESERVE = 1.5 * GIB  # CUDA contexts and kernels of trainer and engine
FRAGMENTATION = 0.1  # share of what is allocated and freed in every batch that the allocator loses
ENGINE_RESERVE = 1.5 * GIB  # the engine's activations and CUDA graphs
OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0}


@dataclass(frozen=True)
class MemoryPlan:
    """Hold the bytes of one GPU, part by part. The engine's are 0 if it is elsewhere.

    base: this GPU's share of the weights;  gathered: the most it holds of the others' shares at a time
    activations: what the forward pass keeps of all layers;  layer: what one layer's backward pass needs in addition
    head: hidden rows, their gradient and chunks of logits, before the backward pass reaches the first layer
    step: what the optimizer's step needs in addition, when these three are freed
    """

    base: float
    gathered: float
    adapter: float
    optimizer: float
    activations: float
    layer: float
    head: float
    step: float
    engine_weights: float
    kv_cache: float
    kv_token: float
    reserve: float
    keeps_cache: bool

    @property
    def trainer(self) -> float:
        """Return the bytes that stay between updates."""
        return self.base + self.adapter + self.optimizer

    @property
    def passing(self) -> float:
        """Return the most bytes of tensors that forward pass, backward pass and step hold at a time."""
        return max(self.activations + max(self.layer, self.head), self.step)

    @property
    def fragmentation(self) -> float:
        return FRAGMENTATION * self.passing

    @property
    def during_update(self) -> float:
        cache = self.kv_cache if self.keeps_cache else 0.0
        passing = self.gathered + self.passing + self.fragmentation
        return self.trainer + passing + self.engine_weights + cache + self.reserve

    @property
    def during_rollouts(self) -> float:
        return self.trainer + self.engine_weights + self.kv_cache + self.reserve


def tokens_at_once(config: Config) -> int:
    """Return the most tokens of a forward pass; `model.layout` auto counts as tree. A rollout is never cut."""
    longest = config.longest_computed
    return longest if config.model.layout == "rows" else bucket(max(config.train.tokens_per_batch, longest))


def plan_memory(config: Config, shape: ModelShape, *, gpu_memory: float, num_shards: int = 1) -> MemoryPlan:
    """Plan one GPU, shared by a trainer process and its engine, unless the engine is on servers.

    num_shards: number of GPUs over which FSDP2 shards the trainer's base; the engine's copy is whole.
    """
    model, rollout = config.model, config.rollout
    width = 4 if model.dtype == "float32" else 2
    is_nf4 = model.quantize == "nf4"
    base = shape.other_parameters * width + shape.linear_parameters * (NF4_BYTES if is_nf4 else width)
    tokens = tokens_at_once(config)
    layer = layer_bytes(shape, rank=config.lora.r, width=width, is_grouped=model.attention != "sdpa")
    in_backward = 2 * width * shape.mlp_width  # gradients of the widest part of a layer
    if not model.gradient_checkpointing:
        kept = layer * (shape.num_layers + (RECURRENT_LAYER - 1) * shape.num_recurrent)
    else:
        in_backward += layer * (RECURRENT_LAYER if shape.num_recurrent else 1.0)  # recomputed
        kept = 0.0 if model.offload_activations else shape.hidden_size * width * shape.num_layers
    engine = rollout.engine if config.uses_engine else "server"
    engine_weights = {"vllm": _vllm_bytes(config, shape, width=width), "transformers": base, "server": 0.0}[engine]
    kv_cache = rollout.gpu_memory_fraction * gpu_memory - engine_weights if engine == "vllm" else 0.0
    return MemoryPlan(
        base=base / num_shards,
        # two layers, one of which is being fetched, and everything outside the layers
        gathered=(shape.other_parameters + 2 * shape.linear_parameters / shape.num_layers) * width
        if num_shards > 1
        else 0.0,
        # master weights and gradient; under autocast also a copy in bfloat16
        adapter=shape.adapter_parameters * (8 + (2 if width == 2 else 0)),
        optimizer=shape.adapter_parameters * OPTIMIZER_BYTES[config.optim.name],
        activations=tokens * kept,
        layer=tokens * in_backward,
        head=head_bytes(
            shape,
            tokens=tokens,
            width=width,
            is_whole=model.layout == "rows" and shape.has_head_bias,
            has_teacher=any(stage.teacher.needs_vocabulary for stage in config.algorithm.stages),
        ),
        # the flattened gradient, its clipped copy, AdamW's square roots
        step=shape.adapter_parameters * 12.0,
        engine_weights=engine_weights,
        kv_cache=max(0.0, kv_cache),
        kv_token=2.0 * (shape.num_layers - shape.num_without_attention) * shape.kv_width * 2,
        reserve=RESERVE,
        keeps_cache=not rollout.colocate,
    )


def _vllm_bytes(config: Config, shape: ModelShape, *, width: int) -> float:
    """Return the bytes of vLLM without its cache: its base, adapter slots on all linear layers, and the rest."""
    linear = ENGINE_NF4_BYTES if config.model.quantize == "nf4" else width
    slots = ADAPTER_SLOTS * shape.lora_width * round_up_lora_rank(config.lora.r) * width
    return shape.other_parameters * width + shape.linear_parameters * linear + slots + ENGINE_RESERVE


def layer_bytes(shape: ModelShape, *, rank: int, width: int, is_grouped: bool) -> float:
    """Return the bytes that autograd keeps of one decoder layer for one token, with norms in float32.

    width: bytes of a number.  is_grouped: attention takes keys and values as they are (FlexAttention); otherwise they
    are repeated to the width of the queries. Each of 7 adapted layers keeps its inner product.
    """
    norms = 12 if width == 2 else 16
    keys = shape.kv_width if is_grouped else shape.attention_width
    attention = 3 * shape.attention_width + 2 * keys  # queries, output, output in the order of tokens, then k and v
    return norms * shape.hidden_size + width * (attention + 4 * shape.mlp_width + 7 * rank)


def head_bytes(shape: ModelShape, *, tokens: int, width: int, is_whole: bool, has_teacher: bool = False) -> float:
    """Return the most bytes of hidden rows and logits.

    is_whole: the logits of a row are kept, not computed in chunks.   has_teacher: a teacher's rows are kept too

    A whole logit takes 16 bytes: four float32 numbers at a time of itself, its log-prob, its probability, their product
    and gradients (counted in tests/planning/test_memory_plan.py).
    """
    if is_whole:
        logit = 24.0 if has_teacher else 16.0  # the teacher's log-prob and the difference
        return tokens * (2.0 * shape.hidden_size * width + shape.vocab_size * logit)
    return (3.0 if has_teacher else 2.0) * tokens * shape.hidden_size * width + CHUNK_ELEMENTS["cuda"] * (8.0 + width)


def shortcoming(config: Config, shape: ModelShape, *, gpu_memory: float, num_shards: int = 1) -> str | None:
    """Return in one line what does not fit, or None if everything does."""
    plan = plan_memory(config, shape, gpu_memory=gpu_memory, num_shards=num_shards)
    share = config.rollout.gpu_memory_fraction
    if _lacking_in_engine(config, plan) > 0:
        if plan.engine_weights > share * gpu_memory:
            needed = plan.engine_weights / GIB
            return f"the engine: its copy of the base takes {needed:.1f} GiB, it may have {share:.0%} of the card"
        longest = config.longest_sequence
        return (
            f"the engine: {share:.0%} of the card leaves {plan.kv_cache / GIB:.1f} GiB for its cache, one sequence of "
            f"{longest} tokens takes {plan.kv_token * longest / GIB:.1f}"
        )
    for stage, needed in (("the update", plan.during_update), ("rollouts", plan.during_rollouts)):
        if needed > gpu_memory:
            return f"{stage}: {needed / GIB:.1f} GiB of {gpu_memory / GIB:.1f}"
    return None


def lacking(config: Config, shape: ModelShape, *, gpu_memory: float, num_shards: int = 1) -> float:
    """Return the bytes missing for the update, the rollouts and the engine's cache together; 0 if everything fits."""
    plan = plan_memory(config, shape, gpu_memory=gpu_memory, num_shards=num_shards)
    shortages = (plan.during_update - gpu_memory, plan.during_rollouts - gpu_memory, _lacking_in_engine(config, plan))
    return sum(max(0.0, shortage) for shortage in shortages)


def _lacking_in_engine(config: Config, plan: MemoryPlan) -> float:
    """Return the bytes missing for one sequence."""
    has_cache = plan.engine_weights > 0 and config.rollout.engine == "vllm"
    return plan.kv_token * config.longest_sequence - plan.kv_cache if has_cache else 0.0


def require_fits(config: Config, shape: ModelShape, *, gpu_memory: float, num_shards: int = 1) -> None:
    """Raise ConfigError, with what to change, if the plan does not fit a GPU with `gpu_memory` bytes."""
    problem = shortcoming(config, shape, gpu_memory=gpu_memory, num_shards=num_shards)
    if problem is not None:
        cures = remedies(config, shape, gpu_memory=gpu_memory, num_shards=num_shards) or [
            "a smaller model or a larger GPU"
        ]
        raise ConfigError(
            f"this does not fit the GPU, by estimate ({problem}); change {' '.join(cures)}, or try it all the same "
            f"with train.check_memory=false ({command('plan')} shows the parts)"
        )


def remedies(config: Config, shape: ModelShape, *, gpu_memory: float, num_shards: int = 1) -> list[str]:
    """Return options that together make it fit, each of them needed. Empty if it fits, or if no option helps."""

    def lacking_with(changes: dict[str, Change]) -> float:
        changed = config
        for change in changes.values():
            changed = change(changed)
        return lacking(changed, shape, gpu_memory=gpu_memory, num_shards=num_shards)

    chosen: dict[str, Change] = {}
    missing = lacking_with(chosen)
    for option, change in _changes(config, is_sharded=num_shards > 1):
        if missing <= 0:
            break
        with_it = lacking_with({**chosen, option: change})
        if with_it < missing:
            chosen[option], missing = change, with_it
    if missing > 0:
        return []
    for option in list(chosen):
        without_it = {name: change for name, change in chosen.items() if name != option}
        if lacking_with(without_it) <= 0:
            chosen = without_it
    return list(chosen)


def _changes(config: Config, *, is_sharded: bool) -> Iterator[tuple[str, Change]]:
    """Yield the changes, cheapest first: those that cost little time, then those that cost more time or exactness."""

    def setting(section: str, **values: object) -> Change:
        return lambda config: config.model_copy(update={section: getattr(config, section).model_copy(update=values)})

    yield "rollout.colocate=true", setting("rollout", colocate=True)
    yield "model.gradient_checkpointing=true", setting("model", gradient_checkpointing=True)
    tokens = config.train.tokens_per_batch
    while tokens // 2 >= config.longest_computed:
        tokens //= 2
        yield f"train.tokens_per_batch={tokens}", setting("train", tokens_per_batch=tokens)
    if config.optim.name == "adamw":
        yield "optim.name=adamw_8bit", setting("optim", name="adamw_8bit")
    for fraction in (0.5, 0.45, 0.4, 0.35, 0.3):
        if fraction < config.rollout.gpu_memory_fraction:
            yield f"rollout.gpu_memory_fraction={fraction}", setting("rollout", gpu_memory_fraction=fraction)
    if config.rollout.merge == "never" and config.model.dtype == "bfloat16" and not is_sharded:  # as NF4 requires
        yield "model.quantize=nf4", setting("model", quantize="nf4")
    yield "model.offload_activations=true", setting("model", offload_activations=True)


def checkpoint_bytes(config: Config, num_parameters: int) -> float:
    """Return the bytes on disk of the checkpoints that a run keeps, and of the one that it writes meanwhile.

    num_parameters: of the adapter
    """
    each = num_parameters * (4 + OPTIMIZER_BYTES[config.optim.name])
    return (config.train.keep_checkpoints + 1.0) * each
