"""Load the frozen base, and check by its config.json whether it can be trained here."""

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
from trapo_lite.core.in_words import counted
from trapo_lite.model.language_model import (
    RENAMINGS,
    is_multimodal,
    language_model_config,
    no_report_of_other_parts,
    save_under_own_names,
)
from trapo_lite.model.positions import one_rope
from trapo_lite.model.shape import FAILURES, ModelShape

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns about an optional kernel whenever PEFT imports it
transformers_logging.disable_progress_bar()  # one bar per load, in the middle of the run's own display


def model_config(section: ModelSection) -> PreTrainedConfig:
    """Return the model's config.json with `config_overrides` applied and dropout turned off.

    Of a multimodal model it is the part of the language model; nothing else is read anywhere.
    Raises ModelError or ConfigError for what cannot be trained here.
    """
    config = _as_given(section)
    for key in random_keys(config):
        setattr(config, key, 0.0)
    return config


def with_one_rope(config: Config, *, max_model_len: int | None) -> tuple[Config, list[str]]:
    """Return the configuration with RoPE as an engine serves it written out in `config_overrides`, and lines on it.

    Trainer, engines, evaluation and export then compute the same at every length.
    max_model_len: of the engine; None: there is none, and each sequence has the RoPE of its own length
    """
    rope = None if max_model_len is None else one_rope(model_config(config.model), max_model_len=max_model_len)
    if rope is None:
        return config, []
    overrides = config.model.config_overrides | {"rope_parameters": rope}
    line = (
        f"{config.model.name}: RoPE has its long factors at every length, because sequences may have {max_model_len} "
        "tokens; vLLM chooses in the same way"
    )
    return config.model_copy(update={"model": config.model.model_copy(update={"config_overrides": overrides})}), [line]


def model_lines(section: ModelSection) -> list[str]:
    """Return lines for the user on what `model_config` left out of the model: other parts, dropout, router noise."""
    keys, multimodal = ", ".join(random_keys(_as_given(section))), multimodal_type(section.name)
    lines = []
    if multimodal is not None:
        lines.append(f"{section.name}: of this multimodal model ({multimodal}) only the language model is used")
    if keys:
        lines.append(f"{section.name}: {keys}: set to 0, because a token that rollouts share has one mask")
    return lines


def random_keys(config: PreTrainedConfig) -> list[str]:
    """Return the fields that ask for dropout or router noise."""
    return [
        key
        for key, value in config.to_dict().items()
        if any(part in key for part in ("dropout", "pdrop", "layerdrop", "jitter"))
        and isinstance(value, float)
        and value != 0.0
        and not key.startswith(("summary", "classifier"))  # of other heads than a language model's
    ]


def multimodal_type(name: str) -> str | None:
    """Return the type of a multimodal model of which only the language model is used, or None for one of text."""
    config = _read_config(name)
    return config.model_type if is_multimodal(config) else None


def _read_config(name: str) -> PreTrainedConfig:
    check_model_files(name)
    try:
        return AutoConfig.from_pretrained(name)
    except OSError as error:
        reason = str(error).partition("\n")[0].rstrip(".")  # behind it advice on the hub's library
        raise ModelError(f"model.name: cannot read {name!r}: {reason}; give a model folder or hub id") from None
    except (StrictDataclassError, *FAILURES) as error:
        raise ModelError(
            f"model.name: cannot read {name!r}: {_one_line(error).rstrip('.')}; correct its config.json"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _as_given(section: ModelSection) -> PreTrainedConfig:
    config = language_model_config(_read_config(section.name), name=section.name)
    for key, value in section.config_overrides.items():
        if key == "rope_theta":
            raise ConfigError(
                "model.config_overrides.rope_theta: transformers ignores it silently; write "
                f"rope_parameters: {{rope_type: default, rope_theta: {value}}}"
            )
        if not hasattr(config, key):
            raise ConfigError(
                f"model.config_overrides.{key}: {section.name} has no such field; take the name from config.json"
            )
        try:
            setattr(config, key, value)
        except StrictDataclassError as error:
            raise ConfigError(
                f"model.config_overrides.{key}: found {value!r}: {_one_line(error)}; correct it"
            ) from None
    _refuse_untrainable(config, section.name)
    return config


def model_shape(config: Config) -> ModelShape:
    """Return the sizes of the configured model and adapter. Raise ModelError if its config.json cannot be read."""
    return ModelShape.of(model_config(config.model), rank=config.lora.r, targets=config.lora.target_modules)


def _refuse_untrainable(config: PreTrainedConfig, name: str) -> None:
    """Raise ModelError for quantised weights, and for a model without layers."""
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"model.name: {name} is quantised already; take the weights it was made of, and model.quantize: nf4"
        )
    if getattr(config, "num_hidden_layers", None) == 0:
        raise ModelError(f"model.name: {name} has {config.num_hidden_layers} layers; take one that has some")


def load_base(
    section: ModelSection,
    *,
    device: torch.device | str,
    attention: str | None,
    on_one_rank: bool = False,
) -> PreTrainedModel:
    """Load the frozen base in `section.dtype`, quantised if asked. Raise ModelError if there are no weights.

    attention: registered with transformers; None: transformers' own choice
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
    config, multimodal = model_config(section), multimodal_type(section.name)
    if multimodal is not None:
        options["key_mapping"] = RENAMINGS
    try:
        with (
            contextlib.nullcontext() if on_one_rank else _on_every_rank(),
            contextlib.nullcontext() if multimodal is None else no_report_of_other_parts(),
        ):
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
    if section.quantize == "nf4":
        _require_quantised(model, section.name)
    if multimodal is not None:
        save_under_own_names(model)
    return model if "device_map" in options else model.to(device)  # type: ignore[arg-type]


def _require_quantised(model: PreTrainedModel, name: str) -> None:
    """Raise ModelError if no layer was quantised: bitsandbytes takes linear layers, not classes derived from them."""
    if not any(type(parameter).__name__ == "Params4bit" for parameter in model.parameters()):
        raise ModelError(
            f"model.quantize: bitsandbytes quantises no layer of {name!r} ({type(model).__name__}), found nf4; set it "
            "to none"
        )


def _require_all_weights(loaded: dict[str, Any], name: str) -> None:
    """Raise ModelError if a weight is not in the model's files: transformers puts random numbers in its place."""
    lacking = sorted({*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])})
    if lacking:
        raise ModelError(
            f"model.name: the files of {name!r} lack {counted(len(lacking), 'weight')}, or hold them in another shape "
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
