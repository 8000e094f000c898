"""Print the plan of a step: memory and time.

python scripts/plan.py --config configs/1x24GB_qlora.yaml [--gpu-memory 24GB] [--gpu A100] [section.key=value ...]
"""

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite.cli import plan

if __name__ == "__main__":
    plan()
