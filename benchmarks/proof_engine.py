"""Measure the engine's parts of benchmarks/gpu_proof.py: start, noise, publishing, freed memory, decoding."""

import random
import statistics
import time
from pathlib import Path

import torch
from gpu_proof import Record, Setting, Skipped
from proof_training import weights
from rollout import measure_schedules
from worlds import World, start
from wrong_adapters import move

from trapo_lite.engines import parity
from trapo_lite.engines.base import RolloutEngine, SampleRequest
from trapo_lite.engines.vllm.engine import require_vllm
from trapo_lite.engines.vllm.options import servable_dtype
from trapo_lite.model.logprobs import probe_sequences
from trapo_lite.model.policy import Policy
from trapo_lite.rollout.publisher import Publisher
from trapo_lite.training.inputs import read_inputs

PROMPT_TOKENS = 64
MAX_MODEL_LEN = 512
GIB = 2**30


def engine_small(setting: Setting, record: Record) -> None:
    measure_engine("1.5B", setting, record)


def engine_large(setting: Setting, record: Record) -> None:
    measure_engine("7B", setting, record)


def measure_engine(shape: str, setting: Setting, record: Record) -> None:
    """Record all that a run asks of an engine, at one shape."""
    world = world_of(shape, setting)
    folder = Path(setting.work) / f"engine-{shape}"
    folder.mkdir(exist_ok=True)
    record("card_gib_before", card_gib(setting))
    started = time.perf_counter()
    with start(world, folder, can_merge=True) as engine:
        engine.reset_prefix_cache()  # the first call waits for the start
        record("start_seconds", round(time.perf_counter() - started, 1))
        record("card_gib_after_start", card_gib(setting))
        decode(engine, 8, 16)  # warms up
        num_tokens = 256 if setting.has_gpu else 16
        sizes = (32, 256) if setting.has_gpu else (8,)
        for size in sizes:
            record(f"base_tokens_per_second_{size}_sequences", decode(engine, size, num_tokens))
        config = world.config()
        policy = Policy.load(config.model, config.lora, device="cuda" if setting.has_gpu else "cpu")
        publisher = measure_publishing(engine, policy, folder, record)
        for size in sizes:
            record(f"adapter_tokens_per_second_{size}_sequences", decode(engine, size, num_tokens))
        measure_release(engine, publisher, setting, record)
        started = time.perf_counter()
        kept = engine.merge()
        record("merge", {"seconds": round(time.perf_counter() - started, 3), "kept": round(kept, 4)})
        for size in sizes:
            record(f"merged_tokens_per_second_{size}_sequences", decode(engine, size, num_tokens))
        engine.unmerge()
        record("engine_restarts", engine.num_restarts)  # type: ignore[attr-defined]


def measure_publishing(engine: RolloutEngine, policy: Policy, folder: Path, record: Record) -> Publisher:
    """Record the noise between engine and trainer on the bare base, then publish and probe three versions."""
    vocab_size = policy.model.config.vocab_size
    probe = probe_sequences(vocab_size=vocab_size, num_tokens=512, max_length=MAX_MODEL_LEN)
    record("base_noise_on_random_tokens", noise_on(probe, engine, policy))
    publisher = make_publisher(engine, policy, folder)
    for version in range(3):
        move(policy, seed=version)
        result = publisher.publish(version + 1)
        record(
            f"publish_{version + 1}",
            {
                "hand_over_seconds": round(publisher.publish_seconds, 3),
                "check_and_probe_seconds": round(publisher.probe_seconds, 3),
                "mib": round(engine.publish_bytes / 2**20, 1),
                "verdict": result.kind,
                "projection": round(result.projection, 4),
                "effect_nats": result.effect,
                "mismatch_nats": result.mismatch,
            },
        )
    return publisher


def make_publisher(engine: RolloutEngine, policy: Policy, folder: Path) -> Publisher:
    """Make a publisher that accepts any noise, because random weights know no text. The noise is recorded."""
    return Publisher(
        engine,
        policy,
        scratch=folder / "publishing",
        text=probe_sequences(
            vocab_size=policy.model.config.vocab_size, num_tokens=512, max_length=MAX_MODEL_LEN, seed=1
        ),
        base_tolerance=100.0,
        vocab_size=policy.model.config.vocab_size,
        num_tokens=512,
        max_length=MAX_MODEL_LEN,
    )


