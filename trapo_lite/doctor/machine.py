"""Judge a machine by its facts. Each function is pure and returns findings."""

from collections.abc import Iterator

from trapo_lite.doctor.facts import Facts
from trapo_lite.doctor.findings import Finding, is_named, visible_cards
from trapo_lite.run.gpus import GIB, named_cards
from trapo_lite.run.nvidia_smi import MIN_CAPABILITY, MIN_DRIVER, Card

SMALL_MEMORY = 8 * GIB  # of the host: the quickstart's trainer, engine and verifiers take about 4
SMALL_SHARED_MEMORY = 1 * GIB  # one adapter of a 7B model takes 0.6; NCCL takes some for each process
SMALL_DISKS = {"working folder": 10 * GIB, "hub cache": 20 * GIB, "temporary files": 2 * GIB}
FULL_DISK = 1 * GIB
BUSY = 0.1  # share of a card's memory; above it another process uses the card


def check_machine(facts: Facts) -> Iterator[Finding]:
    """Yield the findings on hardware and system, in the order in which a user would fix them."""
    yield check_python(facts)
    yield check_driver(facts)
    yield from check_cards(facts)
    yield from check_visible(facts)
    yield from check_compiler(facts)
    yield check_memory(facts)
    yield from check_disks(facts)
    yield check_shared_memory(facts)


def check_python(facts: Facts) -> Finding:
    text = ".".join(map(str, facts.python))
    if facts.python < (3, 11):
        return Finding("error", "python", f"{text} is too old", "use Python 3.11 to 3.13: make setup PYTHON=...")
    if facts.python >= (3, 14):
        return Finding("warning", "python", f"{text} was not tested", "use Python 3.11 to 3.13: make setup PYTHON=...")
    return Finding("ok", "python", text)


def check_driver(facts: Facts) -> Finding:
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
    if int(major) < MIN_DRIVER:
        return Finding(
            "error",
            "driver",
            f"{driver}, but torch and vLLM are built for CUDA 13, which needs {MIN_DRIVER} or newer",
            "update the NVIDIA driver, or set up for the CPU: make setup DEVICE=cpu",
        )
    return Finding("ok", "driver", driver)


def check_cards(facts: Facts) -> Iterator[Finding]:
    """Yield a finding for each card that a run would see: its capability and its memory."""
    least = ".".join(map(str, MIN_CAPABILITY))
    for card in visible_cards(facts):
        check, size = f"card {card.index}", "unknown" if card.memory is None else f"{card.memory / GIB:.0f} GiB"
        if card.capability is None:
            yield Finding(
                "warning",
                check,
                f"{card.name}, {size}; its compute capability is unknown",
                f"look it up: bfloat16 needs {least} or higher",
            )
        elif card.capability < MIN_CAPABILITY:
            capability = ".".join(map(str, card.capability))
            yield Finding(
                "error",
                check,
                f"{card.name} has compute capability {capability}, bfloat16 needs {least} or higher",
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
    """Yield the errors in CUDA_VISIBLE_DEVICES. Yield nothing if it is not set or there is no card."""
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
        reason = f"{wrong[0]} is no card here" if wrong else f"{doubled[0]} is named twice"
        listed = ", ".join(str(card.index) for card in facts.cards)
        yield Finding("error", check, f"{facts.visible!r}: {reason}", f"name cards of {listed}, each once")
    else:
        yield Finding("ok", check, f"{facts.visible}: {len(names)} of {len(facts.cards)} cards")


def check_compiler(facts: Facts) -> Iterator[Finding]:
    """Yield a finding if there is a card, because nothing is compiled on the CPU."""
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


def _are_one(cards: list[Card], name: str) -> bool:
    return sum(is_named(card, name) for card in cards) == 1
