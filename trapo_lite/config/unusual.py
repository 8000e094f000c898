"""Warn of values that are allowed and rarely meant."""

from trapo_lite.config.config import Config

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
    return [f"warning: {line}" for line in lines]
