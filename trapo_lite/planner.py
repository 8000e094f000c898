"""The plan of a step, from the configuration alone: no weights, no GPU, no network."""

from trapo_lite.config import Config


def plan_lines(config: Config) -> list[str]:
    """What one step will do, for a person to read before paying for it."""
    algorithm, rollout, optim, train = config.algorithm, config.rollout, config.optim, config.train
    groups = algorithm.micro_groups
    sampled = sum(g.num_rollouts for g in groups if not (g.prefix_ratio == 1.0 and g.help_below is None))
    most = rollout.num_problems * sampled * rollout.max_response_tokens
    lines = [
        f"run       {config.run.folder} (seed {config.run.seed}{', deterministic' if config.run.deterministic else ''})",
        f"model     {config.model.name}, {config.model.dtype}"
        + (", NF4" if config.model.quantize == "nf4" else "")
        + f", LoRA r {config.lora.r}, alpha {config.lora.alpha:g} on "
        + (config.lora.target_modules if isinstance(config.lora.target_modules, str) else "+".join(config.lora.target_modules)),
        f"data      {config.data.train}",
        f"rollouts  {rollout.num_problems} problems x {algorithm.group_size} a step by {rollout.engine}, "
        f"{rollout.schedule}, temperature {rollout.temperature:g}, at most {rollout.max_response_tokens} tokens each",
    ]
    for number, group in enumerate(groups, start=1):
        lines.append(f"  micro-group {number}: {group.num_rollouts} rollout{'s' if group.num_rollouts > 1 else ''}, ")
        if group.prefix_ratio == 0.0 or group.help_below == 0.0:
            lines[-1] += "unguided"
        else:
            when = "always" if group.help_below is None else f"if the mean return is below {group.help_below:.3g}"
            lines[-1] += f"{group.prefix_ratio:.0%} of the expert trace {when}"
    prefix = f"{algorithm.prefix_loss} x {algorithm.prefix_weight:g} on expert tokens" if algorithm.has_prefix_loss else ""
    own = "policy gradient on own tokens" if sampled else ""
    extras = [
        f"{name} x {weight:g}"
        for name, weight in (("entropy", algorithm.entropy_weight), ("KL", algorithm.kl_weight))
        if weight > 0
    ]
    lines += [
        f"loss      {' + '.join(part for part in (prefix, own, *extras) if part)}, normalised by {algorithm.normalizer}",
        f"update    {optim.name}, lr {optim.lr:g} {optim.scheduler}, clip {optim.grad_clip}, "
        f"{train.tokens_per_batch} tokens a forward pass",
        f"length    {train.max_steps} steps, a checkpoint every {train.save_every}, "
        + (f"evaluation every {config.eval.every}" if config.eval.every else "no evaluation on the way"),
        f"at most   {most:,} sampled tokens a step",
    ]
    return lines
