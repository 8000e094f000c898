"""Compare what vLLM serves with freshly loaded models: without an adapter, with the trainer's, and with it merged.

benchmarks/vllm_families.py measures them. Here it runs on the families that are trained most, one of each class; the
others were measured by it once. tests/family_results.jsonl holds what it found.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapter_folders import edited
from conftest import VLLM_DTYPE, VLLM_ROUNDING
from families import FAMILIES, MOST_TRAINED, write_model
from family_results import check_result
from peft import PeftModel
from served_by_vllm import IDS, fresh_scores, load_fresh, save_random_adapter, vllm_options, with_wide_heads
from vllm_families import verdict

from trapo_lite.core.errors import EngineError
from trapo_lite.engines import parity
from trapo_lite.engines.vllm import binding, served
from trapo_lite.engines.vllm.engine import VLLMEngine

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def measured() -> Iterator[Callable[[str], dict[str, Any]]]:
    """Return the result of a family, as soon as the one process that measures all has it."""
    process = subprocess.Popen(
        [sys.executable, "benchmarks/vllm_families.py", *MOST_TRAINED],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    results: dict[str, dict[str, Any]] = {}

    def result_of(name: str) -> dict[str, Any]:
        while name not in results:
            result = json.loads(process.stdout.readline())
            results[result["family"]] = result
        return results[name]

    yield result_of
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="the list is of vLLM's build for the CPU")
@pytest.mark.parametrize("name", MOST_TRAINED)
def test_vllm_serves_a_family_as_the_list_says(name: str, measured: Callable[[str], dict[str, Any]]) -> None:
    result, figures = verdict(measured(name))
    check_result(name, "vllm", result, **figures)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ("yes", {"difference": 2.0e-06})),
        ({"drawn": 0.03}, ("no", {"difference": 0.03, "why": "its log-probs are off by 0.03"})),
        ({"unbound": ["q", "k"]}, ("no", {"why": "no place for 2 of the adapter's layers"})),
        ({"checksum": False}, ("no", {"why": "it holds another adapter"})),
        ({"failed": "start", "error": "E: no"}, ("no", {"why": "it fails at the step: start"})),
        ({"failed": "start", "error": "its X takes no adapters"}, ("no", {"why": "no adapters"})),
    ],
    ids=["served", "other tokens", "unbound", "another adapter", "failed", "no adapters"],
)
def test_what_counts_as_served(change: dict[str, Any], expected: tuple[str, dict[str, Any]]) -> None:
    measurement = {"family": "llama", "unbound": [], "checksum": True, "effect": 0.4}
    measurement |= {"without": 1e-6, "with": 2e-6, "drawn": 1e-7, "merged": 1e-6}
    assert verdict(measurement | change) == expected


def test_a_process_that_died_a_missing_module_or_an_adapter_that_changes_nothing_measures_nothing() -> None:
    with pytest.raises(ValueError, match=r"llama: its process died"):
        verdict({"family": "llama", "failed": "died"})
    missing = "because the module torchvision is missing; install it"
    with pytest.raises(ValueError, match=r"llama: EngineError: .*the module torchvision is missing"):
        verdict({"family": "llama", "failed": "start", "error": f"EngineError: {missing}"})
    with pytest.raises(ValueError, match=r"llama: the adapter moves a log-prob by 0\.01 only"):
        verdict({"family": "llama", "unbound": [], "checksum": True, "effect": 0.01, "without": 0.0})


@pytest.mark.long
def test_an_adapter_with_a_module_that_vllm_lacks_is_refused_by_name(tmp_path: Path) -> None:
    """vLLM itself would ignore q_proj of a fifth layer without a word."""
    base = write_model(with_wide_heads(FAMILIES["llama"]), tmp_path / "model")
    adapter = save_random_adapter(base, tmp_path / "adapter")
    moved = edited(
        adapter,
        tmp_path / "moved",
        tensors=lambda tensors: {
            name.replace("layers.3.self_attn.q_proj", "layers.4.self_attn.q_proj"): tensor
            for name, tensor in tensors.items()
        },
    )
    engine = VLLMEngine(vllm_options(base, VLLM_DTYPE), log_path=tmp_path / "vllm.log", start_limit_s=300.0)
    try:
        before = engine.score(IDS)
        with pytest.raises(EngineError, match=r"no layer for 1 .*q_proj.*model\.layers\.4\.self_attn\.q_proj.*lora\."):
            engine.publish(moved, 1)
        assert engine.version is None and engine.adapter_checksum() is None and engine.score(IDS) == before
        engine.publish(adapter, 1)
        after = fresh_scores(PeftModel.from_pretrained(load_fresh(base), adapter).eval())
        torch.testing.assert_close(torch.tensor(engine.score(IDS)), after, rtol=0, atol=VLLM_ROUNDING)
        assert engine.adapter_checksum() == parity.checksum(adapter, dtype=getattr(torch, VLLM_DTYPE))
    finally:
        engine.close()


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="the list is of vLLM's build for the CPU")
@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("falcon", r"^rollout\.engine: set it to transformers.*FalconForCausalLM takes no adapters$"),
        ("bamba, Mamba-2", r"^rollout\.engine: set it to transformers.*but layer 0 is linear_attention$"),
        ("jamba, Mamba", r"^rollout\.engine: set it to transformers.*no kernel for its Mamba layers$"),
        ("qwen2, windows", r"^rollout\.engine: set it to transformers.*windows in all layers or in none"),
        ("lfm2 with experts, short convolutions", r"^rollout\.engine: set it to transformers.* mixture of experts$"),
    ],
)
def test_a_class_that_vllm_cannot_serve_is_refused_at_the_start(name: str, refusal: str, tmp_path: Path) -> None:
    base = write_model(with_wide_heads(FAMILIES[name]), tmp_path / "model")
    engine = VLLMEngine(vllm_options(base, VLLM_DTYPE), log_path=tmp_path / "vllm.log", start_limit_s=300.0)
    try:
        with pytest.raises(EngineError, match=refusal):
            engine.wait()
    finally:
        engine.close()
    assert "Loading safetensors" not in (tmp_path / "vllm.log").read_text()  # no weight was read


TYPES = {
    "bamba": ["linear_attention", "full_attention"],
    "lfm2": ["conv", "full_attention"],
    "olmo3": ["sliding_attention", "full_attention"],
    "nemotron_h": ["linear_attention", "mlp", "full_attention"],
}
BY_TRANSFORMERS = "vllm.model_executor.models.transformers"


@pytest.mark.parametrize(
    ("name", "module", "config", "on_gpu", "on_cpu"),
    [
        ("TransformersForCausalLM", BY_TRANSFORMERS, {"layer_types": TYPES["bamba"]}, "layer 0 is linear_", "layer 0"),
        ("TransformersForCausalLM", BY_TRANSFORMERS, {"layer_types": TYPES["olmo3"]}, None, None),
        ("TransformersForCausalLM", BY_TRANSFORMERS, {}, None, None),
        ("Lfm2ForCausalLM", "lfm2", {"layer_types": TYPES["lfm2"]}, None, None),
        ("Lfm2MoeForCausalLM", "lfm2_moe", {"layer_types": TYPES["lfm2"], "is_moe": True}, None, "mixture of experts"),
        ("NemotronHForCausalLM", "n", {"layer_types": TYPES["nemotron_h"], "is_moe": True}, None, None),
        ("NemotronHForCausalLM", "n", {"layer_types": ["moe"], "is_moe": True}, None, "mixture of experts"),
        ("JambaForCausalLM", "jamba", {"layer_types": TYPES["bamba"]}, None, "no kernel for its Mamba layers"),
        (
            "Qwen2ForCausalLM",
            "qwen2",
            {"layer_types": TYPES["olmo3"]},
            "all layers or in none",
            "all layers or in none",
        ),
        ("Qwen2ForCausalLM", "qwen2", {"layer_types": ["sliding_attention"] * 2}, None, None),
    ],
)
def test_what_vllm_accepts_and_cannot_run_is_known_before_it_reads_weights(
    name: str, module: str, config: dict[str, Any], on_gpu: str | None, on_cpu: str | None
) -> None:
    sizes = {"max_window_layers": 1, "num_hidden_layers": 2, "layer_types": config.get("layer_types")}
    model_config = SimpleNamespace(hf_text_config=SimpleNamespace(**sizes), is_moe=config.get("is_moe", False))
    model_class = type(name, (), {"__module__": module})
    for is_cpu, expected in ((False, on_gpu), (True, on_cpu)):
        lacking = served.lacking_of(model_config, model_class, is_cpu=is_cpu)
        assert (lacking is None) if expected is None else (lacking is not None and expected in lacking)


# ----- which slices of vLLM's layers a module has; each B here has as many rows as its value says, all of its own kind


def manager_of(layers: dict[str, list[int]], packed: dict[str, list[str]]) -> SimpleNamespace:
    """vLLM's layers with the rows of each of their slices; the rows of a slice hold its index, in slot 0."""
    modules = {
        name: SimpleNamespace(
            lora_a_stacked=tuple(torch.ones(1, 1, 2, 3) for _ in rows),
            lora_b_stacked=tuple(torch.full((1, 1, count, 2), float(index)) for index, count in enumerate(rows)),
        )
        for name, rows in layers.items()
    }
    return SimpleNamespace(modules=modules, packed_modules_mapping=packed, model=None)


