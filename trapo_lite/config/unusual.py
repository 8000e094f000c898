"""Warn of values that are allowed and rarely meant."""

from collections.abc import Iterator

from trapo_lite.config.config import Config
from trapo_lite.config.over_steps import OverSteps

HIGH_LR = 1e-2


def unusual_lines(config: Config) -> list[str]:
    """Return a warning, with what to change, for each value that is rarely meant."""
    steps, lines = config.train.max_steps, []
    if config.optim.lr > HIGH_LR:
        lines.append(f"optim.lr: {config.optim.lr:g} is high, adapters are trained with 1e-5 to 1e-3; lower it")
    sources = config.data.sources
    if twice := next((source for source in sources if sources.count(source) > 1), None):
        lines.append(f"data.train: names {twice} twice, so its problems are drawn more often; name it once")
    if config.train.save_every > steps and "save_every" in config.train.model_fields_set:
        lines.append(
            f"train.save_every: {config.train.save_every} is beyond train.max_steps ({steps}), so a run that is killed "
            "begins again; lower it"
        )
    if config.eval.every > steps:
        lines.append(
            f"eval.every: {config.eval.every} is beyond train.max_steps ({steps}), so nothing is evaluated; lower it"
        )
    plain = any(stage.samples and stage.completion_loss.type == "policy_gradient" for stage in config.algorithm.stages)
    if config.optim.updates_per_batch > 1 and plain:
        lines.append(
            f"optim.updates_per_batch: {config.optim.updates_per_batch} updates by the same rollouts, and "
            "algorithm.completion_loss: policy_gradient has no bound on how far they go; choose ppo_clip or cispo"
        )
    lines += _unfinished_courses(config)
    return [f"warning: {line}" for line in lines]


def _unfinished_courses(config: Config) -> Iterator[str]:
    """Yield a line for each weight or ratio whose course over the steps ends after its stage."""
    algorithm, max_steps = config.algorithm, config.train.max_steps
    first_steps = [0] if algorithm.first_stage is None else [0, algorithm.first_stage.num_steps]
    for first_step in first_steps:
        stage, name = algorithm.stage_at(first_step), "algorithm"
        num_steps = len(algorithm.steps_of_stage(first_step, max_steps=max_steps))
        if stage is algorithm.first_stage:
            name += ".first_stage"
        courses = {f"{key}.weight": getattr(stage, key).weight for key in ("prefix_loss", "completion_loss")}
        sections = [] if isinstance(stage.schedule, str) else stage.schedule
        courses |= {f"schedule[{index}].prefix_ratio": group.prefix_ratio for index, group in enumerate(sections)}
        for key, course in courses.items():
            if isinstance(course, OverSteps) and course.steps[-1] > num_steps:
                yield (
                    f"{name}.{key}: its course ends after {course.steps[-1]} steps, and the "
                    f"{'run' if len(first_steps) == 1 else 'stage'} has {num_steps}; fit its steps"
                )
