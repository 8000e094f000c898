"""Train a policy.

python scripts/train.py --config configs/tiny_cpu.yaml [section.key=value ...] [--dry-run] [--restart]
"""

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite.cli import train

if __name__ == "__main__":
    train()
