"""The frozen base: its config, what of it can be trained here, its weights."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from trapo_lite.config import Config, ConfigError, ModelSection
from trapo_lite.config.folders import check_model_files
from trapo_lite.model_shape import ModelShape, is_target, meta_model

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns about an optional kernel whenever PEFT imports it
transformers_logging.disable_progress_bar()  # one bar per load, in the middle of the run's own display


class ModelError(RuntimeError):
    """The model cannot be loaded or trained as asked; the message says what to do."""


def model_config(section: ModelSection) -> PreTrainedConfig:
    """The model's config.json with `config_overrides` applied; refuses what the packed forward cannot compute."""
    check_model_files(section.name)
    try:
        config = AutoConfig.from_pretrained(section.name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, StrictDataclassError) as error:
        raise ModelError(f"model.name: cannot read {section.name!r}: {error}; give a model folder or hub id") from None
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
            raise ConfigError(f"model.config_overrides.{key}: found {value!r}: {error}; mend it") from None
    _refuse_what_packing_changes(config, section.name)
    return config


def model_shape(config: Config) -> ModelShape:
    """Sizes of the configured model and adapter; ModelError where its config.json cannot be read."""
    return ModelShape.of(model_config(config.model), rank=config.lora.r, targets=config.lora.target_modules)


def _refuse_what_packing_changes(config: PreTrainedConfig, name: str) -> None:
    """The packed forward computes full attention, without dropout, and plain hidden @ head^T logits."""
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"model.name: {name} is quantised already; take the weights it was made of, and model.quantize: nf4"
        )
    if getattr(config, "num_hidden_layers", 1) < 1:
        raise ModelError(f"model.name: {name} has {config.num_hidden_layers} layers; take one that has some")
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:  # Mistral, Phi-3: the field alone makes every layer slide
        layer_types = ["full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"]
    if set(layer_types) != {"full_attention"}:
        raise ModelError(
            f"model.name: {name} has layers of type {sorted(set(layer_types))}; take one with full attention"
        )
    if getattr(config, "attention_dropout", 0.0) != 0.0:
        raise ConfigError("model.config_overrides.attention_dropout: a shared token has one mask; set it to 0")
    for key in ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, key, None) not in (None, 1.0):
            raise ModelError(
                f"model.name: {name} has {key} {getattr(config, key)}, which is not computed here; take another"
            )


def load_base(
    section: ModelSection, *, device: torch.device | str, attention: str, on_one_rank: bool = False
) -> PreTrainedModel:
    """The frozen base in `section.dtype`, quantised if asked. ModelError where there are no weights to load.

    on_one_rank: let transformers leave the weights out on every rank but the first, if Accelerate's configuration says
    so; `Ranks.shard` hands them on.
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
            model = AutoModelForCausalLM.from_pretrained(
                section.name,
                config=config,
                dtype=getattr(torch, section.dtype),
                attn_implementation=attention,
                **options,
            )
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"model.name: cannot load {section.name!r}: {reason}; give a folder with weights") from None
    return model if options else model.to(device)  # type: ignore[arg-type]


@contextlib.contextmanager
def _on_every_rank() -> Iterator[None]:
    """Inside, transformers loads all weights on all ranks, whatever Accelerate's configuration for FSDP says."""
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


def check_targets(config: PreTrainedConfig, targets: str | list[str]) -> None:
    """ConfigError for a module name that no linear layer of the model has: PEFT ignores one among others silently.
    ModelError where the config describes no model."""
    try:
        model = meta_model(config)
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise ModelError(
            f"model.name: no model can be built from its config.json ({type(error).__name__}: {error}); compare "
            f"{config._name_or_path} with the original"
        ) from None
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets if isinstance(targets, list) else ():
        if not any(is_target(name, [target]) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names} - {"lm_head"})
            raise ConfigError(f"lora.target_modules: no layer is called {target!r}; there are {', '.join(known)}")


def check_rope(base: PreTrainedModel, section: ModelSection) -> None:
    """Do the rotary embeddings turn at the frequencies that `config_overrides` asks for? Other spellings are ignored
    silently by transformers. That the engine's are the same shows in the first comparison of log-probs."""
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
