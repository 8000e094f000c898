"""What a run is made of: a checkpoint is only good for a run that is made of the same."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trapo_lite.base_model import model_config
from trapo_lite.config import Config

SAMPLES, SAMPLE_BYTES = 64, 1 << 16  # of each file of weights: pieces at equal distances, the header among them

# What may differ when a run goes on: how long, how often and where, but not what is computed.
MAY_CHANGE = {
    "train": {"max_steps", "save_every", "keep_checkpoints", "check_packing", "check_memory"},
    "eval": {"every", "data", "num_problems", "num_samples", "temperature", "max_response_tokens"},
    "rollout": {"mismatch_alarm", "servers", "server_adapter_dir", "base_tolerance"},
    "run": {"dir", "name", "tensorboard", "wandb_project"},
}

# What moves results by rounding alone: it may differ too, unless bits were promised.
MAY_CHANGE_INEXACTLY = {
    "model": {"gradient_checkpointing", "attention", "offload_activations"},
    "rollout": {"schedule", "colocate", "gpu_memory_fraction", "max_num_seqs", "kv_cache_gib", "num_threads"},
    "reward": {"num_workers", "memory_mb"},
    "train": {"tokens_per_batch"},
    "run": {"deterministic"},  # the promise may be given up, not taken up
}


def run_identity(config: Config, *, data_fingerprint: str, num_processes: int) -> dict[str, Any]:
    """Configuration (without what may change), base model, data and number of processes, as JSON values."""
    resolved = config.model_dump(mode="json")
    if config.optim.scheduler != "constant":
        resolved["optim"]["max_steps"] = config.train.max_steps
    for section, keys in MAY_CHANGE.items():
        for key in keys:
            del resolved[section][key]
    base = model_config(config.model).to_dict()
    base.pop("transformers_version", None)
    return {
        "configuration": {f"{section}.{key}": v for section, values in resolved.items() for key, v in values.items()},
        "model": {key: str(value) for key, value in sorted(base.items())}
        | {"weights": weights_fingerprint(config.model.name)},
        "data": data_fingerprint,
        "processes": num_processes,
    }


def may_differ(config: Config) -> frozenset[str]:
    """Return the keys of `run_identity`'s configuration that a resumed run may change."""
    if config.run.deterministic:
        return frozenset()
    return frozenset(f"{section}.{key}" for section, keys in MAY_CHANGE_INEXACTLY.items() for key in keys)


def verifier_fingerprint() -> str:
    """What tells one state of the rules of grading from another: math-verify's version, a hash of trapo_lite.reward."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).with_name("reward").glob("*.py")):
        digest.update(file.read_bytes())
    return f"math-verify {version('math-verify')}, rules {digest.hexdigest()[:12]}"


def weights_fingerprint(name: str) -> str:
    """What tells one set of weights in a local folder from another: names, sizes and samples; a hub id is its own."""
    digest = hashlib.sha256()
    for file in sorted(Path(name).glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for sample in range(SAMPLES):
                content.seek(sample * size // SAMPLES)
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16] if Path(name).is_dir() else name
