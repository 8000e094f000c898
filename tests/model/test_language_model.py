"""Multimodal models: their language model is read, planned, trained and exported; the rest is left alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from multimodal import FAMILIES, load_multimodal, write_multimodal
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from trapo_lite.config import ModelSection
from trapo_lite.core.errors import ConfigError, ModelError
from trapo_lite.model.base import load_base, model_config, model_lines, multimodal_type
from trapo_lite.model.packable import require_packable
from trapo_lite.model.shape import ModelShape


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    """Compute a row of text that is longer than the window and than the positions before Ministral's scaling."""
    ids = torch.arange(20)[None] * 7 % 256
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.fixture(scope="module", params=[(name, tied) for name in FAMILIES for tied in (True, False)], ids=str)
def multimodal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_type, tied = request.param
    return write_multimodal(model_type, tmp_path_factory.mktemp(model_type), tied=tied)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multimodal("gemma3", tmp_path_factory.mktemp("gemma3"), tied=True)


def section_of(folder: Path, **options: Any) -> ModelSection:
    return ModelSection(**{"name": str(folder), "dtype": "float32"} | options)


def rewrite_weights(folder: Path, names: dict[str, str | None]) -> None:
    """Replace the beginnings of names in a checkpoint; None: leave such weights out."""
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for old, new in names.items():
            if name.startswith(old):
                name = None if new is None else new + name.removeprefix(old)
                break
        if name is not None:
            weights[name] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
def test_the_base_computes_what_the_multimodal_class_computes_on_text(multimodal: Path, caplog) -> None:
    base = load_base(section_of(multimodal), device="cpu", attention="eager").eval()
    assert "LOAD REPORT" not in caplog.text
    full = load_multimodal(multimodal)
    assert type(base).__name__ != type(full).__name__ and not hasattr(base, "vision_tower")
    expected = logits_of(full)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits_of(base), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_weights_are_found_under_every_name_that_checkpoints_give_them(multimodal: Path, tmp_path: Path) -> None:
    """Releases of transformers put `model.` before or after `language_model.`, and the head inside or outside."""
    expected = logits_of(load_multimodal(multimodal))
    folder = shutil.copytree(multimodal, tmp_path / "other")
    names = [*load_file(folder / "model.safetensors")]
    is_outside = any(name.startswith("model.language_model.") for name in names)
    if is_outside:
        other = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    else:
        other = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
    rewrite_weights(folder, other)
    assert {*load_file(folder / "model.safetensors")}.isdisjoint(name for name in names if "language_model" in name)
    base = load_base(section_of(folder), device="cpu", attention="eager").eval()
    torch.testing.assert_close(logits_of(base), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_multimodal_checkpoint_that_lacks_weights_is_refused(gemma: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gemma, tmp_path / "lacking")
    [first] = {name.partition("layers.")[0] for name in load_file(folder / "model.safetensors") if "up_proj" in name}
    rewrite_weights(folder, {f"{first}layers.1.mlp.up_proj": None})
    with pytest.raises(ModelError, match=r"lack 1 weight, .*\(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        load_base(section_of(folder), device="cpu", attention="eager")
    untied = section_of(write_multimodal("gemma3", tmp_path / "untied", tied=False))
    rewrite_weights(tmp_path / "untied", {"lm_head.": None, "language_model.lm_head.": None})
    with pytest.raises(ModelError, match=r"lack 1 weight, .*\(lm_head\.weight\)"):
        load_base(untied, device="cpu", attention="eager")


@pytest.mark.slow
def test_sizes_are_those_of_the_language_model(multimodal: Path) -> None:
    config = model_config(section_of(multimodal))
    require_packable(config)
    shape = ModelShape.of(config, rank=4, targets="all-linear")
    full = load_multimodal(multimodal)
    own = {id(parameter): parameter.numel() for parameter in full.model.language_model.parameters()}
    own |= {id(parameter): parameter.numel() for parameter in full.get_output_embeddings().parameters()}
    assert shape.parameters == sum(own.values()) < sum(parameter.numel() for parameter in full.parameters())
    # 2 layers of q, k, v, o, gate, up, down; Qwen3.5's q also makes a gate of its own width.
    q = 128 if "qwen3_5" in config.model_type else 64
    assert shape.adapter_parameters == 2 * 4 * (64 + q + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 96))
    assert (shape.num_layers, shape.hidden_size, shape.num_sliding) == (2, 64, int("gemma3" in config.model_type))


def test_overrides_change_the_language_model(gemma: Path) -> None:
    assert model_config(section_of(gemma, config_overrides={"sliding_window": 4})).sliding_window == 4
    with pytest.raises(ConfigError, match=r"config_overrides\.mm_tokens_per_image: .* has no such field"):
        model_config(section_of(gemma, config_overrides={"mm_tokens_per_image": 4}))


def test_one_of_text_is_no_multimodal_model(gemma: Path, tmp_path: Path) -> None:
    assert multimodal_type(str(gemma)) == "gemma3"
    [line] = model_lines(section_of(gemma))
    assert line.endswith("of this multimodal model (gemma3) only the language model is used")
    config = model_config(section_of(gemma))
    assert config.architectures == ["Gemma3ForCausalLM"]
    config.save_pretrained(tmp_path)
    assert multimodal_type(str(tmp_path)) is None and model_lines(section_of(tmp_path)) == []
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(config)


def test_quantised_multimodal_weights_are_refused(gemma: Path, tmp_path: Path) -> None:
    fields = json.loads((gemma / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError, match="is quantised already"):
        model_config(section_of(tmp_path))


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl", "phi4_multimodal", "clip"])
def test_models_without_a_class_of_their_language_model_are_refused(model_type: str, tmp_path: Path) -> None:
    CONFIG_MAPPING[model_type]().save_pretrained(tmp_path)
    reason = rf"is a multimodal model \({model_type}\), and transformers has no class for its language model alone"
    with pytest.raises(ModelError, match=reason):
        model_config(section_of(tmp_path))
