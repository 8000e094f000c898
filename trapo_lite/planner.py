"""The plan of a step, from the configuration alone: no weights, no GPU, no network."""

from trapo_lite.config import Config


def plan_lines(config: Config) -> list[str]:
    """What one step will do, for a person to read before paying for it."""
    model, lora, algorithm, rollout = config.model, config.lora, config.algorithm, config.rollout
    optim, train = config.optim, config.train
    groups = algorithm.micro_groups
    sampled = sum(g.num_rollouts for g in groups if not (g.prefix_ratio == 1.0 and g.help_below is None))
    most = rollout.num_problems * sampled * rollout.max_response_tokens
    precision = model.dtype if model.quantize == "none" else f"{model.dtype}, {model.quantize}"
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    lines = [
        f"run       {config.run.folder}, seed {config.run.seed}{', deterministic' if config.run.deterministic else ''}",
        f"model     {model.name}, {precision}, LoRA r {lora.r}, alpha {lora.alpha:g} on {targets}",
        f"data      {config.data.train}",
        f"rollouts  {rollout.num_problems} problems x {algorithm.group_size} a step{_by(config)}, "
        f"temperature {rollout.temperature:g}, at most {rollout.max_response_tokens} tokens each",
    ]
    for number, group in enumerate(groups, start=1):
        lines.append(f"  micro-group {number}: {group.num_rollouts} rollout{'s' if group.num_rollouts > 1 else ''}, ")
        if group.prefix_ratio == 0.0 or group.help_below == 0.0:
            lines[-1] += "unguided"
        else:
            when = "always" if group.help_below is None else f"if the mean return is below {group.help_below:.3g}"
            lines[-1] += f"{group.prefix_ratio:.0%} of the expert trace {when}"
    prefix = ""
    if algorithm.has_prefix_loss:
        prefix = f"{algorithm.prefix_loss} x {algorithm.prefix_weight:g} on expert tokens"
    own = "policy gradient on own tokens" if sampled else ""
    extras = [
        f"{name} x {weight:g}"
        for name, weight in (("entropy", algorithm.entropy_weight), ("KL", algorithm.kl_weight))
        if weight > 0
    ]
    loss = " + ".join(part for part in (prefix, own, *extras) if part)
    divisor = "each component's number of tokens"
    if algorithm.normalizer == "constant":
        divisor = (
            f"{algorithm.normalizer_tokens or rollout.max_response_tokens} tokens x {rollout.num_problems} problems"
        )
    lines += [
        f"loss      {loss}, divided by {divisor}",
        f"update    {optim.name}, lr {optim.lr:g} {optim.scheduler}, clip {optim.grad_clip}, "
        f"{train.tokens_per_batch} tokens a forward pass",
        f"length    {train.max_steps} steps, a checkpoint every {train.save_every}, "
        + (f"evaluation every {config.eval.every}" if config.eval.every else "no evaluation on the way"),
        f"at most   {most:,} sampled tokens a step",
    ]
    return lines


def _by(config: Config) -> str:
    rollout = config.rollout
    if not config.algorithm.samples:
        return ", all from the expert"
    servers = f" ({', '.join(rollout.servers)})" if rollout.engine == "server" else ""
    merge = "" if rollout.merge == "never" else f", merge {rollout.merge}"
    return f" by {rollout.engine}{servers}, {rollout.schedule}{merge}"
