"""A tiny base with random weights and adapters on it, made once per test session; one thread for torch."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from trapo_lite.engines.vllm.options import servable_dtype

torch.set_num_threads(1)

VLLM_DTYPE = servable_dtype()  # of a real vLLM in the tests: float32, but on CUDA it takes no adapters in that
VLLM_ROUNDING = {"float32": 1e-4, "bfloat16": 0.2}[VLLM_DTYPE]  # of one log-prob, against the same model in float32

# Quick: few cases, the same each time. TRAPO_LITE_FUZZ=500 (`make fuzz`): so many of each kind, new ones each time.
NUM_FUZZ = int(os.environ.get("TRAPO_LITE_FUZZ", "0"))
BOUNDED = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}  # tests/fuzzing.py bounds
settings.register_profile("quick", max_examples=15, derandomize=True, **BOUNDED)
settings.register_profile("long", max_examples=max(1, NUM_FUZZ), print_blob=True, **BOUNDED)
settings.load_profile("long" if NUM_FUZZ else "quick")

TINY_VOCAB = 96
TINY_MAX_LEN = 640
TINY_RANK = 6  # not one of vLLM's ranks, so that its padding is tested too


LOOK_INTO_SHARED_MEMORY = ("test_end_to_end", "test_engines_process", "test_engines_server")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers, a file's tests stay together, and so do those that look for things left in /dev/shm."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "shared memory" if Path(file).stem in LOOK_INTO_SHARED_MEMORY else file

    return ByFile(config, log)


OFFICIAL_FILES = {
    "aime24": "valid.aime.parquet",
    "aime25": "valid.aime25.parquet",
    "amc": "valid.amc.parquet",
    "math500": "valid.math.parquet",
    "minerva": "valid.minerva.parquet",
    "olympiad": "valid.olympiad_bench.parquet",
    "gsm8k": "gsm8k_test.jsonl",
    "arc": "valid.arc_c.parquet",
    "mmlu_pro": "mmlu_pro_140.jsonl",
}


@pytest.fixture(scope="session")
def shared_benchmarks() -> Path:
    """The official evaluation files, which are no part of this repository."""
    folder = Path(os.environ.get("TRAPO_LITE_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "benchmarks"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}; TRAPO_LITE_SHARED names another place")
    return folder


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 base of two layers, grouped-query attention, and float32 weights large enough for peaked logits."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=TINY_VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,  # head_dim 32: the CPU kernels of vLLM have none for 16
        max_position_embeddings=TINY_MAX_LEN,
        tie_word_embeddings=True,
        initializer_range=0.12,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny_model")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_adapter(seed, alpha=12.0, scale=0.1): folder of a LoRA adapter on the tiny base; B random of std `scale`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def make(seed: int, *, alpha: float = 12.0, scale: float = 0.1) -> Path:
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        torch.manual_seed(seed)
        config = LoraConfig(r=TINY_RANK, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=scale)
        folder = tmp_path_factory.mktemp(f"adapter-{seed}")
        model.save_pretrained(str(folder))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_adapter_dir(make_adapter: Callable[..., Path]) -> Path:
    return make_adapter(1)


@pytest.fixture(scope="session")
def other_adapter_dir(make_adapter: Callable[..., Path]) -> Path:
    return make_adapter(2)
