"""Measure the cost of an update: packed tree against rows, the head's memory, cost by length and group size.

    python benchmarks/train_step.py --quick                  # under 3 minutes on two cores
    python benchmarks/train_step.py --json train_step.json   # longer lengths, the head at 16k tokens
    python benchmarks/train_step.py --shape 1.5B             # on a GPU: random weights of that shape

TRAPO groups of 4 + 2 + 1 + 1 rollouts at 0, 25, 50 and 100 % of one trace, random tokens. Three ways to the same
gradient take turns, and only their ratios mean something: packed (the trainer's own), rows (this project's path, with
every rollout as its own chain, nothing padded or shared) and padded (rows padded to the longest, transformers'
attention with a mask). All of them use the chunked head.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from worlds import SHAPES, TINY, World, scratch

from trapo_lite.config import AlgorithmSection
from trapo_lite.core.algorithm import TokenLogprobs, count_normalizers, make_group, policy_loss
from trapo_lite.core.batching import num_tokens
from trapo_lite.core.tree import pack
from trapo_lite.core.types import Group, Rollout, Verdict
from trapo_lite.model.logprobs import token_logprobs
from trapo_lite.model.policy import Policy
from trapo_lite.rollout.metrics import padded_tokens

ALGORITHM = AlgorithmSection(tis_cap=2.0).build()
TIMED = (128, 1024, 384)
LENGTHS = ((64, 256, 192), TIMED, (256, 4096, 2048))
HEAD_VOCABULARY = 151_936


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="fewer repetitions, shorter series, 2k tokens for the head"
    )
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), help="random weights of this shape instead of the tiny world's"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="cost against length, group size and vocabulary")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, object] = {
        "padded_over_packed_tokens": {str(lengths): round(saved(*lengths), 3) for lengths in LENGTHS}
    }
    with scratch() as folder:
        world = TINY if args.shape is None else World.random(args.shape, folder / "model")
        policy = load(world)
        figures |= measure_layouts(policy, repeats=3 if args.quick else 9)
        figures |= measure_series(policy, is_short=args.quick, repeats=3)
    figures |= measure_head(num_tokens=2048 if args.quick else 16_384)
    print(json.dumps(figures, indent=1))
    if args.plot:
        plot(figures, args.plot)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def load(world: World, *, device: str = "cuda" if torch.cuda.is_available() else "cpu") -> Policy:
    """Load a policy whose adapter is not zero, so that no part of the gradient is zero."""
    config = world.config("model.config_overrides={max_position_embeddings: 8192}")
    torch.manual_seed(0)
    policy = Policy.load(config.model, config.lora, device=device)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    return policy


def trapo_group(prompt: int, trace: int, completion: int, *, num_free: int = 4, vocab_size: int = 40) -> Group:
    """Make a problem that the policy sometimes fails: free rollouts, then prefixes of 25, 25, 50, 100 % of a trace."""
    rng = random.Random(0)

    def ids(num: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, vocab_size) for _ in range(num))

    prompt_ids, trace_ids = ids(prompt), ids(trace)
    cuts = [0] * num_free + [trace // 4, trace // 4, trace // 2, trace]
    rollouts = [
        Rollout(
            problem_id="p",
            slot=slot,
            prompt_ids=prompt_ids,
            prefix_ids=trace_ids[:cut],
            completion_ids=() if cut == trace else ids(completion),
            completion_logprobs=() if cut == trace else (-1.0,) * completion,
            finish_reason="expert" if cut == trace else "length",
            trace=0 if cut else None,
            train_prefix=cut > 0,
            adapter_version=1,
            verdict=Verdict("correct" if slot % 2 else "wrong"),
            reward=float(slot % 2),
        )
        for slot, cut in enumerate(cuts)
    ]
    return make_group(ALGORITHM, rollouts)


def saved(prompt: int, trace: int, completion: int) -> float:
    group = trapo_group(prompt, trace, completion)
    return padded_tokens([group]) / num_tokens(group)


def rows_of(group: Group) -> list[Group]:
    columns = zip(group.rollouts, group.advantages, group.prefix_weights, strict=True)
    return [Group((rollout,), (advantage,), (weight,)) for rollout, advantage, weight in columns]


# ----- three ways to one gradient


def packed(policy: Policy, group: Group) -> None:
    batch = policy.prepare([group])
    forward = TokenLogprobs(*policy.token_logprobs(batch, temperature=1.0))
    policy_loss(ALGORITHM, forward, batch, count_normalizers(ALGORITHM, [group]))[0].backward()


def unpadded_rows(policy: Policy, group: Group) -> None:
    normalizers = count_normalizers(ALGORITHM, [group])
    for row in rows_of(group):
        batch = policy.prepare([row])
        forward = TokenLogprobs(*policy.token_logprobs(batch, temperature=1.0))
        policy_loss(ALGORITHM, forward, batch, normalizers)[0].backward()


def padded_rows(policy: Policy, group: Group) -> None:
    """Run all rollouts in one (rows, longest) batch through transformers' own attention."""
    rows = rows_of(group)
    sequences = [row.rollouts[0].prompt_ids + row.rollouts[0].response_ids for row in rows]
    width = max(map(len, sequences))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, sequence in enumerate(sequences):
        ids[number, : len(sequence)], mask[number, : len(sequence)] = torch.tensor(sequence), 1
    base = policy._base
    base.set_attn_implementation("sdpa")
    with policy._autocast():
        hidden = base.get_decoder()(
            input_ids=ids.to(policy.device), attention_mask=mask.to(policy.device), use_cache=False
        ).last_hidden_state
    base.set_attn_implementation("packed_tree")
    batch = pack(rows).to(policy.device)  # the same rows as chains, because their tokens are then in the same order
    of_token = torch.cat([torch.arange(len(s)) + number * width for number, s in enumerate(sequences)])
    trained = batch.trained
    at = of_token.to(policy.device)[batch.parent[trained]]
    logprobs, entropy = token_logprobs(hidden.flatten(0, 1)[at], policy._head(), batch.input_ids[trained])
    normalizers = count_normalizers(ALGORITHM, [group])
    policy_loss(ALGORITHM, TokenLogprobs(logprobs, entropy), batch, normalizers)[0].backward()


