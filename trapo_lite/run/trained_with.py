"""Compare a run's base and prompt with those that its adapter was trained with, by its newest checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trapo_lite.config.paths import read_object
from trapo_lite.core.errors import ConfigError
from trapo_lite.run.folder import RunFolder, step_folders


def require_as_trained(run: Path, *, name: str, weights: str, prompt: Mapping[str, Any] | None) -> None:
    """Raise ConfigError if base or prompt changed since the run was trained. Without a checkpoint nothing is compared.

    name, weights: of the base, and the fingerprint of its weights; of a model of the hub they are not compared
    prompt: `data.chat.prompt_settings`; None: the user chose another one
    """
    for folder in reversed(step_folders(RunFolder(run).checkpoints)):
        try:
            state = read_object(folder / "state.json")
            break
        except (OSError, ValueError):
            continue
    else:
        return
    before, then = state.get("model", {}).get("weights"), state.get("prompt")
    are_folders = all(isinstance(one, str) and re.fullmatch("[0-9a-f]{16}", one) for one in (before, weights))
    if are_folders and before != weights:
        raise ConfigError(
            f"--run {run}: was trained on other weights than {name} holds now ({before} then, {weights} now), so its "
            "adapter does not fit them; restore the weights, or set model.name to a folder that has them"
        )
    if prompt is None or then is None or then == prompt:
        return
    key, what = ("template", "another prompt")
    if then.get(key) == prompt[key]:
        key, what = "stop_ids", "other tokens that end an answer"
    raise ConfigError(
        f"--run {run}: was trained with {what} than {name} gives now, because its tokenizer or generation config has "
        f"changed; restore them, or set data.prompt_template and data.stop_tokens. Then: {then.get(key)!r}; now: "
        f"{prompt[key]!r}"
    )
