"""Define the whole configuration, and which options of different sections exclude each other."""

from pydantic import model_validator

from trapo_lite.config import plain_yaml
from trapo_lite.config.algorithm import AlgorithmSection
from trapo_lite.config.data import DataSection
from trapo_lite.config.fields import Section
from trapo_lite.config.sections import (
    EvalSection,
    LoraSection,
    ModelSection,
    OptimSection,
    RewardSection,
    RolloutSection,
    RunSection,
    TrainSection,
)


class Config(Section):
    """A Config is the whole configuration of a run; `run.folder/config.yaml` holds it resolved."""

    model: ModelSection = ModelSection()
    lora: LoraSection = LoraSection()
    data: DataSection = DataSection()
    rollout: RolloutSection = RolloutSection()
    reward: RewardSection = RewardSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    run: RunSection = RunSection()

    @property
    def longest_sequence(self) -> int:
        """Return the most tokens of prompt and answer together, in training or evaluation."""
        in_eval = self.eval.max_response_tokens or 0 if self.eval.every > 0 else 0
        return self.data.max_prompt_tokens + max(self.rollout.max_response_tokens, in_eval)

    @property
    def teacher_prompt_tokens(self) -> int:
        """Return the most tokens of a teacher's prompt; 0 without a teacher."""
        teacher = self.algorithm.any_teacher
        if teacher is None:
            return 0
        if teacher.max_prompt_tokens is not None:
            return teacher.max_prompt_tokens
        num_bytes = len(teacher.instruction.encode())  # a token has at least one
        return self.data.max_prompt_tokens + self.rollout.max_response_tokens + num_bytes

    @property
    def longest_computed(self) -> int:
        """Return the most tokens of a sequence in the trainer: `longest_sequence`, or what the teacher reads.

        The engine never sees the teacher's prompts.
        """
        return max(self.longest_sequence, self.teacher_prompt_tokens + self.rollout.max_response_tokens)

    @property
    def longest_in_words(self) -> str:
        """Return which options give `longest_computed`, with their values and which of these are defaults.

        >>> Config().longest_in_words
        'data.max_prompt_tokens (1024, the default) + rollout.max_response_tokens (8192, the default): 9216 tokens'
        """
        response = "rollout.max_response_tokens"
        if self.longest_computed > self.longest_sequence:
            of_teacher = self.algorithm.any_teacher
            default = ", the default" if of_teacher is None or of_teacher.max_prompt_tokens is None else ""
            teacher = f"algorithm.teacher.max_prompt_tokens ({self.teacher_prompt_tokens}{default})"
            return f"{teacher} + {self._spelt(response)}: {self.longest_computed} tokens"
        if self.longest_sequence > self.data.max_prompt_tokens + self.rollout.max_response_tokens:
            response = "eval.max_response_tokens"
        return f"{self._spelt('data.max_prompt_tokens')} + {self._spelt(response)}: {self.longest_sequence} tokens"

    def _spelt(self, name: str) -> str:
        section, _, key = name.partition(".")
        options = getattr(self, section)
        return f"{name} ({getattr(options, key)}{'' if key in options.model_fields_set else ', the default'})"

    @property
    def uses_engine(self) -> bool:
        """Return whether anything is sampled: rollouts, or answers in evaluations."""
        return self.algorithm.ever_samples or self.eval.every > 0

    @property
    def max_model_len(self) -> int | None:
        """Return the most tokens of a sequence in the engine, or None without one."""
        return self.longest_sequence if self.uses_engine else None

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        algorithm, rollout = self.algorithm, self.rollout
        if rollout.engine == "server" and self.run.deterministic:
            raise ValueError(
                "run.deterministic: servers batch requests as they arrive, so bits may differ; set it to false or "
                "rollout.engine: vllm"
            )
        if 0 in (split := self.data.split(rollout.num_problems)):
            raise ValueError(
                f"data.shares: {self.data.sources[split.index(0)]} would give none of a step's {rollout.num_problems} "
                "problems; raise its share or rollout.num_problems, or leave it out of data.train"
            )
        if rollout.replace_uninformative and not algorithm.ever_samples:
            raise ValueError(
                "rollout.replace_uninformative: the algorithm samples nothing (every micro-group shows whole expert "
                "solutions), so nothing is replaced; set it to 0"
            )
        teaches_always = all(stage.has_teacher for stage in algorithm.stages if stage.samples)
        if rollout.replace_uninformative and teaches_always:
            raise ValueError(
                "rollout.replace_uninformative: a teacher trains every problem, so nothing is replaced; set it to 0"
            )
        for key in ("tis_cap", "sequence_bound"):
            if getattr(algorithm, key) is not None and (rollout.top_p < 1.0 or rollout.top_k > 0):
                raise ValueError(
                    f"algorithm.{key}: importance ratios need the sampler's whole distribution, found top_p "
                    f"{rollout.top_p}, top_k {rollout.top_k}; set top_p: 1 and top_k: 0, or {key}: null"
                )
        if algorithm.completion_loss.needs_updates and self.optim.updates_per_batch == 1:
            raise ValueError(
                f"algorithm.completion_loss: {algorithm.completion_loss.type} cannot act with one update a batch, its "
                "ratio is 1 there; use policy_gradient or set optim.updates_per_batch above 1"
            )
        if algorithm.kl_weight > 0 and self.lora.init_from is not None:
            raise ValueError(
                "algorithm.kl_weight: the reference is the base, not the adapter named by lora.init_from; set "
                "kl_weight: 0, or export the adapter into a merged checkpoint and start from that"
            )
        first = algorithm.first_stage
        if first is not None and first.num_steps >= self.train.max_steps:
            raise ValueError(
                f"algorithm.first_stage.num_steps: {first.num_steps} is not below train.max_steps "
                f"({self.train.max_steps}), so the second stage would never begin; lower it or raise train.max_steps"
            )
        if algorithm.any_teacher is not None and self.lora.init_from is not None:
            raise ValueError(
                "algorithm.teacher: the teacher is the base, not the adapter named by lora.init_from; set teacher: "
                "none, or export the adapter into a merged checkpoint and start from that"
            )
        if self.optim.warmup_steps >= self.train.max_steps:
            raise ValueError(
                f"optim.warmup_steps: {self.optim.warmup_steps} is not below train.max_steps ({self.train.max_steps}); "
                "lower it"
            )
        for stage, step in enumerate((0, first.num_steps) if first else (), start=1):
            num_steps = len(algorithm.steps_of_stage(step, max_steps=self.train.max_steps))
            if self.optim.warmup_steps >= num_steps:
                raise ValueError(
                    f"optim.warmup_steps: {self.optim.warmup_steps} is not below the {num_steps} steps of stage "
                    f"{stage}, and each stage has a warm-up; lower it"
                )
        if self.model.quantize == "nf4" and rollout.merge != "never":
            raise ValueError(
                "rollout.merge: NF4 weights have 16 values to round to, so an adapter would be lost in them; set it to "
                "never"
            )
        if self.model.quantize == "nf4" and self.model.dtype == "float32" and rollout.engine == "vllm":
            raise ValueError("model.dtype: vLLM serves NF4 in bfloat16 only; set model.dtype: bfloat16")
        return self

    def to_yaml(self) -> str:
        """Return the resolved configuration without keys that have no effect; loading it gives this Config again."""
        resolved = self.model_dump(mode="json")
        for name in resolved:
            for key in getattr(self, name).idle_keys():
                del resolved[name][key]
        first = self.algorithm.first_stage
        for key in first.idle_keys() if first else ():
            del resolved["algorithm"]["first_stage"][key]
        return plain_yaml.dump(resolved)
