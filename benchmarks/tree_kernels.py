"""Measure attention over packed trees, kernel by kernel: seconds, memory, gradient error and compilations.

    python benchmarks/tree_kernels.py --json kernels.json                       # on a GPU: Qwen2.5's 1.5B and 7B shapes
    python benchmarks/tree_kernels.py --shapes 7B --tokens 8192 --dtypes bfloat16
    python benchmarks/tree_kernels.py --quick                                   # a tiny shape, on anything

One TRAPO group of eight rollouts, padded to the given number of tokens; random queries, keys and values. Ways to the
same output and gradient:

    flex           FlexAttention as the trainer calls it: grouped key-value heads, one kernel for every length
    flex_repeated  the same, with keys and values repeated for every query head
    flex_dynamic   the same as flex, one kernel for all lengths
    chains         SDPA chain by chain, the trainer's way without FlexAttention
    rows           SDPA over every rollout as a row of its own, nothing shared
    dense          SDPA with the (T, T) mask, up to --dense-tokens

Errors are |gradient - reference| / |reference|, the largest of output, dq, dk and dv. The reference is `dense` in
float64 up to --dense-tokens and `chains` in float32 beyond. FlexAttention has no backward pass on the CPU: there its
rows hold the forward pass only. A failed measurement is a row with its error. None starts after --limit seconds.
"""

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.utils
from dense_attention import dense_layout
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from train_step import trapo_group

from trapo_lite.core import tree
from trapo_lite.core.batching import bucket
from trapo_lite.core.tree import PackedBatch
from trapo_lite.model.tree_attention import Scores, TreeLayout, block_mask, chain_layout, flex_layout

# heads, key-value heads, size of a head
SHAPES = {"tiny": (4, 2, 32), "1.5B": (12, 2, 128), "7B": (28, 4, 128)}
LENGTHS = (1100, 1400, 1700, 2000, 2500, 3000, 3500, 4000)  # eight different buckets
DENSE_TOKENS = 2048

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shape, 1,024 tokens, two lengths")
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["tiny", "1.5B", "7B"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--ways", nargs="+", choices=sorted(WAYS), default=list(WAYS))
    parser.add_argument("--dense-tokens", type=int, default=DENSE_TOKENS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=240.0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, help="also written after every row")
    args = parser.parse_args()
    figures = measure(
        shapes=["tiny"] if args.quick else args.shapes,
        tokens=[1024] if args.quick else args.tokens,
        lengths=LENGTHS[:2] if args.quick else LENGTHS,
        dtypes=args.dtypes,
        ways=args.ways,
        dense_tokens=args.dense_tokens,
        repeats=args.repeats,
        limit=args.limit,
        json_file=args.json,
    )
    print(json.dumps(figures))


def measure(
    *,
    shapes: Sequence[str] = ("tiny", "1.5B", "7B"),
    tokens: Sequence[int] = (2048, 8192, 32768),
    lengths: Sequence[int] = LENGTHS,
    dtypes: Sequence[str] = ("bfloat16", "float32"),
    ways: Sequence[str] = ("flex", "flex_repeated", "flex_dynamic", "chains", "rows", "dense"),
    dense_tokens: int = DENSE_TOKENS,
    repeats: int = 5,
    limit: float = 240.0,
    json_file: Path | None = None,
) -> Row:
    """Return every row of the comparison, and the compilations for several lengths, with and without `dynamic`.

    All shapes and dtypes run at the smallest number of tokens; the larger numbers run in the first dtype, without the
    tiny shape.
    """
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[Row] = []
    figures: Row = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "shared_memory_per_block": shared_memory(device),
        "rows": rows,
    }

    def note(row: Row) -> None:
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if json_file is not None:
            json_file.write_text(json.dumps(figures) + "\n")

    def is_over() -> bool:
        return time.perf_counter() - started > limit

    def note_case(shape: str, dtype: str, num_tokens: int) -> None:
        if is_over():
            note({"kind": "case", "shape": shape, "dtype": dtype, "tokens": num_tokens, "skipped": "--limit is over"})
            return
        for row in compare(shape, dtype, num_tokens, device, ways, dense_tokens=dense_tokens, repeats=repeats):
            note(row)

    smallest, *longer = sorted(tokens)
    for dtype, shape in itertools.product(dtypes, shapes):
        note_case(shape, dtype, smallest)
    for dynamic in (False, True):
        if is_over():
            note({"kind": "lengths", "dynamic": dynamic, "skipped": "--limit is over"})
        else:
            note(over_lengths(lengths, device, dynamic=dynamic))
    for num_tokens, shape in itertools.product(longer, shapes):
        if shape != "tiny":
            note_case(shape, dtypes[0], num_tokens)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    return figures


