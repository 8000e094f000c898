"""Define every option with its default, its bounds and what it may be combined with."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trapo_lite.config.fields import (
    Beta,
    NonNegative,
    Number,
    PathText,
    Positive,
    PositiveInt,
    Section,
    Temperature,
    TextAsList,
    TextOrList,
    Trackers,
    Whole,
)
from trapo_lite.config.rewards import Function, Math, RewardFunctions, require_consistent


class ModelSection(Section):
    """A ModelSection says which base is loaded, and how."""

    name: PathText = Field(default="Qwen/Qwen2.5-Math-7B", min_length=1)
    """Folder or hub id of a causal language model."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4: QLoRA by bitsandbytes, with double quantisation."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the frozen base's weights; the adapter's master weights are always float32."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """auto: FlexAttention on CUDA, SDPA chain by chain (unbranched parts of the packed tree) elsewhere."""
    layout: Literal["auto", "tree", "rows"] = "auto"
    """tree: a problem's rollouts run as one packed tree. rows: each runs by itself, through the model's own forward
    pass. auto: the tree if it reaches every layer of the model's class and the packing check passes, otherwise rows."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of the decoder's layers, and compute the rest of a layer again in the backward pass."""
    offload_activations: bool = False
    """Keep these inputs in the host's memory; CUDA only."""
    config_overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields of the model's config.json to replace, in trainer, engine and export."""

    def idle_keys(self) -> dict[str, str]:
        return {"attention": "model.layout: tree, whose attention it is"} if self.layout == "rows" else {}

    @field_validator("config_overrides")
    @classmethod
    def _is_finite(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(overrides, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise ValueError(f"holds what a config.json cannot ({error}); give finite numbers, texts, lists") from None
        return overrides

    @model_validator(mode="after")
    def _offloads_little(self) -> "ModelSection":
        if self.offload_activations and not self.gradient_checkpointing:
            raise ValueError(
                "offload_activations: without gradient_checkpointing the frozen weights would be moved too; set "
                "model.gradient_checkpointing: true"
            )
        return self


class LoraSection(Section):
    """A LoraSection describes the adapter that is trained."""

    r: Annotated[Whole, Field(ge=1, le=512)] = 64
    """Rank; vLLM serves at most 512."""
    alpha: Positive = 32.0
    """The adapter's update is scaled by alpha / r."""
    target_modules: TextOrList = "all-linear"
    init_from: PathText | None = None
    """Folder of a PEFT adapter to start from, such as an SFT run's."""

    @model_validator(mode="after")
    def _servable(self) -> "LoraSection":
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            raise ValueError(
                f"target_modules: found {self.target_modules!r}; give all-linear or a list of module names"
            )
        for name in self.target_modules if isinstance(self.target_modules, list) else ():
            if "lm_head" in name or "embed" in name:
                raise ValueError(
                    f"target_modules: {name!r} cannot be served by vLLM as an adapter; name linear layers of the "
                    "decoder (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj) or use all-linear"
                )
        return self


class RolloutSection(Section):
    """A RolloutSection says how rollouts are sampled, and by which engine."""

    engine: Literal["vllm", "server", "transformers"] = "vllm"
    servers: TextAsList = Field(default_factory=list)
    """Base urls of `vllm serve` endpoints (http://host:8000) for `engine: server`, all with the same model."""
    server_adapter_dir: PathText | None = None
    """Folder of the adapter, under the same path here and on the servers; None: in this machine's memory."""
    schedule: Literal["barrier", "pipelined", "speculative"] = "pipelined"
    """When micro-groups are started; the rollouts are the same (rollout/sampler.py)."""
    merge: Literal["never", "in_place"] = "never"
    """in_place: the engine adds the adapter to its base's weights in float32 and rounds once; the next publish restores
    the same bits."""
    colocate: bool = True
    """During an update, give the memory of the engine's cache to a trainer on the same card."""
    num_problems: PositiveInt = 32
    """Problems of a step, over all processes."""
    max_response_tokens: PositiveInt = 8192
    """Most tokens of expert prefix and completion together."""
    truncated: Literal["graded", "zero", "masked"] = "graded"
    """Completions cut at the limit. graded: rewarded like others. zero: their reward is 0. masked: they count in the
    mean reward of their group, but are not trained."""
    replace_uninformative: Annotated[Whole, Field(ge=0)] = 0
    """How often a problem of a step may be replaced by another one because nothing is learned from its rollouts: all
    their rewards are equal, and none has an expert prefix to train."""
    temperature: Temperature = 1.0
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[Whole, Field(ge=0)] = 0
    mismatch_alarm: Positive = 0.1
    """Mean |log pi(trainer) - log pi(sampler)| of a step, in nats, above which a warning is printed."""
    gpu_memory_fraction: Annotated[Number, Field(gt=0.0, lt=1.0)] = 0.45
    max_num_seqs: PositiveInt = 256
    kv_cache_gib: Positive = 1.0
    """Size of the KV cache on the CPU; on CUDA gpu_memory_fraction decides."""
    num_threads: PositiveInt | None = None
    """Threads of vLLM on the CPU; None: 1 for models narrower than 512 or with run.deterministic, otherwise the
    cores that reward.num_workers leaves."""
    probe_tokens: Annotated[Whole, Field(ge=512)] = 512
    """Tokens of the parity probe after each publish."""
    base_tolerance: Positive | None = None
    """Largest accepted difference of engine and trainer without an adapter, as a share of the standard deviation of the
    log-probs. None: 0.1 in bfloat16, 0.003 in float32. A larger difference is an error at the start of the run."""

    def idle_keys(self) -> dict[str, str]:
        uses_servers = self.engine == "server"
        conditions = {"merge": "vllm"} if uses_servers else {"servers": "server", "server_adapter_dir": "server"}
        return {key: f"rollout.engine: {engine}" for key, engine in conditions.items()}

    @model_validator(mode="after")
    def _has_servers(self) -> "RolloutSection":
        if self.engine == "server" and not self.servers:
            raise ValueError("servers: rollout.engine is server but no endpoint is named; set it to [http://host:8000]")
        for number, url in enumerate(self.servers, start=1):
            parsed = re.fullmatch(r"https?://(?:[^/?#@\s:\[]+|\[[0-9a-fA-F:]+\])(?::(\d+))?(/v1)?/?", url)
            if parsed is None or int(parsed[1] or 80) > 65535:
                raise ValueError(
                    f"servers: number {number} is not a base url; give http://host:port or https://host:port, "
                    "without user, path or key (the key is TRAPO_LITE_SERVER_API_KEY's)"
                )
        if len(set(self.servers)) < len(self.servers):
            raise ValueError("servers: one of them is named twice; name each once")
        return self


class RewardSection(Section):
    """A RewardSection lists the reward functions, and limits the processes that call them."""

    functions: RewardFunctions = Field(default_factory=lambda: [Math()])
    """Parts of the reward, each with a type (config/rewards.py). The first decides what is correct: from 1 on."""
    num_workers: PositiveInt = 2
    deadline_seconds: Positive = 5.0
    """Most seconds of one call; then its process is killed."""
    memory_mb: Annotated[Whole, Field(ge=256)] = 2048
    """Memory of a process; where it calls functions of your own, what it may take beside what they import."""
    require_box: bool = False
    """Whether math takes only a complete \\boxed{...} as an answer."""

    @property
    def is_math(self) -> bool:
        """Return whether math alone makes the reward, as without this section."""
        return [function.type for function in self.functions] == ["math"]

    @property
    def needs_answer(self) -> bool:
        """Return whether every row must have an answer to compare with."""
        return any(function.needs_answer for function in self.functions)

    @property
    def own_functions(self) -> list[Function]:
        return [function for function in self.functions if isinstance(function, Function)]

    @property
    def for_benchmarks(self) -> "RewardSection":
        """Return what grades benchmarks of problems with a mathematical answer: math alone."""
        return self.model_copy(update={"functions": [Math()]})

    def idle_keys(self) -> dict[str, str]:
        has_math = any(isinstance(function, Math) for function in self.functions)
        return {} if has_math else {"require_box": "a function of type math in reward.functions"}

    @model_validator(mode="after")
    def _consistent(self) -> "RewardSection":
        require_consistent(self.functions)
        return self


class OptimSection(Section):
    """An OptimSection configures the optimizer and its learning rate."""

    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "sgd"] = "adamw"
    """8bit: bitsandbytes, a quarter of the state's size; paged: CUDA may also move the state to the host's memory."""
    lr: Positive = 2e-5
    weight_decay: NonNegative = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    grad_clip: Positive | None = 1.0
    scheduler: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: Annotated[Whole, Field(ge=0)] = 0
    updates_per_batch: PositiveInt = 1

    def idle_keys(self) -> dict[str, str]:
        return {"betas": "an optimizer of the Adam family"} if self.name == "sgd" else {}


class TrainSection(Section):
    """A TrainSection says how long a run is, what one pass holds, and what is checked and saved."""

    max_steps: PositiveInt = 500
    tokens_per_batch: PositiveInt = 32768
    """Token budget of one forward pass; larger trees are split along their branches."""
    check_memory: bool = True
    """Whether a run that the plan says does not fit the GPU is an error."""
    check_packing: bool = True
    """Whether the first step compares a small packed tree with the same rollouts as rows. If they differ, model.layout:
    auto takes rows, and tree ends with an error."""
    save_every: PositiveInt = 50
    keep_checkpoints: PositiveInt = 3


class EvalSection(Section):
    """An EvalSection configures evaluations during training."""

    every: Annotated[Whole, Field(ge=0)] = 0
    """Steps between evaluations; 0: none."""
    data: PathText | None = None
    """Problems to evaluate on, in any form that data.train accepts. Expert solutions in it give `eval/expert_loss`."""
    num_problems: PositiveInt | None = None
    """How many of the first problems are used; None: all."""
    num_samples: PositiveInt = 1
    """Independent samples per problem."""
    temperature: Temperature = 0.6
    max_response_tokens: PositiveInt | None = None
    """Most tokens of an answer; None: rollout.max_response_tokens."""

    @model_validator(mode="after")
    def _has_data(self) -> "EvalSection":
        if self.every > 0 and self.data is None:
            raise ValueError("data: eval.every is set but there is nothing to evaluate on; set eval.data to a file")
        return self

    def is_due(self, step: int) -> bool:
        """Return whether to evaluate after so many updates."""
        return self.every > 0 and step % self.every == 0


class RunSection(Section):
    """A RunSection names the run's folder and says how reproducible and where visible the run is."""

    name: str = "run"
    dir: PathText = "runs"
    """The run's folder is dir/name."""
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0
    deterministic: bool = False
    """Use verdicts in a fixed order, so that an interrupted and resumed run is bit for bit an uninterrupted one."""
    num_threads: PositiveInt | None = None
    """Torch threads of the trainer on the CPU; None: 1 for models narrower than 512 or with deterministic, otherwise
    torch chooses."""
    trackers: Trackers = Field(default_factory=lambda: ["tensorboard"])
    """Where metrics and some rollouts go besides the run's folder: tensorboard, wandb, trackio; []: nowhere."""
    project: str = "trapo_lite"
    """Name of the project at wandb and trackio; the run's name there is run.name."""

    def idle_keys(self) -> dict[str, str]:
        has_projects = "wandb" in self.trackers or "trackio" in self.trackers
        return {} if has_projects else {"project": "wandb or trackio in run.trackers"}

    @field_validator("trackers")
    @classmethod
    def _names_each_once(cls, trackers: list[str]) -> list[str]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("one of them is named twice; name each once")
        return trackers

    @field_validator("project")
    @classmethod
    def _is_taken_by_services(cls, project: str) -> str:
        if not 0 < len(project) <= 128 or not project.isprintable() or any(mark in project for mark in "/\\#?%:"):
            raise ValueError(f"found {project!r:.60}; use 1 to 128 characters, none of them / \\ # ? % :")
        return project

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
            raise ValueError(f"found {name!r}; use letters, digits, '_', '-' and '.', and do not begin with '.'")
        return name

    @property
    def folder(self) -> Path:
        return Path(self.dir) / self.name
