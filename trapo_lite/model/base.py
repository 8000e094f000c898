"""The frozen base: its config, what of it can be trained here, its weights."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from trapo_lite.config import Config, ModelSection
from trapo_lite.config.paths import check_model_files
from trapo_lite.core.errors import ConfigError, ModelError
from trapo_lite.model.shape import FAILURES, ModelShape

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns about an optional kernel whenever PEFT imports it
transformers_logging.disable_progress_bar()  # one bar per load, in the middle of the run's own display


SENSES = ("vision_config", "audio_config")
"""Parts of a multimodal configuration, also of one that has its language model's sizes in itself."""


def model_config(section: ModelSection) -> PreTrainedConfig:
    """Return the model's config.json with `config_overrides` applied.

    ModelError or ConfigError for what the packed forward cannot compute.
    """
    check_model_files(section.name)
    try:
        config = AutoConfig.from_pretrained(section.name)
    except (OSError, StrictDataclassError, *FAILURES) as error:
        raise ModelError(f"model.name: cannot read {section.name!r}: {error}; give a model folder or hub id") from None
    if config.get_text_config() is not config or not config.sub_configs.keys().isdisjoint(SENSES):
        raise ModelError(
            f"model.name: {section.name} is a multimodal model ({config.model_type}), whose language model has a "
            "configuration of its own; take a model of text only"
        )
    for key, value in section.config_overrides.items():
        if key == "rope_theta":
            raise ConfigError(
                "model.config_overrides.rope_theta: transformers ignores it without a word; write "
                f"rope_parameters: {{rope_type: default, rope_theta: {value}}}"
            )
        if not hasattr(config, key):
            raise ConfigError(f"model.config_overrides.{key}: {section.name} has no such field; check config.json")
        try:
            setattr(config, key, value)
        except StrictDataclassError as error:
            raise ConfigError(f"model.config_overrides.{key}: found {value!r}: {error}; correct it") from None
    _refuse_what_packing_changes(config, section.name)
    return config


def model_shape(config: Config) -> ModelShape:
    """Return the sizes of the configured model and adapter; ModelError where its config.json cannot be read."""
    return ModelShape.of(model_config(config.model), rank=config.lora.r, targets=config.lora.target_modules)


def _refuse_what_packing_changes(config: PreTrainedConfig, name: str) -> None:
    """Raise ModelError for anything but full attention and plain hidden @ head^T logits."""
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"model.name: {name} is quantised already; take the weights it was made of, and model.quantize: nf4"
        )
    if getattr(config, "num_hidden_layers", None) == 0:
        raise ModelError(f"model.name: {name} has {config.num_hidden_layers} layers; take one that has some")
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:  # Mistral, Phi-3: the field alone makes every layer slide
        layer_types = ["full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"]
    if set(layer_types) != {"full_attention"}:
        raise ModelError(
            f"model.name: {name} has layers of type {sorted(set(layer_types))}; take one with full attention"
        )
    for key in ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, key, None) not in (None, 1.0):
            raise ModelError(
                f"model.name: {name} has {key} {getattr(config, key)}, which is not computed here; take another"
            )


def check_positions(config: PreTrainedConfig, name: str, *, longest: int) -> None:
    """Raise ConfigError if the model has not enough positions, or if the frequencies of its RoPE depend on the length.

    RoPE of type longrope changes its frequencies past `original_max_position_embeddings`, of type dynamic past
    `max_position_embeddings`, and then for all sequences of a batch: rollouts that are packed together would not be
    computed as they are alone. An engine chooses by the longest sequence that it is started for.

    longest: tokens of the longest sequence
    """
    what = f"data.max_prompt_tokens + rollout.max_response_tokens (or eval's): {longest} tokens, but {name}"
    available = num_positions(config)
    for kind, original in _changing_rope(config).items():
        limit = available if original is None else original
        if longest > limit:
            raise ConfigError(
                f"{what} has RoPE of type {kind}, whose frequencies for all sequences of a batch change when one has "
                f"more than {limit}; lower them to that"
            )
    if longest > available:
        raise ConfigError(
            f"{what} has positions for {available}; lower them or raise max_position_embeddings in "
            "model.config_overrides"
        )


def num_positions(config: PreTrainedConfig) -> int:
    """Return the longest sequence of the model; raise ModelError if its configuration does not say."""
    available = getattr(config, "max_position_embeddings", None)
    if not isinstance(available, int):
        raise ModelError(
            f"model.name: the configuration of {config.model_type} has no max_position_embeddings; take another model"
        )
    return available


