"""Build the worlds of the rollout benchmarks: the tiny world, or random weights in the shape of a real model."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from trapo_lite.config import Config, load_config
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.engines.start import start_engine
from trapo_lite.engines.vllm.options import servable_dtype

TINY_CONFIG = "configs/tiny_cpu.yaml"
MAX_MODEL_LEN = 512
# hidden size, layers, heads, key-value heads, intermediate size, vocabulary; the last two are Qwen2.5's
SHAPES = {
    "tiny": (128, 2, 4, 2, 256, 512),
    "0.1B": (768, 12, 12, 4, 2048, 4096),
    "1.5B": (1536, 28, 12, 2, 8960, 151936),
    "7B": (3584, 28, 28, 4, 18944, 152064),
}


@dataclass(frozen=True)
class World:
    """Hold overrides of configs/tiny_cpu.yaml."""

    overrides: tuple[str, ...] = ()

    @classmethod
    def random(cls, shape: str, folder: Path) -> "World":
        """Write random weights of a shape in bfloat16. They are served in bfloat16 on a GPU and float32 elsewhere."""
        from transformers import Qwen2Config, Qwen2ForCausalLM

        hidden, layers, heads, kv_heads, intermediate, vocabulary = SHAPES[shape]
        config = Qwen2Config(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=intermediate,
            vocab_size=vocabulary,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"), bfloat16_by_default():
            model = Qwen2ForCausalLM(config)
        model.save_pretrained(folder)
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next measurement in this process starts with an empty card
        return cls((f"model.name={folder}", f"model.dtype={servable_dtype()}", "run.deterministic=false"))

    def config(self, *overrides: str) -> Config:
        return load_config([TINY_CONFIG], [*self.overrides, *overrides])


TINY = World((f"model.dtype={servable_dtype()}",))


@contextlib.contextmanager
def bfloat16_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="rollout-benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def start(world: World, folder: Path, *, can_merge: bool = False) -> Iterator[RolloutEngine]:
    """Start the engine that a run in this world would have."""
    config = world.config(f"rollout.merge={json.dumps('in_place' if can_merge else 'never')}")
    device = 0 if torch.cuda.is_available() else None
    engine = start_engine(config, max_model_len=MAX_MODEL_LEN, log_path=folder / "engine.log", device_index=device)
    try:
        yield engine
    finally:
        engine.close()