def measure_release(engine: RolloutEngine, publisher: Publisher, setting: Setting, record: Record) -> None:
    """Record three rounds of freeing and allocating the cache's memory, each after a rollout phase."""
    ids = [7 + number % 50 for number in range(100)]
    before = engine.score(ids)
    for number in range(3):
        decode(engine, 8, 16)  # the requests of the last step are still in vLLM's scheduler
        awake = card_gib(setting)
        started = time.perf_counter()
        engine.release()
        released = time.perf_counter()
        asleep = card_gib(setting)
        torch.ones(GIB if setting.has_gpu else 1, dtype=torch.uint8, device="cuda" if setting.has_gpu else "cpu")
        resuming = time.perf_counter()
        engine.resume()
        record(
            f"release_{number + 1}",
            {
                "release_seconds": round(released - started, 3),
                "resume_seconds": round(time.perf_counter() - resuming, 3),
                "card_gib_awake": awake,
                "card_gib_asleep": asleep,
                "card_gib_after": card_gib(setting),
                "largest_score_difference": max(abs(a - b) for a, b in zip(before, engine.score(ids), strict=True)),
            },
        )


def noise(setting: Setting, record: Record) -> None:
    """Record the difference of engine and trainer on a real model, on its data's text and on random tokens."""
    require_vllm_or_skip()
    world = World((f"model.name={setting.model}", f"model.dtype={servable_dtype()}", "run.deterministic=false"))
    config = world.config(f"data.train={setting.data}", "data.max_prompt_tokens=256", "data.on_bad_row=skip")
    folder = Path(setting.work) / "noise"
    folder.mkdir(exist_ok=True)
    with start(world, folder) as engine:
        engine.reset_prefix_cache()
        policy = Policy.load(config.model, config.lora, device="cuda" if setting.has_gpu else "cpu")
        vocab_size = policy.model.config.vocab_size
        text = parity.text_sequences(read_inputs(config).problems, num_tokens=1024, max_length=MAX_MODEL_LEN)
        record("on_text", noise_on(text, engine, policy))
        probe = probe_sequences(vocab_size=vocab_size, num_tokens=1024, max_length=MAX_MODEL_LEN)
        record("on_random_tokens", noise_on(probe, engine, policy))


def noise_on(sequences: list[list[int]], engine: RolloutEngine, policy: Policy) -> dict[str, float]:
    """Return the difference of the bare base's log-probs between engine and trainer."""
    with policy.reference():
        trainer = [logprob for ids in sequences for logprob in policy.score(ids)]
    found = [logprob for ids in sequences for logprob in engine.score(ids)]
    return {
        "num_tokens": len(found),
        "rms_nats": parity.measured_noise(found, trainer),
        "largest_nats": max(abs(a - b) for a, b in zip(found, trainer, strict=True)),
        "logprob_mean": statistics.fmean(trainer),
        "logprob_std": statistics.pstdev(trainer),
        "accepted_nats": parity.largest_noise(trainer, dtype=policy.autocast_dtype or torch.float32),
    }


def schedules(setting: Setting, record: Record) -> None:
    """Record the cost of the three schedules with an engine of 1.5B shape; see benchmarks/rollout.py."""
    world = world_of("1.5B", setting)
    folder = Path(setting.work) / "schedules"
    folder.mkdir(exist_ok=True)
    with start(world, folder) as engine:
        problems = 32 if setting.has_gpu else 2
        for name, value in measure_schedules(engine, num_problems=problems, sigma=1.0, repeats=2).items():
            record(name, value)


def world_of(shape: str, setting: Setting) -> World:
    require_vllm_or_skip()
    return World(
        (f"model.name={weights(shape, setting)}", f"model.dtype={servable_dtype()}", "run.deterministic=false")
    )


def require_vllm_or_skip() -> None:
    from trapo_lite.core.errors import EngineError

    try:
        require_vllm(quantize="none")
    except EngineError as error:
        raise Skipped(str(error)) from None


def decode(engine: RolloutEngine, num_sequences: int, num_tokens: int) -> float:
    """Return tokens per second of sequences that begin and end together, each with its own prompt."""
    rng = random.Random(num_sequences)
    prompts = [tuple(rng.randrange(5, 500) for _ in range(PROMPT_TOKENS)) for _ in range(num_sequences)]
    started = time.perf_counter()
    for number, prompt in enumerate(prompts):
        engine.submit(SampleRequest(f"d{number}", prompt, seed=number, max_tokens=num_tokens))
    left = num_sequences
    while left:
        left -= len(engine.poll())
    return round(num_sequences * num_tokens / (time.perf_counter() - started), 1)


def card_gib(setting: Setting) -> float | None:
    """Return the card's memory that all processes hold together, in GiB, or None on the CPU."""
    if not setting.has_gpu:
        return None
    free, total = torch.cuda.mem_get_info()
    return round((total - free) / GIB, 2)
