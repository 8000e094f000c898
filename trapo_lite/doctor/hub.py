"""Ask whether the model and the data of a configuration are on the hub, while other checks run.

This module imports nothing heavy, so that the request is sent before the packages of other checks are loaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trapo_lite.doctor.facts import HUB_SECONDS, hub_is_offline
from trapo_lite.run.nvidia_smi import run_limited

if TYPE_CHECKING:  # pydantic may be missing
    from trapo_lite.config import Config

HUB_PROBE = """
import json, sys
import httpx
from huggingface_hub import HfApi, hf_hub_download
answers = []
for kind, name, revision in json.loads(sys.argv[1]):
    try:
        if kind == "model":
            answers.append([True, hf_hub_download(name, "config.json", etag_timeout=3)])
        else:
            HfApi().dataset_info(name, revision=revision, timeout=3)
            answers.append([True, ""])
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        answers.append([False, " ".join(str(error).split())[:200] or type(error).__name__])
print(json.dumps(answers))
"""


class HubName(NamedTuple):
    """Name one thing on the hub. kind: model or data;  revision: None for the newest."""

    kind: str
    id: str
    revision: str | None


HubAnswers = dict[HubName, tuple[bool, str]]
"""The program prints whether each name is there, and its file in the cache or the reason why it is missing."""


def hub_names(config: Config) -> list[HubName]:
    """Return what the configuration takes from the hub."""
    data = config.data.train if isinstance(config.data.train, list) else [config.data.train]
    names: list[HubName] = []
    if not Path(config.model.name).is_dir():
        names.append(HubName("model", config.model.name, None))
    for source in [*data, *([config.eval.data] if config.eval.data is not None else [])]:
        if not Path(source).expanduser().is_file():
            name, _, revision = source.partition(":")[0].partition("@")
            names.append(HubName("data", name, revision or None))
    return list(dict.fromkeys(names))


def ask(config: Config, *, limit_s: float = HUB_SECONDS) -> HubAnswers:
    """Ask for every name, or offline for the model alone. It takes at most limit_s seconds in all."""
    names = [name for name in hub_names(config) if name.kind == "model" or not hub_is_offline()]
    if not names:
        return {}
    answer = run_limited([sys.executable, "-c", HUB_PROBE, json.dumps(names)], limit_s=limit_s)
    if answer.outcome == "ok":
        try:
            entries = json.loads(answer.text.strip().splitlines()[-1])
            return {name: (is_there, text) for name, (is_there, text) in zip(names, entries, strict=True)}
        except (ValueError, TypeError, IndexError):
            pass  # something else was printed
    return dict.fromkeys(names, (False, answer.text.strip() or "no answer"))
