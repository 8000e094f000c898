"""Add to a card what the hub reads of it, and what only a run's folder says: training, data, scores, licence."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from trapo_lite.config import Config, plain_yaml
from trapo_lite.config.paths import HUB_NAME
from trapo_lite.core.errors import ExportError
from trapo_lite.core.in_words import counted

TRAINING = """
## Training

Trained{steps} with trapo_lite on {data}, with these options:

```yaml
{options}
```
"""
SCORES = """
## Scores

| evaluation | problems | number | accuracy | 95 % interval |
|---|---|---|---|---|
{rows}
"""
SECTIONS = {
    "lora": ("r", "alpha", "target_modules"),
    "data": ("shares", "filter", "expert_text"),
    "reward": ("functions", "require_box"),
    "rollout": (
        *("num_problems", "max_response_tokens", "temperature", "top_p", "top_k", "truncated"),
        "replace_uninformative",
    ),
    "optim": ("name", "lr", "weight_decay", "grad_clip", "scheduler", "warmup_steps", "updates_per_batch"),
}


@dataclass(frozen=True)
class CardScore:
    """A CardScore is one row of the scores: the accuracy of an evaluation on a set of problems."""

    evaluation: str
    problems: str
    num_problems: int
    accuracy: float
    interval_95: tuple[float, float]


def hub_card(text: str, *, config: Config, steps: int | None, scores: Sequence[CardScore], may_download: bool) -> str:
    """Return the card with metadata that the hub accepts, and with the run's training, data and scores.

    steps: after which the adapter was saved; None: that is not known
    may_download: take the base's licence from the hub; otherwise only from a local folder or the cache
    """
    try:
        card = ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ExportError(f"README.md: its metadata cannot be read ({error}); export again with --overwrite") from None
    base, metadata = config.model.name, cast(ModelCardData, card.data)
    metadata.base_model = None if is_local(base) else base  # the hub rejects a folder's name
    terms, name, link = _license_of(base, may_download=may_download)
    metadata.license, metadata.license_name, metadata.license_link = terms, name, link
    sources = config.data.sources
    matches = {source: HUB_NAME.fullmatch(source) for source in sources if not is_local(source)}
    ids = {source: match["id"] for source, match in matches.items() if match is not None}
    metadata.datasets = list(dict.fromkeys(ids.values())) or None
    names = ", ".join(f"`{ids.get(source, Path(source).name)}`" for source in sources)
    length = "" if steps is None else f" for {counted(steps, 'step')}"
    options = TRAINING.format(steps=length, data=names, options=_options(config))
    card.text = f"{card.text.rstrip()}\n{options}{_table(scores) if scores else ''}"
    return str(card)


def is_local(name: str) -> bool:
    """Return whether this is a file or folder here, or can only be one, and no id of the hub."""
    return Path(name).expanduser().exists() or name.startswith(("/", ".", "~"))


def _license_of(base: str, *, may_download: bool) -> tuple[str | None, str | None, str | None]:
    """Return licence, its name and its link as the base's own card states them; None for what it does not state."""
    file = Path(base).expanduser() / "README.md"
    if not is_local(base):
        try:
            file = Path(hf_hub_download(base, "README.md", local_files_only=not may_download))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
            return None, None, None
    if not file.is_file():
        return None, None, None
    try:
        data = cast(ModelCardData, ModelCard.load(file, ignore_metadata_errors=True).data)
    except (ValueError, yaml.YAMLError):
        return None, None, None  # a card without readable metadata states nothing
    return data.license, data.license_name, data.license_link


def _options(config: Config) -> str:
    resolved = config.model_dump(mode="json")
    shown = {name: {key: resolved[name][key] for key in keys} for name, keys in SECTIONS.items()}
    return plain_yaml.dump({**shown, "algorithm": resolved["algorithm"], "run": {"seed": config.run.seed}}).rstrip()


def _table(scores: Sequence[CardScore]) -> str:
    rows = [
        f"| {score.evaluation} | {score.problems} | {score.num_problems} | {score.accuracy:.1%} | "
        f"{score.interval_95[0]:.1%} to {score.interval_95[1]:.1%} |"
        for score in scores
    ]
    return SCORES.format(rows="\n".join(rows))
