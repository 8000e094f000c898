"""The configuration (DESIGN 10): `sections` and `algorithm` hold the options, `loading` reads files and overrides."""

from trapo_lite.config.algorithm import AlgorithmSection
from trapo_lite.config.config import Config
from trapo_lite.config.data import DataSection
from trapo_lite.config.loading import load_config, validate
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
