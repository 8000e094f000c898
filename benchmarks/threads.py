"""Measure from which width of a model several threads are faster than one on a CPU.

    python benchmarks/threads.py                      # the update, 3 minutes on two cores
    python benchmarks/threads.py --engine             # and vLLM, 5 more
    python benchmarks/threads.py --busy 1             # beside another process that keeps a core busy
    python benchmarks/threads.py --json threads.json

The models have random weights and 4 layers. The update is the trainer's own, of one TRAPO group of 8 rollouts; vLLM
completes 32 prompts with 64 tokens each. One and all threads take turns, and only their ratio means something.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import torch
from train_step import load, packed, trapo_group
from worlds import SHAPES, World

from trapo_lite.engines.base import RolloutEngine, SampleRequest
from trapo_lite.engines.start import start_engine
from trapo_lite.model.threads import num_cores

WIDTHS = (64, 128, 256, 384, 512, 768, 1024)
LENGTHS = (64, 256, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="store_true", help="measure vLLM as well")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute at the same time")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures: dict[int, dict[str, float]] = {}
    for _ in range(args.busy):
        multiprocessing.get_context("spawn").Process(target=compute_for_ever, daemon=True).start()
    for width in args.widths:
        SHAPES[str(width)] = (width, 4, max(1, width // 64), max(1, width // 128), 4 * width, 4096)
        with tempfile.TemporaryDirectory() as folder:
            world = World.random(str(width), Path(folder) / "model")
            single, several = update_seconds(world, num_threads=num_cores(), repeats=args.repeats)
            figures[width] = {"update_s": single, "update_one_over_all": single / several}
            if args.engine:
                single, several = (sample_seconds(world, Path(folder), num_threads=n) for n in (1, num_cores()))
                figures[width] |= {"engine_s": single, "engine_one_over_all": single / several}
        print(width, {key: round(value, 3) for key, value in figures[width].items()}, flush=True)
    if args.json:
        args.json.write_text(json.dumps({"threads": num_cores(), "by_width": figures}, indent=1) + "\n")


def compute_for_ever() -> None:
    while True:
        sum(range(100_000))


def update_seconds(world: World, *, num_threads: int, repeats: int) -> tuple[float, float]:
    """Return the seconds of a gradient with one thread and with `num_threads`."""
    policy, group = load(world), trapo_group(*LENGTHS, vocab_size=4096)
    seconds: dict[int, list[float]] = {1: [], num_threads: []}
    for repeat in range(repeats + 1):
        for threads, times in seconds.items():
            torch.set_num_threads(threads)
            started = time.perf_counter()
            packed(policy, group)
            if repeat:  # the first one fills caches
                times.append(time.perf_counter() - started)
            policy.adapter.clear_gradient()
    return statistics.median(seconds[1]), statistics.median(seconds[num_threads])


def sample_seconds(world: World, folder: Path, *, num_threads: int, repeats: int = 3) -> float:
    """Return the seconds that an engine with `num_threads` takes to complete all prompts under an adapter."""
    load(world).adapter.save(folder / "adapter")
    config = world.config(f"rollout.num_threads={num_threads}", "rollout.merge=never")
    engine = start_engine(config, max_model_len=512, log_path=folder / "engine.log", device_index=None)
    try:
        engine.publish(folder / "adapter", 1)
        return statistics.median([complete(engine) for _ in range(repeats + 1)][1:])
    finally:
        engine.close()


def complete(engine: RolloutEngine) -> float:
    """Return the seconds of 32 completions of 64 tokens."""
    started = time.perf_counter()
    for seed in range(32):
        prompt = tuple(range(5 + seed, 69 + seed))
        engine.submit(SampleRequest(request_id=str(seed), token_ids=prompt, seed=seed, max_tokens=64))
    num_done = 0
    while num_done < 32:
        num_done += len(engine.poll())
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
