"""The configuration (DESIGN 10): `sections` holds the options, `loading` the files, overrides and error messages."""

from trapo_lite.config.algorithm import AlgorithmSection
from trapo_lite.config.loading import load_config, validate
from trapo_lite.config.sections import (
    Config,
    DataSection,
    EvalSection,
    LoraSection,
    ModelSection,
    OptimSection,
    RewardSection,
    RolloutSection,
    RunSection,
    TrainSection,
)

__all__ = [
    "AlgorithmSection",
    "Config",
    "DataSection",
    "EvalSection",
    "LoraSection",
    "ModelSection",
    "OptimSection",
    "RewardSection",
    "RolloutSection",
    "RunSection",
    "TrainSection",
    "load_config",
    "validate",
]
