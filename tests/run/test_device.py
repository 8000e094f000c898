"""What a GPU must have, asked of properties that stand in for cards which are not here."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Config

from trapo_lite.config import ModelSection
from trapo_lite.core.errors import ConfigError
from trapo_lite.model.layout import choose_attention

CARD = torch.device("cuda", 0)


def pretend(monkeypatch: pytest.MonkeyPatch, *, shared_memory: int) -> None:
    properties = SimpleNamespace(shared_memory_per_block=49_152, shared_memory_per_block_optin=shared_memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)


@pytest.mark.parametrize(
    ("shared_memory", "dtype", "heads", "attention"),
    [
        (101_376, "bfloat16", 28, "flex"),  # RTX 3090, 4090, A10G, L4: heads of 128
        (101_376, "float32", 28, "sdpa"),
        (101_376, "float32", 56, "flex"),  # heads of 64
        (101_376, "bfloat16", 14, "sdpa"),  # heads of 256
        (166_912, "float32", 28, "flex"),  # A100
        (232_448, "float32", 28, "flex"),  # H100
    ],
)
def test_auto_takes_flex_attention_where_its_kernels_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path, shared_memory: int, dtype: str, heads: int, attention: str
) -> None:
    pretend(monkeypatch, shared_memory=shared_memory)
    Qwen2Config(hidden_size=3584, num_attention_heads=heads, num_key_value_heads=1).save_pretrained(tmp_path)
    lines: list[str] = []

    def choose(asked: str) -> str:
        section = ModelSection.model_validate({"name": str(tmp_path), "dtype": dtype, "attention": asked})
        return choose_attention(section, CARD, lines.append)

    assert choose("sdpa") == "sdpa" and lines == []
    assert choose("auto") == attention
    if attention == "sdpa":
        assert len(lines) == 1 and "more shared memory than this GPU has" in lines[0] and dtype in lines[0]
        with pytest.raises(ConfigError, match=r"model\.attention: .* set it to auto or sdpa"):
            choose("flex")
    else:
        assert lines == [] and choose("flex") == "flex"
