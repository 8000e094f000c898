"""Write README.md of an exported checkpoint, and of an adapter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trapo_lite.config import DataSection, ModelSection
from trapo_lite.exporting.prompt_card import SERVED_AS, prompt_section, spelt_ends
from trapo_lite.model.base import model_config, multimodal_type
from trapo_lite.run.environment import spelt_code

CARD = """\
---
base_model: {base}
library_name: transformers
pipeline_tag: text-generation
tags: [trapo, lora, merged]
---

# {title} + LoRA adapter, merged

| | |
|---|---|
| base | `{base}`{quantized} |
| adapter | LoRA, r = {r}, alpha = {alpha}, on {modules} |
| weights | {dtype}, merged in float32 and rounded once |
| answers end with | {ends} |
{left_out}| merged by | trapo_lite {version}, files {code}; torch {torch}, transformers {transformers}, peft {peft} |
{overrides}
Serve it from this folder, as the model `{served_as}`:

```
vllm serve . --served-model-name {served_as}
```

{prompt}
## Check

The saved weights, computed in float32, against base + unmerged adapter:

```
{results}
```

Written by trapo_lite. `environment.json` says which code and versions trained and merged it.
"""

ADAPTER_CARD = """\
---
{hub_base}library_name: peft
tags: [trapo, lora]
---

# LoRA adapter on {title}

| | |
|---|---|
| base | `{base}`{quantized} |
| adapter | LoRA, r = {r}, alpha = {alpha}, on {modules} |
| answers end with | {ends} |

{serving}

{prompt}
Written by trapo_lite.
"""

SERVING = """\
Serve it beside its base, as the model `{served_as}`, from this folder:

```
vllm serve {base} --enable-lora --max-lora-rank {max_rank} --lora-modules {served_as}=.
```"""
SERVING_LANGUAGE_MODEL = """\
The base is a multimodal model ({multimodal}), of which only the language model was trained. The adapter's layers are
named as in {text_class}. Other classes name them differently, and engines that load those may ignore the adapter
without a word: serve the merged checkpoint instead (`trapo-lite export --run RUN`)."""
LEFT_OUT = (
    "| left out | all weights of the multimodal base ({multimodal}) but its language model's: this checkpoint reads "
    "text only |\n"
)
QUANTIZED_BASE = ", in NF4 (bitsandbytes) during training"
QUANTIZED = (
    ", in NF4 (bitsandbytes) during training: the adapter is merged into the de-quantised NF4 weights it was trained "
    "on, not into the original ones"
)


def model_card(
    *,
    model: ModelSection,
    adapter: Mapping[str, Any],
    dtype: str,
    data: DataSection,
    ends: Mapping[int, str],
    has_defaults: bool,
    results: Sequence[str],
    environment: Mapping[str, Any],
) -> str:
    """Return the README of a merged checkpoint.

    adapter: PEFT's adapter_config.json.   ends: text of each token that ends an answer, by its id
    has_defaults: the chat template beside the card has `data.template_options` as defaults
    results: lines of the log-prob comparison
    environment: of the merging process, from `environment.this_environment`
    """
    versions = environment["versions"]
    multimodal = multimodal_type(model.name)
    overrides = "".join(f"| config override | `{key}: {value}` |\n" for key, value in model.config_overrides.items())
    return CARD.format(
        base=model.name,
        title=_title(model.name),
        quantized=QUANTIZED if model.quantize == "nf4" else "",
        r=adapter["r"],
        alpha=adapter["lora_alpha"],
        modules=_layers(adapter),
        dtype=dtype,
        ends=spelt_ends(ends),
        served_as=SERVED_AS,
        prompt=prompt_section(data, ends, has_defaults=has_defaults),
        overrides=overrides,
        left_out="" if multimodal is None else LEFT_OUT.format(multimodal=multimodal),
        code=spelt_code(environment),
        version=versions["trapo_lite"],
        **{name: versions.get(name, "none") for name in ("torch", "transformers", "peft")},
        results="\n".join(line.strip() for line in results),
    )


def adapter_card(
    *, model: ModelSection, adapter: Mapping[str, Any], data: DataSection, ends: Mapping[int, str], max_rank: int
) -> str:
    """Return the README of an adapter that has not been merged.

    adapter: PEFT's adapter_config.json.   ends: text of each token that ends an answer, by its id
    max_rank: for vLLM's --max-lora-rank
    """
    base, multimodal = adapter["base_model_name_or_path"], multimodal_type(model.name)
    serving = SERVING.format(base=base, max_rank=max_rank, served_as=SERVED_AS)
    if multimodal is not None:
        [text_class] = model_config(model).architectures or [""]
        serving = SERVING_LANGUAGE_MODEL.format(multimodal=multimodal, text_class=text_class)
    return ADAPTER_CARD.format(
        hub_base="" if base.startswith("/") else f"base_model: {base}\n",  # the hub rejects a folder's name
        base=base,
        title=_title(base),
        quantized=QUANTIZED_BASE if model.quantize == "nf4" else "",
        r=adapter["r"],
        alpha=adapter["lora_alpha"],
        serving=serving,
        modules=_layers(adapter),
        ends=spelt_ends(ends),
        prompt=prompt_section(data, ends, has_defaults=False),
    )


def _title(base: str) -> str:
    """Return the id of a base of the hub, or the name of a folder."""
    return Path(base).name if Path(base).is_dir() else base


def _layers(adapter: Mapping[str, Any]) -> str:
    modules = adapter["target_modules"] or []
    names = {modules} if isinstance(modules, str) else {name.rpartition(".")[2] for name in modules}
    return ", ".join(sorted(names | set(adapter.get("target_parameters") or ())))
