"""Measure the cost and the gain of serving the adapter in the base's own weights (rollout.merge).

Part of benchmarks/rollout.py.
"""

import time
from pathlib import Path

from worlds import MAX_MODEL_LEN, World
from wrong_adapters import move

from trapo_lite.engines import parity
from trapo_lite.engines.base import RolloutEngine, SampleRequest
from trapo_lite.model.logprobs import probe_sequences
from trapo_lite.model.policy import Policy

NUM_SEQUENCES, NUM_TOKENS = 64, 64
REPEATS = 3


def measure_merging(engine: RolloutEngine, world: World, folder: Path) -> dict[str, object]:
    """Measure seconds of decoding, un-merged and merged in turns, and of merging, and each one's error."""
    config = world.config()
    policy = Policy.load(config.model, config.lora, device="cuda" if config.model.dtype == "bfloat16" else "cpu")
    move(policy, seed=0)
    policy.adapter.save(folder / "adapter")
    probe = probe_sequences(vocab_size=policy.model.config.vocab_size, num_tokens=512, max_length=MAX_MODEL_LEN - 1)
    trainer = [logprob for token_ids in probe for logprob in policy.score(token_ids)]
    seconds = {"separate": 0.0, "merged": 0.0}
    mismatch: dict[str, float] = {}
    merging, kept = 0.0, 0.0
    version = engine.version or 0
    for repeat in range(-1, REPEATS):  # -1 warms up
        version += 1
        engine.publish(folder / "adapter", version)
        for mode in seconds:
            if mode == "merged":
                started = time.perf_counter()
                kept = engine.merge()
                merging += (time.perf_counter() - started) * (repeat >= 0)
            elapsed = decode(engine)
            seconds[mode] += elapsed * (repeat >= 0)
            scores = [logprob for token_ids in probe for logprob in engine.score(token_ids)]
            mismatch[mode] = parity.measured_noise(scores, trainer)
        started = time.perf_counter()
        engine.unmerge()
        merging += (time.perf_counter() - started) * (repeat >= 0)
    print(f"merging: {seconds}, merging and restoring {merging:.3f} s in all, mismatch {mismatch}")
    return {
        "separate_over_merged_decoding": round(seconds["separate"] / seconds["merged"], 3),
        "merging_over_decoding": round(merging / seconds["merged"], 4),
        "merge_kept": round(kept, 4),
        "mismatch_separate_nats": float(f"{mismatch['separate']:.3g}"),
        "mismatch_merged_nats": float(f"{mismatch['merged']:.3g}"),
    }


def decode(engine: RolloutEngine) -> float:
    """Return the seconds for some tokens of many sequences."""
    started = time.perf_counter()
    for number in range(NUM_SEQUENCES):
        engine.submit(SampleRequest(str(number), tuple(range(5, 21)), seed=number, max_tokens=NUM_TOKENS))
    left = NUM_SEQUENCES
    while left:
        left -= len(engine.poll())
    return time.perf_counter() - started