@pytest.mark.parametrize(
    ("layers", "packed", "num_rows", "slices"),
    [
        ({"l.o": [4]}, {}, {"l.o": 4}, {"l.o": [0]}),
        ({"l.qkv": [4, 2, 2]}, {"qkv": ["q", "k", "v"]}, {"l.q": 4, "l.v": 2}, {"l.q": [0], "l.v": [2]}),
        ({"l.in": [4, 4, 2]}, {"in": ["in"]}, {"l.in": 10}, {"l.in": [0, 1, 2]}),
        ({"l.qkvz": [2, 2, 4, 4]}, {"qkvz": ["qkv", "z"]}, {"l.qkv": 8, "l.z": 4}, {"l.qkv": [0, 1, 2], "l.z": [3]}),
        ({"l.qkvz": [2, 2, 4, 4]}, {"qkvz": ["qkv", "z"]}, {"l.z": 4}, {"l.z": [3]}),
        ({"l.o": [4]}, {}, {"l.o": 3, "m.o": 4}, {}),
    ],
    ids=["plain", "stacked", "one in slices", "groups", "one of the groups", "other rows and names"],
)
def test_a_module_is_found_in_its_slices(
    layers: dict[str, list[int]],
    packed: dict[str, list[str]],
    num_rows: dict[str, int],
    slices: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(binding, "vllm_name", lambda model, name: name)
    found = binding.bound_modules(manager_of(layers, packed), num_rows)
    assert {name: list(bound.slices) for name, bound in found.items()} == slices
    for name, bound in found.items():
        a, b = bound.pair(slot=0)
        assert a.shape == (2, 3) and len(b) == num_rows[name] and b.unique().tolist() == slices[name]


def test_slices_that_do_not_share_their_a_have_another_checksum() -> None:
    layer = manager_of({"l.in": [1, 1]}, {}).modules["l.in"]
    right = binding.BoundModule(layer, range(2)).pair(slot=0)
    layer.lora_a_stacked[1].mul_(2)
    wrong = binding.BoundModule(layer, range(2)).pair(slot=0)
    assert wrong[0].shape != right[0].shape
