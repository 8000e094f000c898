"""Measure which families of tests/families.py vLLM serves on the CPU, without and with the trainer's adapter.

    python benchmarks/vllm_families.py [--record] [FAMILY ...]

It prints one line of JSON a family: the largest difference of a token's log-prob from a freshly loaded model without
adapter, with it and with it merged, and of drawn tokens from the engine's own scores of them; or the step that failed
and why. vLLM is imported once, and each family runs in a fork: 10 seconds, or 30 where vLLM inspects a class first.
--record writes what it finds to tests/family_results.jsonl, which docs/models.md shows.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
LIMIT_S = 200
ROUNDING = 1e-4  # of a log-prob in float32
BOUND = {
    "nemotron-h, Mamba-2": 2e-3,  # measured: 1e-3, for a reason that was not found
    "apertus": 1e-2,  # measured: 5e-3; vLLM may hold the constants of its activation in bfloat16
}


MISSING_MODULE = "because the module "
# What the engine's errors say, in the words of docs/models.md.
REASONS = {
    "takes no adapters": "no adapters",
    "not supported": "no class",
    "it serves attention only": "no class for its layers without attention",
    "mixture of experts": "experts: no adapters on the CPU",
    "no kernel for its Mamba layers": "no kernel for Mamba on the CPU",
    "no kernel for its Gated DeltaNet layers": "no kernel for Gated DeltaNet on the CPU",
    "windows in all layers or in none": "windows in all layers or none",
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Return the result of one family. Call it in a process of its own: vLLM starts once in a process."""
    import torch
    from families import FAMILIES, write_model  # pyright: ignore[reportMissingImports]
    from peft import PeftModel
    from served_by_vllm import (  # pyright: ignore[reportMissingImports]
        IDS,
        fresh_scores,
        load_fresh,
        save_random_adapter,
        vllm_options,
        with_wide_heads,
    )

    from trapo_lite.engines import parity
    from trapo_lite.engines.vllm.worker import VLLMWorker

    result: dict[str, Any] = {"family": name}
    started, step = time.monotonic(), "trainer"

    def difference(expected: torch.Tensor) -> float:
        return float((torch.tensor(worker.score(tuple(IDS))) - expected).abs().max())

    try:
        base = write_model(with_wide_heads(FAMILIES[name]), folder / "model")
        adapter = save_random_adapter(base, folder / "adapter")
        fresh = load_fresh(base)
        before = fresh_scores(fresh)
        after = fresh_scores(PeftModel.from_pretrained(fresh, adapter).eval())
        result["effect"] = float((after - before).abs().mean())
        step = "start"
        worker = VLLMWorker(vllm_options(base, "float32"))
        step = "score"
        result["without"] = difference(before)
        step = "publish"
        result["unbound"] = worker.publish(adapter, 1)
        if not result["unbound"]:
            result["with"] = difference(after)
            result["checksum"] = worker.adapter_checksum() == parity.checksum(adapter, dtype=torch.float32)
            step = "draw"
            result["drawn"] = drawn_difference(worker, IDS)
            step = "merge"
            worker.merge()
            result["merged"] = difference(after)
    except Exception as error:
        result |= {"failed": step, "error": f"{type(error).__name__}: {error}"}
        traceback.print_exc()
    return result | {"seconds": round(time.monotonic() - started, 1)}


def drawn_difference(worker: Any, ids: list[int]) -> float:
    """Return the largest difference between log-probs of drawn tokens and the engine's own scores of them."""
    from trapo_lite.engines.base import SampleRequest

    prompt = tuple(ids[:10])
    worker.submit(SampleRequest("draw", prompt, seed=0, max_tokens=24))
    completions = []
    while not completions:
        completions = worker.poll()
    [completion] = completions
    scores = worker.score((*prompt, *completion.token_ids))[len(prompt) - 1 :]
    return max(abs(one - other) for one, other in zip(completion.logprobs, scores, strict=True))


def verdict(result: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return "yes" or "no" with the largest difference, if it was measured, and why it is "no".

    Raises ValueError if nothing was measured: it took too long, a module is missing, or the adapter has too little
    effect.
    """
    if result.get("failed") == "died":
        raise ValueError(f"{result['family']}: its process died, or took more than {LIMIT_S} s; see its log")
    error = result.get("error", "")
    if MISSING_MODULE in error:
        raise ValueError(f"{result['family']}: {error}")
    if "failed" in result:
        known = [reason for text, reason in REASONS.items() if text in error]
        return "no", {"why": known[0] if known else f"it fails at the step: {result['failed']}"}
    if result["unbound"]:
        return "no", {"why": f"no place for {len(result['unbound'])} of the adapter's layers"}
    if result["effect"] < 0.05:
        raise ValueError(f"{result['family']}: the adapter moves a log-prob by {result['effect']:.2g} only")
    difference = float(f"{max(result[key] for key in ('without', 'with', 'drawn', 'merged')):.1e}")
    if difference > BOUND.get(result["family"], ROUNDING):
        return "no", {"difference": difference, "why": f"its log-probs are off by {difference:.1g}"}
    if not result["checksum"]:
        return "no", {"why": "it holds another adapter"}
    return "yes", {"difference": difference}


def measure_in_fork(name: str, folder: Path) -> dict[str, Any]:
    """Return the result of one family from a fork of this process. Its log is FOLDER.log."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.alarm(LIMIT_S)
        os.write(writing, json.dumps(measure(name, folder)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(process, 0)
    return json.loads(answer) if answer else {"family": name, "failed": "died"}


def main() -> None:
    """Measure the families named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Measure which families vLLM serves on the CPU.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="of tests/families.py; default: all")
    parser.add_argument("--record", action="store_true", help="write the results to tests/family_results.jsonl")
    options = parser.parse_args()
    os.environ |= ENVIRONMENT  # before torch and vLLM are imported
    from families import FAMILIES  # pyright: ignore[reportMissingImports]
    from family_results import record_result  # pyright: ignore[reportMissingImports]

    unknown = [name for name in options.families if name not in FAMILIES]
    if unknown:
        parser.error(f"tests/families.py has no family {', '.join(map(repr, unknown))}")
    for module in ("vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker", "vllm.lora.worker_manager"):
        importlib.import_module(module)
    folder = Path(tempfile.mkdtemp(prefix="vllm-families-"))
    print(f"logs: {folder}", file=sys.stderr)
    for index, name in enumerate(options.families or FAMILIES):
        result = measure_in_fork(name, folder / f"{index:02d}")
        print(json.dumps(result), flush=True)
        if options.record:
            try:
                answer, figures = verdict(result)
            except ValueError as error:
                print(f"not recorded: {error}", file=sys.stderr)
                continue
            record_result(name, "vllm", answer, **figures)


if __name__ == "__main__":
    main()
