"""accelerate launch scripts/train.py --config configs/tiny_cpu.yaml [section.key=value ...] [--dry-run] [--restart]"""

from trapo_lite.cli import train

if __name__ == "__main__":
    train()
