"""FSDP2 on CPU processes, configured by configs/accelerate/fsdp2.yaml."""

import os
from pathlib import Path

import yaml
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

CONFIG = Path(__file__).parents[1] / "configs/accelerate/fsdp2.yaml"


def environment() -> dict[str, str]:
    """What `accelerate launch` makes of the file for its processes."""
    section = yaml.safe_load(CONFIG.read_text())["fsdp_config"]
    return {"ACCELERATE_USE_FSDP": "true", **{key.upper(): str(value) for key, value in section.items()}}


def allow() -> None:
    """Accelerate turns FSDP on for accelerators alone; what it does then runs on the CPU as well."""
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    initialise = AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **options) -> None:
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **options)
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = with_fsdp