def shared_memory(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


# ----- one batch


def make_batch(num_tokens: int, device: torch.device) -> PackedBatch:
    """Make a group of 4 + 2 + 1 + 1 rollouts of nearly `num_tokens` tokens, padded to exactly that many."""
    prompt = max(4, num_tokens // 64)
    completion = (num_tokens - prompt) * 11 // 100  # seven completions, and a trace as long as two of them
    group = trapo_group(prompt, 2 * completion, completion)
    return tree.pack([group], pad_to=num_tokens).to(device)


def make_inputs(shape: str, num_tokens: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Make query, key, value and the output's gradient from numbers that bfloat16 holds, the same in all dtypes."""
    heads, kv_heads, head_size = SHAPES[shape]
    generator = torch.Generator(device).manual_seed(0)
    widths = (heads, kv_heads, kv_heads, heads)
    return [
        torch.randn(1, width, num_tokens, head_size, generator=generator, device=device).bfloat16().to(dtype)
        for width in widths
    ]


# ----- the ways; each takes keys and values with the model's own number of heads


def as_trainer(make_layout: Callable[[PackedBatch], TreeLayout]) -> Callable[[PackedBatch], Attend]:
    def way(batch: PackedBatch) -> Attend:
        layout = make_layout(batch)

        def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
            return layout.attend(query, key, value, Scores(scaling))

        return attend if layout.is_grouped else repeating(attend)

    return way


def repeating(attend: Attend) -> Attend:
    def repeated(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        return attend(query, key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1), scaling)

    return repeated


def flex_dynamic(batch: PackedBatch) -> Attend:
    mask = block_mask(batch)

    def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        return compiled_for_any_length()(query, key, value, mask, scaling)

    return attend


@functools.cache
def compiled_for_any_length() -> Callable[..., Tensor]:
    """Compile a function of its own. Kernels are kept by function, so a call of `flex` never uses this one."""

    def any_length(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float) -> Tensor:
        return flex_attention(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)

    return torch.compile(any_length, dynamic=True)


def rows(batch: PackedBatch) -> Attend:
    """Attend along every path from a root to a leaf. A token's output is from the first row that holds it."""
    chains = tree.chains_of(batch)
    inner = {above for _, _, path in chains for above in path}
    seen: set[int] = set()
    plan = []
    for number, (_, _, above) in enumerate(chains):
        if number in inner:
            continue
        path = [*above, number]
        ids = [torch.arange(chains[part][0], chains[part][1], device=batch.input_ids.device) for part in path]
        is_new = [torch.full_like(own, part not in seen, dtype=torch.bool) for part, own in zip(path, ids, strict=True)]
        plan.append((torch.cat(ids), torch.cat(is_new)))
        seen.update(path)

    def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        output = torch.empty_like(query)
        for ids, is_new in plan:
            q, k, v = (tensor.index_select(2, ids) for tensor in (query, key, value))
            row = scaled_dot_product_attention(q, k, v, is_causal=len(ids) > 1, scale=scaling)
            output = output.index_copy(2, ids[is_new], row[:, :, is_new])
        return output

    return repeating(attend)


WAYS: dict[str, Callable[[PackedBatch], Attend]] = {
    "flex": as_trainer(flex_layout),
    "flex_repeated": lambda batch: repeating(as_trainer(flex_layout)(batch)),
    "flex_dynamic": flex_dynamic,
    "chains": as_trainer(chain_layout),
    "rows": rows,
    "dense": as_trainer(dense_layout),
}


# ----- measuring


def compare(
    shape: str,
    dtype_name: str,
    num_tokens: int,
    device: torch.device,
    ways: Sequence[str],
    *,
    dense_tokens: int,
    repeats: int,
) -> list[Row]:
    """Measure every way on one batch, one row each. A failed way is a row with its error."""
    batch, dtype = make_batch(num_tokens, device), getattr(torch, dtype_name)
    inputs = make_inputs(shape, num_tokens, dtype, device)
    is_small = num_tokens <= dense_tokens
    exact = torch.float64 if is_small else torch.float32
    reference = once(WAYS["dense" if is_small else "chains"](batch), [tensor.to(exact) for tensor in inputs])
    results = []
    for name in ways:
        if name == "dense" and not is_small:
            continue
        row: Row = {"kind": "case", "way": name, "shape": shape, "dtype": dtype_name, "tokens": num_tokens}
        has_backward = device.type == "cuda" or not name.startswith("flex")
        try:
            row |= timed(WAYS[name], batch, inputs, reference, repeats=repeats, has_backward=has_backward)
        except RuntimeError as error:  # also the compiler's errors and out of memory
            row["error"] = f"{type(error).__name__}: {str(error).strip()[-600:]}"
        results.append(row)
    return results


def once(attend: Attend, inputs: Sequence[Tensor], *, has_backward: bool = True) -> list[Tensor]:
    """Return the output and, if there is a backward pass, the gradients of query, key and value."""
    query, key, value, upstream = (tensor.detach() for tensor in inputs)
    scaling = query.shape[-1] ** -0.5
    if not has_backward:
        with torch.no_grad():
            return [attend(query, key, value, scaling)]
    for leaf in (query, key, value):
        leaf.requires_grad_()
    output = attend(query, key, value, scaling)
    return [output.detach(), *torch.autograd.grad(output, (query, key, value), upstream)]


def timed(
    way: Callable[[PackedBatch], Attend],
    batch: PackedBatch,
    inputs: Sequence[Tensor],
    reference: Sequence[Tensor],
    *,
    repeats: int,
    has_backward: bool,
) -> Row:
    """Measure seconds of forward and backward, of the first call with compilation, memory beyond inputs, and errors."""
    is_cuda = inputs[0].device.type == "cuda"
    compiled_before = num_compiled()
    started = time.perf_counter()
    attend = way(batch)
    results = once(attend, inputs, has_backward=has_backward)
    first = settled(started, is_cuda)
    errors = [relative_error(result, exact) for result, exact in zip(results, reference, strict=False)]
    del results
    num_new, seconds, peak = num_compiled() - compiled_before, [], None
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    for _ in range(repeats):
        started = time.perf_counter()
        once(attend, inputs, has_backward=has_backward)
        seconds.append(settled(started, is_cuda))
    if is_cuda:
        peak = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    return {
        "passes": "forward and backward" if has_backward else "forward alone: FlexAttention has no backward on the CPU",
        "seconds": float(f"{statistics.median(seconds):.4g}"),
        "first_seconds": round(first, 2),
        "num_compiled": num_new,
        "peak_mib": peak,
        "relative_error": float(f"{max(errors):.3g}"),
        "relative_errors": {
            name: float(f"{error:.3g}") for name, error in zip(("output", "dq", "dk", "dv"), errors, strict=False)
        },
    }


def settled(started: float, is_cuda: bool) -> float:
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def relative_error(result: Tensor, exact: Tensor) -> float:
    return ((result.to(exact.dtype) - exact).norm() / exact.norm()).item()


def num_compiled() -> int:
    """Return the number of graphs that torch.compile has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def over_lengths(lengths: Sequence[int], device: torch.device, *, dynamic: bool) -> Row:
    """Run padded batches of different lengths one after the other, as in a run, then all of them again.

    On the CPU it runs the forward pass of the tiny shape; on a GPU forward and backward at the 1.5B shape.
    """
    is_cuda = device.type == "cuda"
    shape = "1.5B" if is_cuda else "tiny"
    row: Row = {"kind": "lengths", "shape": shape, "dynamic": dynamic}
    torch._dynamo.reset()
    way = flex_dynamic if dynamic else WAYS["flex"]
    padded = [bucket(length) for length in lengths]
    try:
        for key in ("first", "again"):
            compiled_before, started = num_compiled(), time.perf_counter()
            for num_tokens in padded:
                batch = make_batch(num_tokens, device)
                once(way(batch), make_inputs(shape, num_tokens, torch.bfloat16, device), has_backward=is_cuda)
            row[f"{key}_seconds"] = round(settled(started, is_cuda), 2)
            row[f"{key}_compiled"] = num_compiled() - compiled_before
    except RuntimeError as error:
        row["error"] = f"{type(error).__name__}: {str(error).strip()[-600:]}"
    return row | {"lengths": padded}


if __name__ == "__main__":
    main()