def _changing_rope(config: PreTrainedConfig) -> dict[str, int | None]:
    """Return the kinds of RoPE in use that depend on the length, each with the longest length at which it does not yet.

    None as length: the configuration does not say. They stand in `rope_parameters`, for all layers or for each type of
    layer, or in `rope_scaling`, its older spelling.
    """
    kinds: dict[str, int | None] = {}
    for field in ("rope_parameters", "rope_scaling"):
        parameters = getattr(config, field, None) or {}
        nested = [value for value in parameters.values() if isinstance(value, dict)]
        for rope in nested or [parameters]:
            kind = rope.get("rope_type", rope.get("type"))
            if kind == "longrope" or (isinstance(kind, str) and "dynamic" in kind):
                own = getattr(config, "original_max_position_embeddings", None)
                kinds[kind] = (own or rope.get("original_max_position_embeddings")) if kind == "longrope" else None
    return kinds


def load_base(
    section: ModelSection, *, device: torch.device | str, attention: str, on_one_rank: bool = False
) -> PreTrainedModel:
    """Load the frozen base in `section.dtype`, quantised if asked. ModelError where there are no weights to load.

    on_one_rank: let transformers leave the weights out on every rank but the first, if Accelerate's configuration says
    so; `Ranks.shard` distributes them.
    """
    options: dict[str, Any] = {}
    if torch.device(device).type != "cpu":  # weight by weight: never the whole base in the host's memory, on every rank
        options["device_map"] = {"": torch.device(device)}
    if section.quantize == "nf4":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, section.dtype),
        )
        options["device_map"] = {"": torch.device(device)}
    config = model_config(section)
    try:
        with contextlib.nullcontext() if on_one_rank else _on_every_rank():
            both = AutoModelForCausalLM.from_pretrained(
                section.name,
                config=config,
                dtype=getattr(torch, section.dtype),
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=not on_one_rank,  # they are named below
                **options,
            )
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"model.name: cannot load {section.name!r}: {reason}; give a folder with weights") from None
    except (AttributeError, ImportError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"model.name: transformers cannot load {section.name!r} with the attention {attention} "
            f"({type(error).__name__}: {error}); take another model"
        ) from None
    model, loaded = cast("tuple[PreTrainedModel, dict[str, Any]]", both)
    if not on_one_rank:  # else the other ranks have no weights yet
        _require_all_weights(loaded, section.name)
    return model if options else model.to(device)  # type: ignore[arg-type]


def _require_all_weights(loaded: dict[str, Any], name: str) -> None:
    """Raise ModelError if a weight is not in the model's files: transformers puts random numbers in its place."""
    lacking = sorted({*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])})
    if lacking:
        raise ModelError(
            f"model.name: the files of {name!r} lack {len(lacking)} weights, or hold them in another shape "
            f"({lacking[0]}); copy the model's files again, or correct config.json or model.config_overrides"
        )


@contextlib.contextmanager
def _on_every_rank() -> Iterator[None]:
    """Have transformers load all weights on all ranks inside, whatever Accelerate's configuration for FSDP says."""
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def check_rope(base: PreTrainedModel, section: ModelSection) -> None:
    """Raise ConfigError unless RoPE has the frequencies that `config_overrides` asks for.

    Transformers ignores other spellings without a word. The engine's frequencies show in the first comparison of
    log-probs.
    """
    rope = section.config_overrides.get("rope_parameters")
    if not rope or rope.get("rope_type", "default") != "default" or "rope_theta" not in rope:
        return
    buffers = dict(base.get_decoder().named_buffers())
    found = buffers["rotary_emb.inv_freq"].float().cpu()
    steps = torch.arange(found.numel(), dtype=torch.float32) / found.numel()
    expected = float(rope["rope_theta"]) ** -steps
    if not torch.allclose(found, expected, rtol=1e-3):
        raise ModelError(
            f"model.config_overrides.rope_parameters: theta {rope['rope_theta']} did not reach {section.name}: its "
            f"slowest frequency is {found[-1]:.3g} instead of {expected[-1]:.3g}; compare with the model's config.json"
        )


SAMPLES, SAMPLE_BYTES = 64, 1 << 16  # of each file of weights: pieces at equal distances, the header among them


def check_weight_files(name: str) -> None:
    """Raise ModelError if a local model's folder lacks weights or holds a damaged file; only headers are read.

    Files of other kinds than safetensors are left to whoever loads them.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    if not any(file.suffix in (".safetensors", ".bin", ".pt", ".gguf") for file in folder.iterdir()):
        raise ModelError(f"model.name: cannot load {name!r}: it holds no weights; give a folder with weights")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(f"model.name: {file} is damaged: {error}; copy the model's files again") from None


def weights_fingerprint(name: str) -> str:
    """Return a hash of the weights in a local folder: file names, sizes and samples. A hub id stands for itself."""
    digest = hashlib.sha256()
    for file in sorted(Path(name).glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for sample in range(SAMPLES):
                content.seek(sample * size // SAMPLES)
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16] if Path(name).is_dir() else name
