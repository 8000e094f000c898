"""Collect what this machine has. Only the standard library is imported, since any package may be missing."""

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from trapo_lite.run.files import free_bytes
from trapo_lite.run.nvidia_smi import Answer, Card, ask_nvidia_smi, missing_for_triton, parse_cards, run_limited

SHARED_MEMORY = Path("/dev/shm")
DRIVER_FILES = ("/dev/nvidia0", "/proc/driver/nvidia/version")
TORCH_SECONDS = 15.0
HUB_SECONDS = 8.0

TORCH_PROBE = """
import json, torch
found = {"cuda": torch.version.cuda, "memory": [], "problem": None}
if torch.version.cuda is not None:
    try:
        torch.cuda.init()
        cards = range(torch.cuda.device_count())
        found["memory"] = [torch.cuda.get_device_properties(card).total_memory for card in cards]
    except (RuntimeError, AssertionError) as error:
        found["problem"] = (str(error).splitlines() or ["no reason given"])[0]
print(json.dumps(found))
"""
HUB_PROBE = """
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=4)
"""


@dataclass(frozen=True)
class Facts:
    """Hold everything that the checks of the machine use. Sizes are in bytes; None: unknown.

    visible:   CUDA_VISIBLE_DEVICES; None: not set
    torch:     the JSON that TORCH_PROBE printed
    compiler:  what Triton lacks; None: nothing
    disks:     free bytes by purpose and folder
    versions:  version by package; None: not installed
    hub:       None: not asked, because HF_HUB_OFFLINE is set or a configuration names what to ask for
    """

    python: tuple[int, int, int]
    nvidia_smi: Answer
    has_driver_files: bool
    visible: str | None
    torch: Answer
    compiler: str | None
    memory: float | None
    free_memory: float | None
    disks: dict[tuple[str, str], float | None]
    shared_memory: float | None
    versions: dict[str, str | None]
    hub: Answer | None
    hub_address: str
    is_offline: bool
    cards: list[Card] = field(default_factory=list)


def collect(packages: Iterable[str], *, asks_hub: bool) -> Facts:
    """Return the facts of this machine. The programs run at the same time, each with its time limit."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    is_offline = hub_is_offline()
    python = [sys.executable, "-c"]
    with ThreadPoolExecutor(3) as pool:
        nvidia_smi = pool.submit(ask_nvidia_smi)
        torch = pool.submit(run_limited, [*python, TORCH_PROBE], limit_s=TORCH_SECONDS)
        hub = None
        if asks_hub and not is_offline:
            hub = pool.submit(run_limited, [*python, HUB_PROBE, address], limit_s=HUB_SECONDS)
    memory, free_memory = host_memory()
    return Facts(
        python=sys.version_info[:3],
        nvidia_smi=nvidia_smi.result(),
        has_driver_files=any(os.path.exists(file) for file in DRIVER_FILES),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        torch=torch.result(),
        compiler=missing_for_triton(),
        memory=memory,
        free_memory=free_memory,
        disks={(purpose, str(folder)): free_bytes(folder) for purpose, folder in folders().items()},
        shared_memory=free_bytes(SHARED_MEMORY) if os.path.isdir(SHARED_MEMORY) else None,
        versions={name: installed_version(name) for name in packages},
        hub=None if hub is None else hub.result(),
        hub_address=address,
        is_offline=is_offline,
        cards=parse_cards(nvidia_smi.result().text) if nvidia_smi.result().outcome == "ok" else [],
    )


def hub_is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE is set, as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def installed_version(package: str) -> str | None:
    """Return a package's version; None if it is not installed, '?' if its metadata cannot be read."""
    try:
        return metadata.version(package) or "?"
    except metadata.PackageNotFoundError:
        return None
    except (KeyError, ValueError, TypeError, OSError):
        return "?"


def host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[float | None, float | None]:
    """Return (total, available) bytes of this machine, or of the container if its limit is lower."""
    sizes = {}
    for line in _read(proc / "meminfo").splitlines():
        name, _, value = line.partition(":")
        if value.split()[:1] and value.split()[0].isdigit():
            sizes[name] = float(value.split()[0]) * 1024
    total, available = sizes.get("MemTotal"), sizes.get("MemAvailable")
    for limit_file, usage_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, usage = _read(cgroup / limit_file).strip(), _read(cgroup / usage_file).strip()
        if limit.isdigit() and total is not None and float(limit) < total:
            total = float(limit)
            if available is not None and usage.isdigit():
                available = max(0.0, min(available, total - float(usage)))
    return total, available


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def folders() -> dict[str, Path]:
    """Return the folders that are written most: this folder, the hub's cache, temporary files."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return {"working folder": _working_folder(), "hub cache": _home_filled_in(cache), "temporary files": _temporary()}


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:  # it was removed
        return Path(os.curdir)


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # none of the usual ones can be written
        return Path(os.environ.get("TMPDIR") or "/tmp")


def _home_filled_in(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # a user without a home
        return Path(text)


def torch_facts(answer: Answer) -> dict | None:
    """Return what TORCH_PROBE printed, or None if it did not finish.

    >>> torch_facts(Answer("ok", '{"cuda": null, "memory": [], "problem": null}'))
    {'cuda': None, 'memory': [], 'problem': None}
    """
    if answer.outcome != "ok" or not answer.text.strip():
        return None
    try:
        probe_output = json.loads(answer.text.strip().splitlines()[-1])
    except ValueError:
        return None
    return (
        probe_output
        if isinstance(probe_output, dict) and {"cuda", "memory", "problem"} <= probe_output.keys()
        else None
    )
