"""What a run is made of: a checkpoint is only good for a run that is made of the same."""

import hashlib
import json
from typing import Any

from trapo_lite.config import Config
from trapo_lite.policy import model_config

# What may differ when a run goes on: how long, how often and where, but not what is computed.
MAY_CHANGE = {
    "train": {"max_steps", "save_every", "keep_checkpoints"},
    "eval": {"every", "data", "num_problems", "num_samples", "temperature", "max_response_tokens"},
    "run": {"dir", "name", "tensorboard", "wandb_project"},
}


def run_identity(config: Config, *, data_fingerprint: str, num_processes: int) -> dict[str, Any]:
    """Configuration (without what may change), base model, data and number of processes, as JSON values."""
    resolved = config.model_dump(mode="json")
    if config.optim.scheduler != "constant":
        resolved["optim"]["max_steps"] = config.train.max_steps
    for section, keys in MAY_CHANGE.items():
        for key in keys:
            del resolved[section][key]
    base = json.dumps(model_config(config.model).to_dict(), sort_keys=True, default=str)
    return {
        "configuration": {f"{section}.{key}": v for section, values in resolved.items() for key, v in values.items()},
        "model": hashlib.sha256(base.encode()).hexdigest(),
        "data": data_fingerprint,
        "processes": num_processes,
    }
