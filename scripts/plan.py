"""python scripts/plan.py --config configs/1x24GB_qlora.yaml [--gpu-memory 24GB] [--gpu A100] [section.key=value ...]"""

from trapo_lite.cli import plan

if __name__ == "__main__":
    plan()
