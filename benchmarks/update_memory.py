"""Measure an update at real shapes: seconds, tokens a second, share of the peak operations, memory against the plan.

    python benchmarks/update_memory.py --shape 7B --tokens 8192 32768    # on a GPU
    python benchmarks/update_memory.py --quick                           # the same paths, on anything

Random weights, LoRA r 64 on all linear layers, AdamW; one TRAPO group that fills a forward pass of so many packed
tokens, with prompts of 256 tokens and a trace as long as a completion; base in bfloat16 and in NF4, each in a process
of its own, because a peak belongs to a process. Planned is what scripts/plan.py counts for the trainer, without CUDA's
contexts. On the CPU a peak is that of the whole process, libraries included: there its ratio to the plan says little.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from train_step import ALGORITHM, trapo_group
from worlds import SHAPES, World, scratch

from trapo_lite.config import Config
from trapo_lite.core.types import Mean
from trapo_lite.model.base import model_shape
from trapo_lite.model.policy import Policy
from trapo_lite.planning.memory import plan_memory
from trapo_lite.run.device import peak_gib, peak_tflops, start_peak
from trapo_lite.run.gpus import GIB
from trapo_lite.run.processes import Ranks
from trapo_lite.training.update import Updater

PROMPT = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="0.1B, passes of 1024 tokens")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1.5B")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--quantize", nargs="+", choices=["none", "nf4"], default=["none", "nf4"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs=3, metavar=("MODEL", "QUANTIZE", "TOKENS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        folder, quantize, tokens = args.only
        ranks = Ranks()
        config, policy = load(Path(folder), ranks, quantize=quantize, num_tokens=int(tokens))
        print(json.dumps(measure(config, policy, ranks)))
        ranks.close()
        return
    shape, sizes = ("0.1B", [1024]) if args.quick else (args.shape, args.tokens)
    rows = []
    with scratch() as folder:
        World.random(shape, folder / "model")
        for quantize in args.quantize:
            for tokens in sizes:
                only = ["--only", str(folder / "model"), quantize, str(tokens)]
                command = [sys.executable, __file__, "--shape", shape, *only]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if done.returncode != 0:
                    raise SystemExit(f"{shape}, {quantize}, {tokens} tokens: failed, see above")
                rows.append({"shape": shape, **json.loads(done.stdout.splitlines()[-1])})
                print(json.dumps(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def load(
    folder: Path, ranks: Ranks, *, quantize: str, num_tokens: int, is_checkpointing: bool = True
) -> tuple[Config, Policy]:
    """Load a policy on this process's device, with a configuration whose forward passes hold `num_tokens` tokens."""
    dtype = "bfloat16" if ranks.device.type == "cuda" else "float32"
    config = World((f"model.name={folder}", f"model.dtype={dtype}", "run.deterministic=false")).config(
        f"model.quantize={quantize}",
        f"model.config_overrides={{max_position_embeddings: {2 * num_tokens}}}",
        f"model.gradient_checkpointing={str(is_checkpointing).lower()}",
        "lora.r=64",
        f"data.max_prompt_tokens={PROMPT}",
        f"rollout.max_response_tokens={completion_tokens(num_tokens) * 3 // 2}",  # half of the trace, then a completion
        "rollout.engine=transformers",
        f"train.tokens_per_batch={num_tokens}",
        "train.check_packing=false",
    )
    return config, Policy.load(config.model, config.lora, device=ranks.device)


def completion_tokens(num_tokens: int) -> int:
    """Return the length of the trace and the seven completions of a group with `num_tokens` packed tokens."""
    return (num_tokens - PROMPT) // 8


def measure(config: Config, policy: Policy, ranks: Ranks) -> dict[str, object]:
    """Measure the second of two updates on one group. The first compiles and makes the optimizer's state."""
    completion = completion_tokens(config.train.tokens_per_batch)
    group = trapo_group(PROMPT, completion, completion, vocab_size=policy.model.config.vocab_size)
    updater = Updater(config, policy, lambda step: ALGORITHM, ranks)
    seconds: list[float] = []
    for _ in range(2):
        start_peak(ranks.device)
        started = time.perf_counter()
        metrics = {
            name: value.value if isinstance(value, Mean) else value
            for name, value in updater.update(0, [group]).items()
        }
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    plan = plan_memory(config, model_shape(config), gpu_memory=80 * GIB)
    planned = (plan.trainer + plan.passing + plan.fragmentation) / GIB
    peak, tflops = peak_gib(ranks.device), peak_tflops(ranks.device)
    is_cuda = ranks.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "quantize": config.model.quantize,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "packed_tokens": metrics["train/tokens"],
        "tokens_per_batch": metrics["train/tokens_per_batch"],
        "first_seconds": round(seconds[0], 3),
        "seconds": round(seconds[1], 3),
        "tokens_per_second": round(metrics["train/tokens"] / seconds[1], 1),
        "flop_utilisation": None if tflops is None else round(metrics["train/tflop"] / seconds[1] / tflops, 4),
        "peak_gib": round(peak, 3),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 3) if is_cuda else None,
        "planned_gib": round(planned, 3),
        "peak_over_planned": round(peak / planned, 3),
    }


if __name__ == "__main__":
    main()
