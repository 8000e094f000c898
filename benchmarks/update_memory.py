"""An update at real shapes: seconds, tokens a second, share of the peak operations, memory measured against planned.

    python benchmarks/update_memory.py --shape 7B --completions 2048 4096 8192    # on a GPU
    python benchmarks/update_memory.py --quick                                    # the same paths, on anything

Random weights, LoRA r 64 on all linear layers, AdamW, gradient checkpointing; one TRAPO group with prompts of 256
tokens and a trace as long as a completion; base in bfloat16 and in NF4, each in a process of its own, because a peak
belongs to a process. Planned is what scripts/plan.py counts for the trainer, without CUDA's contexts. On the CPU a peak
is that of the whole process, libraries included, so there its ratio to the plan says little.
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

from trapo_lite.base_model import model_shape
from trapo_lite.device import peak_gib, peak_tflops, start_peak
from trapo_lite.gpus import GIB
from trapo_lite.memory_plan import plan_memory
from trapo_lite.policy import Policy
from trapo_lite.ranks import Ranks
from trapo_lite.update import make_optimizer, update_policy

PROMPT = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="0.1B, completions of 64 tokens")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1.5B")
    parser.add_argument("--completions", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--quantize", nargs="+", choices=["none", "nf4"], default=["none", "nf4"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs=3, metavar=("MODEL", "QUANTIZE", "COMPLETION"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        folder, quantize, completion = args.only
        print(json.dumps(measure(folder, quantize, int(completion), vocab_size=SHAPES[args.shape][-1])))
        return
    shape, completions = ("0.1B", [64]) if args.quick else (args.shape, args.completions)
    rows = []
    with scratch() as folder:
        World.random(shape, folder / "model")
        for quantize in args.quantize:
            for completion in completions:
                only = ["--only", str(folder / "model"), quantize, str(completion)]
                command = [sys.executable, __file__, "--shape", shape, *only]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if done.returncode != 0:
                    raise SystemExit(f"{shape}, {quantize}, {completion} tokens: failed, see above")
                rows.append({"shape": shape, **json.loads(done.stdout.splitlines()[-1])})
                print(json.dumps(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(folder: str, quantize: str, completion: int, *, vocab_size: int) -> dict[str, object]:
    """The second of two updates on one group."""
    ranks = Ranks()
    dtype = "bfloat16" if ranks.device.type == "cuda" else "float32"
    longest = completion + completion // 2  # half of the trace, then a completion
    config = World((f"model.name={folder}", f"model.dtype={dtype}", "run.deterministic=false")).config(
        f"model.quantize={quantize}",
        f"model.config_overrides={{max_position_embeddings: {2 * (PROMPT + longest)}}}",
        "model.gradient_checkpointing=true",
        "lora.r=64",
        f"data.max_prompt_tokens={PROMPT}",
        f"rollout.max_response_tokens={longest}",
        "rollout.engine=transformers",
        "train.tokens_per_batch=8192",
    )
    policy = Policy.load(config.model, config.lora, device=ranks.device)
    optimizer = make_optimizer(config.optim, policy.parameters)
    group = trapo_group(PROMPT, completion, completion, vocab_size=vocab_size)
    start_peak(ranks.device)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        report = update_policy(
            policy,
            optimizer,
            ALGORITHM,
            [group],
            ranks,
            lr=1e-5,
            grad_clip=1.0,
            num_updates=1,
            temperature=1.0,
            tokens_per_batch=config.train.tokens_per_batch,
        )
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    plan = plan_memory(config, model_shape(config), gpu_memory=80 * GIB)
    planned = (plan.trainer + plan.passing + plan.fragmentation) / GIB
    peak, tflops = peak_gib(ranks.device), peak_tflops(ranks.device)
    ranks.close()
    return {
        "device": torch.cuda.get_device_name() if ranks.device.type == "cuda" else "cpu",
        "quantize": quantize,
        "completion": completion,
        "packed_tokens": report.num_tokens,
        "tokens_per_batch": report.tokens_per_batch,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(report.num_tokens / seconds, 1),
        "flop_utilisation": None if tflops is None else round(report.tflop / seconds / tflops, 4),
        "peak_gib": round(peak, 3),
        "planned_gib": round(planned, 3),
        "peak_over_planned": round(peak / planned, 3),
    }


if __name__ == "__main__":
    main()
