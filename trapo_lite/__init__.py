"""TRAPO (Trust-Region Adaptive Policy Optimization, arXiv:2512.17636) with LoRA, on one node.

The names below are imported when they are first used, so `import trapo_lite` is cheap and imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trapo_lite.config import Config, load_config
    from trapo_lite.core.errors import TrapoLiteError
    from trapo_lite.interface import TrainedRun, evaluate, export, train

__version__ = "0.1.0"
__all__ = ["Config", "TrainedRun", "TrapoLiteError", "evaluate", "export", "load_config", "train"]

_MODULES = {
    "Config": "trapo_lite.config",
    "load_config": "trapo_lite.config",
    "TrapoLiteError": "trapo_lite.core.errors",
    "TrainedRun": "trapo_lite.interface",
    "evaluate": "trapo_lite.interface",
    "export": "trapo_lite.interface",
    "train": "trapo_lite.interface",
}


def __getattr__(name: str) -> Any:
    """Import a name of the interface when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
