"""Ask vLLM, in its own process and before a weight is read, whether it serves adapters on a model."""

import re
from typing import Any

from trapo_lite.core.errors import EngineError
from trapo_lite.model.shape import RECURRENT, WITHOUT_ATTENTION

# Classes that vLLM's build for the CPU accepts, and then fails to start or to run. Found with vLLM 0.32 by
# benchmarks/vllm_families.py; to ask another version, empty `lacking_of` first, which would answer in its place.
LACKING_ON_CPU = {
    "JambaForCausalLM": "no kernel for its Mamba layers",
    "OlmoHybridForCausalLM": "no kernel for its Gated DeltaNet layers",
}


def served_model(model_path: str, arguments: dict[str, Any], *, is_cpu: bool) -> Any:
    """Return vLLM's ModelConfig. Raise EngineError if vLLM has no class for the model, or serves no adapters on it.

    arguments: of vLLM's EngineArgs
    """
    from vllm import EngineArgs
    from vllm.model_executor.model_loader.utils import get_model_cls
    from vllm.model_executor.models import supports_lora

    try:
        config = EngineArgs(**arguments).create_model_config()
        model_class = get_model_cls(config)
    except ValueError as error:
        reason = str(error).partition("Value error, ")[2] or str(error)
        if "failed to be inspected" in reason:
            raise _not_importable(re.findall(r"'(\w+)'", reason)) from None
        raise EngineError(f"{cannot_serve(model_path)}: {reason.partition('. ')[0]}") from None
    if not supports_lora(model_class):
        raise EngineError(f"{cannot_serve(model_path)}: its {model_class.__name__} takes no adapters")
    lacking = lacking_of(config, model_class, is_cpu=is_cpu)
    if lacking is not None:
        raise EngineError(f"{cannot_serve(model_path)}: {lacking}")
    return config


def _not_importable(architectures: list[str]) -> EngineError:
    """Return the error for classes that vLLM has but cannot import here, with the reason that is else in its log."""
    from vllm.model_executor.models import ModelRegistry

    names = ", ".join(architectures)
    where = f"rollout.engine: vLLM cannot import its class {names}"
    try:
        for name in architectures:
            if name in ModelRegistry.models:
                ModelRegistry.models[name].load_model_cls()
    except ModuleNotFoundError as error:
        return EngineError(
            f"{where}, because the module {error.name} is missing; install it (for torchvision: the build that belongs "
            "to the installed torch), or set rollout.engine: transformers"
        )
    except Exception as error:  # whatever code of vLLM or of a package raises while it is imported
        reason = str(error).strip().partition("\n")[0]
        return EngineError(f"{where} ({type(error).__name__}: {reason}); set rollout.engine: transformers")
    return EngineError(f"{where}, for a reason in its log; set rollout.engine: transformers")


def lacking_of(config: Any, model_class: type, *, is_cpu: bool) -> str | None:
    """Return what a class that vLLM accepts is known to need and lack, or None.

    config: vLLM's ModelConfig
    """
    text_config, name = config.hf_text_config, model_class.__name__
    layer_types = getattr(text_config, "layer_types", None) or ()
    by_transformers = model_class.__module__.startswith("vllm.model_executor.models.transformers")
    for index, kind in enumerate(layer_types):
        if by_transformers and kind in (*RECURRENT, *WITHOUT_ATTENTION):
            return f"it would run transformers' code, in which it serves attention only, but layer {index} is {kind}"
    has_both = len(set(layer_types)) > 1
    if name == "Qwen2ForCausalLM" and has_both and text_config.max_window_layers != text_config.num_hidden_layers:
        return "its Qwen2ForCausalLM has windows in all layers or in none, but the model has them in some"
    if not is_cpu:
        return None
    if name in LACKING_ON_CPU:
        return f"its build for the CPU has {LACKING_ON_CPU[name]}"
    # The configuration of Nemotron-H counts experts also where every MLP is a plain one.
    if config.is_moe and ("moe" in layer_types or "mlp" not in layer_types):
        return "its build for the CPU serves no adapters on a mixture of experts"
    return None


def cannot_serve(model_path: str) -> str:
    return f"rollout.engine: set it to transformers or take another model, because vLLM cannot serve {model_path}"