WAYS: dict[str, Callable[[Policy, Group], None]] = {"packed": packed, "rows": unpadded_rows, "padded": padded_rows}


def timed(policy: Policy, way: Callable[[Policy, Group], None], group: Group) -> tuple[float, Tensor]:
    """Return the seconds of forward and backward, and the gradient."""
    policy.adapter.clear_gradient()
    started = time.perf_counter()
    way(policy, group)
    if policy.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, policy.adapter.flat_gradient()


def measure_layouts(policy: Policy, *, repeats: int) -> dict[str, object]:
    """Measure seconds by layout at (prompt, trace, completion) = TIMED, in turns, and the gradients' differences."""
    group = trapo_group(*TIMED)
    elapsed: dict[str, list[float]] = {name: [] for name in WAYS}
    gradients: dict[str, Tensor] = {}
    for _ in range(1 + repeats):  # the first warms up
        for name, way in WAYS.items():
            once, gradients[name] = timed(policy, way, group)
            elapsed[name].append(once)
    seconds = {name: statistics.median(times[1:]) for name, times in elapsed.items()}
    print(f"{TIMED}: " + ", ".join(f"{name} {s:.3f} s" for name, s in seconds.items()), flush=True)
    errors = [
        (gradients[name] - gradients["padded"]).norm() / gradients["padded"].norm() for name in ("packed", "rows")
    ]
    return {
        "padded_over_packed_time": round(seconds["padded"] / seconds["packed"], 3),
        "rows_over_packed_time": round(seconds["rows"] / seconds["packed"], 3),
        "gradient_relative_error": float(f"{max(errors):.2g}"),
    }


def measure_series(policy: Policy, *, is_short: bool, repeats: int) -> dict[str, object]:
    """Return (packed tokens, seconds) of forward and backward, by length of the completions and by group size."""

    def measured(groups: dict[int, Group]) -> dict[int, tuple[int, float]]:
        seconds: dict[int, list[float]] = {key: [] for key in groups}
        for _ in range(repeats):
            for key, group in groups.items():
                seconds[key].append(timed(policy, packed, group)[0])
        return {key: (num_tokens(group), round(min(seconds[key]), 4)) for key, group in groups.items()}

    lengths = (64, 128, 256, 512) if is_short else (64, 128, 256, 512, 1024, 2048)
    sizes = (8, 16, 32) if is_short else (8, 16, 32, 64)
    return {
        "by_completion_length": measured({length: trapo_group(64, 128, length) for length in lengths}),
        "by_group_size": measured({size: trapo_group(64, 128, 192, num_free=size - 4) for size in sizes}),
    }


