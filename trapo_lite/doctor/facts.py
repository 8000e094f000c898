"""Collect what this machine has. Only the standard library is imported, since any package may be missing."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

MIB = 2**20
SHARED_MEMORY = Path("/dev/shm")
DRIVER_FILES = ("/dev/nvidia0", "/proc/driver/nvidia/version")
NVIDIA_SMI_SECONDS = 15.0
TORCH_SECONDS = 15.0
HUB_SECONDS = 8.0

CARD_FIELDS = ("index", "uuid", "name", "driver_version", "memory.total", "memory.used", "compute_cap")

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
class Answer:
    """Hold what a program did. text: its output; if it failed, the line that says why."""

    outcome: Literal["ok", "failed", "hung", "missing"]
    text: str = ""


@dataclass(frozen=True)
class Card:
    """Hold one GPU as nvidia-smi describes it. memory, used: bytes; None: nvidia-smi does not say."""

    index: int
    uuid: str
    name: str
    driver: str
    memory: float | None
    used: float | None
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class Facts:
    """Hold everything that the checks of the machine use. Sizes are in bytes; None: unknown.

    visible:   CUDA_VISIBLE_DEVICES; None: not set
    torch:     the JSON that TORCH_PROBE printed
    compiler:  what setup_cuda.check_compiler says is missing; None: nothing
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


def collect(packages: Iterable[str], *, compiler: str | None, asks_hub: bool) -> Facts:
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
        compiler=compiler,
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


def run_limited(command: Sequence[str], *, limit_s: float) -> Answer:
    """Run a program. If it takes longer than limit_s, kill it and its children, and do not wait for them.

    A process that hangs in the driver cannot be killed.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        return Answer("missing")
    except (OSError, ValueError) as error:
        return Answer("failed", str(error))
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # ended just now, or of another user
            os.killpg(process.pid, signal.SIGKILL)
        return Answer("hung", f"no answer within {limit_s:g} s")
    if process.returncode == 0:
        return Answer("ok", out)
    lines = [line.strip() for line in (err if err.strip() else out).splitlines() if line.strip()]
    return Answer("failed", lines[-1] if lines else f"exit status {process.returncode}")


def ask_nvidia_smi(limit_s: float = NVIDIA_SMI_SECONDS) -> Answer:
    """Return nvidia-smi's table of cards. Drivers older than 510 do not know its last field."""
    for fields in (CARD_FIELDS, CARD_FIELDS[:-1]):
        query = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        answer = run_limited(["nvidia-smi", *query], limit_s=limit_s)
        if "not a valid field" not in answer.text:
            break
    return answer


def parse_cards(table: str) -> list[Card]:
    """Return the cards of nvidia-smi's table. Lines of another form are skipped.

    >>> card = parse_cards("0, GPU-1a, NVIDIA A100-SXM4-80GB, 580.82.07, 81920, 4, 8.0")[0]
    >>> card.name, card.capability, card.memory == 80 * 2**30
    ('NVIDIA A100-SXM4-80GB', (8, 0), True)
    """
    cards = []
    for line in table.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) < len(CARD_FIELDS) - 1 or not values[0].isdigit():
            continue
        index, uuid, name, driver, total, used = values[:6]
        memory, in_use = (float(text) * MIB if text.isdigit() else None for text in (total, used))
        major, _, minor = (values[6] if len(values) > 6 else "").partition(".")
        capability = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
        cards.append(Card(int(index), uuid, name, driver, memory, in_use, capability))
    return cards


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


def free_bytes(folder: Path) -> float | None:
    """Return the free bytes for the folder, which need not exist yet. Return None if it cannot be made or written."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            return None
        return float(shutil.disk_usage(folder).free)
    except OSError:
        return None


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
