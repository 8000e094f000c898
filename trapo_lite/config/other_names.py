"""Name the options that users know from other trainers (TRL, verl, PEFT, Axolotl) by other names."""

OTHER_NAMES = {
    "model_name_or_path": "model.name",
    "base_model": "model.name",
    "torch_dtype": "model.dtype",
    "load_in_4bit": "model.quantize=nf4",
    "attn_implementation": "model.attention",
    "rank": "lora.r",
    "lora_r": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_target_modules": "lora.target_modules",
    "dataset_name": "data.train",
    "train_files": "data.train",
    "val_files": "eval.data",
    "chat_template": "data.prompt_template: chat",
    "system_prompt": "data.system_text, beside data.prompt_template: chat",
    "chat_template_kwargs": "data.template_options",
    "stop": "data.stop_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "max_completion_length": "rollout.max_response_tokens",
    "max_response_length": "rollout.max_response_tokens",
    "max_new_tokens": "rollout.max_response_tokens",
    "vllm_gpu_memory_utilization": "rollout.gpu_memory_fraction",
    "gpu_memory_utilization": "rollout.gpu_memory_fraction",
    "train_batch_size": "rollout.num_problems",
    "per_device_train_batch_size": "train.tokens_per_batch, which cuts a step's rollouts into passes",
    "ppo_micro_batch_size_per_gpu": "train.tokens_per_batch, which cuts a step's rollouts into passes",
    "learning_rate": "optim.lr",
    "optimizer": "optim.name",
    "lr_scheduler_type": "optim.scheduler",
    "max_grad_norm": "optim.grad_clip",
    "num_iterations": "optim.updates_per_batch",
    "ppo_epochs": "optim.updates_per_batch",
    "num_train_epochs": "train.max_steps, of rollout.num_problems each",
    "total_epochs": "train.max_steps, of rollout.num_problems each",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep_checkpoints",
    "eval_steps": "eval.every",
    "test_freq": "eval.every",
    "beta": "algorithm.kl_weight",
    "mask_truncated_completions": "rollout.truncated: masked",
    "reward_funcs": "reward.functions",
    "reward_weights": "the weight of each function in reward.functions",
    "custom_reward_function": "reward.functions",
    "kl_loss_coef": "algorithm.kl_weight",
    "entropy_coeff": "algorithm.entropy_weight",
    "output_dir": "run.dir and run.name",
    "run_name": "run.name",
    "report_to": "run.trackers",
}
"""Maps a name to what it is called here."""


def own_name(word: str) -> str | None:
    """Return what another trainer's option is called here.

    >>> own_name("learning_rate"), own_name("lr")
    ('optim.lr', None)
    """
    return OTHER_NAMES.get(word.lower().replace("-", "_"))
