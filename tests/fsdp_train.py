"""Run by torchrun: scripts/train.py with FSDP2 on the CPU (fsdp_on_cpu)."""

import fsdp_on_cpu

from trapo_lite.cli import train

if __name__ == "__main__":
    fsdp_on_cpu.allow()
    train()
