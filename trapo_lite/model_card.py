"""README.md of an exported checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

from trapo_lite.config import ModelSection
from trapo_lite.environment import spelt_code

CARD = """\
---
base_model: {base}
library_name: transformers
pipeline_tag: text-generation
tags: [trapo, lora, merged]
---

# {base} + LoRA adapter, merged

| | |
|---|---|
| base | `{base}`{quantized} |
| adapter | LoRA, r = {r}, alpha = {alpha}, on {modules} |
| weights | {dtype}, merged in float32 and rounded once |
| answers end with | `{eos_token}` |
| merged by | trapo_lite {version}, files {code}; torch {torch}, transformers {transformers}, peft {peft} |
{overrides}
The saved weights, computed in float32, against base + unmerged adapter:

```
{results}
```

Written by trapo_lite. `environment.json` says which code and versions trained and merged it.
"""

QUANTIZED = (
    ", in NF4 (bitsandbytes) during training: the adapter is merged into the de-quantised NF4 weights it was trained "
    "on, not into the original ones"
)


def model_card(
    *,
    model: ModelSection,
    adapter: Mapping[str, Any],
    dtype: str,
    eos_token: str,
    results: Sequence[str],
    environment: Mapping[str, Any],
) -> str:
    """adapter: PEFT's adapter_config.json.   results: lines of the log-prob comparison.

    environment: what merges, by `environment.this_environment`
    """
    versions = environment["versions"]
    overrides = "".join(f"| config override | `{key}: {value}` |\n" for key, value in model.config_overrides.items())
    modules = adapter["target_modules"]
    names = [modules] if isinstance(modules, str) else sorted({name.rpartition(".")[2] for name in modules})
    return CARD.format(
        base=model.name,
        quantized=QUANTIZED if model.quantize == "nf4" else "",
        r=adapter["r"],
        alpha=adapter["lora_alpha"],
        modules=", ".join(names),
        dtype=dtype,
        eos_token=eos_token.replace("|", "\\|"),
        overrides=overrides,
        code=spelt_code(environment),
        version=versions["trapo_lite"],
        **{name: versions.get(name, "none") for name in ("torch", "transformers", "peft")},
        results="\n".join(line.strip() for line in results),
    )
