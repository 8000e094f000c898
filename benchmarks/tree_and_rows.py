"""Measure what the packed tree saves over rows, for full attention, sliding windows and Gated DeltaNet.

    python benchmarks/tree_and_rows.py                # about 10 minutes on two cores
    python benchmarks/tree_and_rows.py --quick        # one repetition

A TRAPO group (prompt 128, trace 1024, completions 384 tokens; 4 + 2 + 1 + 1 rollouts at 0, 25, 50 and 100 % of the
trace) and one gradient, by `model.layout: tree` and `rows`, which take turns in one process; only their ratio means
something. Random weights, 8 layers. Peak memory is that of a process which computes one gradient, less what it holds
before.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from train_step import ALGORITHM, TIMED, trapo_group
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from trapo_lite.config import LoraSection, ModelSection
from trapo_lite.core.algorithm import TokenLogprobs, count_normalizers, policy_loss
from trapo_lite.core.batching import cut
from trapo_lite.core.types import Group
from trapo_lite.model.policy import Policy

SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "intermediate_size": 1152,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "full attention (Qwen3)": ("qwen3", {}),
    "5 windows of 512 : 1 full (Gemma 3)": (
        "gemma3_text",
        {
            "sliding_window": 512,
            "layer_types": [*["sliding_attention"] * 5, "full_attention", *["sliding_attention"] * 2],
        },
    ),
    "3 Gated DeltaNet : 1 full (Qwen3.5)": (
        "qwen3_5_text",
        {
            "layer_types": [*["linear_attention"] * 3, "full_attention"] * 2,
            **{"linear_num_key_heads": 4, "linear_num_value_heads": 4},
            **{"linear_key_head_dim": 64, "linear_value_head_dim": 64},
        },
    ),
}
LAYOUTS = ("tree", "rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--peak", nargs=2, metavar=("FOLDER", "LAYOUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.peak:
        print(json.dumps(peak_mib(*args.peak)))
        return
    figures: dict[str, object] = {}
    with TemporaryDirectory() as folder:
        for number, (kind, (model_type, options)) in enumerate(KINDS.items()):
            path = Path(folder) / str(number)
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**SIZES | options)).save_pretrained(path)
            figures[kind] = measure(str(path), repeats=1 if args.quick else 5)
            print(json.dumps({kind: figures[kind]}), flush=True)


def measure(path: str, *, repeats: int) -> dict[str, float]:
    policies = {layout: load(path, layout) for layout in LAYOUTS}
    gradients = {layout: gradient(policy) for layout, policy in policies.items()}  # also warms up
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for _ in range(repeats):
        for layout, policy in policies.items():
            started = time.perf_counter()
            gradient(policy)
            seconds[layout].append(time.perf_counter() - started)
    medians = {layout: statistics.median(times) for layout, times in seconds.items()}
    difference = (gradients["tree"] - gradients["rows"]).norm() / gradients["rows"].norm()
    command = [sys.executable, __file__, "--peak", path]
    peaks = {layout: float(subprocess.check_output([*command, layout]).split()[-1]) for layout in LAYOUTS}
    return {
        "rows_over_tree_seconds": round(medians["rows"] / medians["tree"], 2),
        "rows_over_tree_peak": round(peaks["rows"] / peaks["tree"], 2),
        **{f"{layout}_seconds": round(medians[layout], 2) for layout in LAYOUTS},
        **{f"{layout}_peak_mib": round(peaks[layout]) for layout in LAYOUTS},
        "difference": float(f"{difference:.1e}"),
    }


def load(path: str, layout: str) -> Policy:
    section = ModelSection.model_validate({"name": path, "dtype": "float32", "layout": layout})
    torch.manual_seed(0)
    policy = Policy.load(section, LoraSection(r=16, alpha=16), device="cpu")
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.add_(0.01 * torch.randn(parameter.shape))
    return policy


def gradient(policy: Policy) -> torch.Tensor:
    """Compute the gradient of TRAPO's loss, by one tree or rollout by rollout."""
    group = trapo_group(*TIMED)
    normalizers = count_normalizers(ALGORITHM, [group])
    policy.adapter.clear_gradient()
    parts: list[Group] = [group] if policy.layout == "tree" else cut([group], budget=1)
    for part in parts:
        batch = policy.prepare([part])
        forward = TokenLogprobs(*policy.token_logprobs(batch, temperature=1.0))
        policy_loss(ALGORITHM, forward, batch, normalizers)[0].backward()
    return policy.adapter.flat_gradient()


def peak_mib(path: str, layout: str) -> float:
    policy = load(path, layout)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status_mib("VmRSS")
    gradient(policy)
    return status_mib("VmHWM") - before


def status_mib(field: str) -> float:
    """Return a size of this process as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