# ----- the head


def measure_head(*, num_tokens: int) -> dict[str, object]:
    """Measure the head's peak memory beyond hidden rows and their gradient, forward and backward, by vocabulary."""
    sizes = (HEAD_VOCABULARY // 8, HEAD_VOCABULARY // 4, HEAD_VOCABULARY // 2, HEAD_VOCABULARY)
    peaks = {vocabulary: head_peak(num_tokens, vocabulary) for vocabulary in sizes}
    return {
        "head_tokens": num_tokens,
        "head_peak_mb": round(peaks[HEAD_VOCABULARY], 1),
        "head_peak_mb_by_vocabulary": {vocabulary: round(peak, 1) for vocabulary, peak in peaks.items()},
        "full_logits_mb": round(num_tokens * HEAD_VOCABULARY * 4 / 1e6),
    }


def head_peak(num_tokens: int, vocabulary: int) -> float:
    """Return MB, measured in a process of its own, because on the CPU the peak is that of the whole process."""
    command = [sys.executable, __file__, "--head", str(num_tokens), str(vocabulary)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_head_peak(num_tokens: int, vocabulary: int) -> None:
    is_cuda = torch.cuda.is_available()
    device, width = ("cuda", 3584) if is_cuda else ("cpu", 64)
    dtype = torch.bfloat16 if is_cuda else torch.float32
    torch.set_num_threads(1)
    hidden = torch.randn(num_tokens, width, device=device, dtype=dtype, requires_grad=True)
    head = torch.randn(vocabulary, width, device=device, dtype=dtype)
    ids = torch.randint(vocabulary, (num_tokens,), device=device)
    hidden.grad = torch.zeros_like(hidden)

    def once(rows: slice) -> None:
        logprobs, entropy = token_logprobs(hidden[rows], head, ids[rows])
        (logprobs.sum() + entropy.sum()).backward()

    once(slice(0, 1))  # memory that libraries take once
    before = resident_mb(is_cuda)
    once(slice(None))
    gradient_mb = hidden.numel() * hidden.element_size() / 1e6
    print(resident_mb(is_cuda, peak=True) - before - gradient_mb)


def resident_mb(is_cuda: bool, *, peak: bool = False) -> float:
    """Return the memory now, or its peak since the last call without `peak`."""
    if is_cuda:
        if not peak:
            torch.cuda.reset_peak_memory_stats()
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 1e6
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    name = "VmHWM" if peak else "VmRSS"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def plot(figures: dict[str, Any], file: Path) -> None:
    """Plot seconds against packed tokens, twice, each with the best line through the origin, and the head's peaks."""
    from matplotlib.figure import Figure  # type: ignore[import-not-found]

    drawing = Figure(figsize=(12, 3.6), layout="constrained")
    panels = drawing.subplots(1, 3)
    series = {"by_completion_length": "completions of {} tokens", "by_group_size": "groups of {} rollouts"}
    for panel, (name, label) in zip(panels, series.items(), strict=False):
        tokens, seconds = zip(*figures[name].values(), strict=True)
        slope = sum(t * s for t, s in figures[name].values()) / sum(t * t for t in tokens)
        panel.plot(tokens, seconds, "o", label="measured")
        panel.plot([0, max(tokens)], [0, slope * max(tokens)], "-", label=f"{slope * 1e6:.0f} µs a token")
        ends = [str(list(figures[name])[end]) for end in (0, -1)]
        panel.set(title=label.format(" to ".join(ends)), xlabel="packed tokens", ylabel="seconds, forward and backward")
    vocabulary, peaks = zip(*figures["head_peak_mb_by_vocabulary"].items(), strict=True)
    panels[2].plot(vocabulary, peaks, "o-", label=f"{figures['head_tokens']} tokens")
    panels[2].set(title="head", xlabel="vocabulary", ylabel="peak MB beyond hidden rows and gradient", ylim=(0, 300))
    for panel in panels:
        panel.legend()
    drawing.savefig(file)


def is_head_process(arguments: Sequence[str]) -> bool:
    return arguments[1:2] == ["--head"]


if __name__ == "__main__":
    if is_head_process(sys.argv):
        print_head_peak(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
