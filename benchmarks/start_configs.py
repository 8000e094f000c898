"""Say which card each configuration of configs/ needs by the plan, from the published sizes of its model."""

from dataclasses import dataclass
from pathlib import Path

from trapo_lite.config import load_config
from trapo_lite.core.errors import ConfigError
from trapo_lite.model.base import model_shape
from trapo_lite.model.layout import check_model
from trapo_lite.planning.memory import shortcoming
from trapo_lite.planning.published_sizes import with_published_sizes
from trapo_lite.run.gpus import GIB, GPUS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Start:
    """A Start is a configuration that people start from.

    overrides: settings with which it is planned for a card
    smaller:   settings that make it fit a smaller card, which is named too
    """

    config: str
    num_gpus: int = 1
    overrides: tuple[str, ...] = ()
    smaller: tuple[str, ...] = ()
    note: str = ""


STARTS = (
    Start("smollm2_135m", overrides=("model.dtype=bfloat16",), note=", or two CPU cores"),
    Start("gemma3_1b"),
    Start("qwen3_1.7b"),
    Start("llama3.2_3b"),
    Start("qwen3_4b", smaller=("optim.name=adamw_8bit",)),
    Start("qwen3.5_4b", smaller=("rollout.max_response_tokens=3072", "train.tokens_per_batch=4096")),
    Start("1x24GB_qlora"),
    Start("8xA100_lora", num_gpus=8),
)


def least_memory(start: Start, *overrides: str) -> float:
    """Return the least GiB of a card, in tenths, with which scripts/plan.py says that the configuration fits."""
    config = load_config([CONFIGS / f"{start.config}.yaml"], [*start.overrides, *overrides])
    with with_published_sizes(config) as config:
        config = check_model(config).written_out(config)
        shape = model_shape(config)

    def fits(tenths: int) -> bool:
        return shortcoming(config, shape, gpu_memory=tenths * GIB / 10) is None

    low, high = 0, 2000  # tenths of a GiB; it does not fit `low` and fits `high`
    if not fits(high):
        raise ConfigError(f"configs/{start.config}.yaml: does not fit 200 GiB; make it smaller")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high / 10


def smallest_cards(gib: float) -> str:
    """Return the cards of the plan's table with the least memory that is enough.

    >>> smallest_cards(22.5), smallest_cards(80.0)
    ('23.5 GiB (RTX 3090, RTX 4090)', '93.1 GiB (H100 NVL)')
    """
    memory = min(gpu.memory for gpu in GPUS.values() if gpu.memory >= gib * GIB)
    names = sorted(name for name, gpu in GPUS.items() if gpu.memory == memory)
    return f"{memory / GIB:.1f} GiB ({', '.join(names)})"


def start_rows() -> list[str]:
    """Return the rows of the table of configurations, each with the card that it needs."""
    rows = []
    for start in STARTS:
        name = load_config([CONFIGS / f"{start.config}.yaml"]).model.name
        gib = least_memory(start)
        card = smallest_cards(gib) + start.note
        if start.smaller:
            card += f"; with `{' '.join(start.smaller)}`: {smallest_cards(least_memory(start, *start.smaller))}"
        count = f"{start.num_gpus} x " if start.num_gpus > 1 else ""
        rows.append(f"| `configs/{start.config}.yaml` | {name} | {gib:.1f} | {count}{card} |")
    return rows
