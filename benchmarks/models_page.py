"""Write docs/models.md: the families of models that the tests train, and configurations with the cards they need.

    python benchmarks/models_page.py > docs/models.md

The table of families shows tests/family_results.jsonl, which the tests of each family compare with what they find. The
table of configurations is computed by the plan. tests/test_models_page.py fails if the page is not what this prints.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from start_configs import start_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

Results = Mapping[tuple[str, str], Mapping[str, Any]]
NOT_MEASURED = "not measured"
# What could not be measured, and why.
UNMEASURED = {
    (
        "qwen3.5, Gated DeltaNet",
        "vllm",
    ): ("not measured: its class imports torchvision, which the CPU build does not bring"),
    ("qwen3.5 with experts, Gated DeltaNet", "vllm"): "not measured, as Qwen3_5ForCausalLM",
}
# As far as known from the publishers' pages. Their tokenizers are no part of this repository, so no test holds this.
PUBLISHED_TEMPLATES = {
    "qwen2": "ChatML; R1 distills open the thought",
    "qwen3": "ChatML, `enable_thinking`; Thinking-2507 opens the thought",
    "qwen3.5 with experts, Gated DeltaNet": "ChatML; opens the thought",
    "smollm3, NoPE": "ChatML, `/think`",
    "phi3, partial rotary": "`<|im_sep|>` form (Phi-4)",
    "olmo3, windows": "Think models open the thought",
    "lfm2, short convolutions": "ChatML",
    "ministral, windows": "`[INST]`",
    "gpt-oss, windows and sinks": "Harmony",
    "gemma4, windows and shared keys": "optional thinking",
}
HEAD = """# Models

<!-- written by: python benchmarks/models_page.py > docs/models.md -->

Nearly any causal language model of transformers trains here. To ask about yours, run `trapo-lite train --dry-run` with
your configuration: it says how the model would be trained, or why it cannot be. Of a model of the hub it reads
`config.json` and the tokenizer. This takes seconds; if vLLM is asked for its class, up to a minute.

To find a model in the table, look up `architectures` in its `config.json`: it names the class. A class that is not in
the table may train too.

For the prompt, set `data.prompt_template: chat` if the model has a chat template, and otherwise write a text of your
own ([data.md](data.md#the-prompt)).

## What is refused

A run ends with an error before it reads any weights in these cases:

- a multimodal model whose language model has no class of its own (Qwen2.5-VL, Qwen3-VL);
- a class without linear layers, which LoRA needs (GPT-2);
- an adapter on the experts or the router of a mixture of experts, if the class stores them as one weight: no engine can
  serve it. Name the layers to adapt in `lora.target_modules` instead;
- an adapter on `out_proj` of Mamba layers, which PEFT refuses.

`model.quantize: nf4` is refused when the model is loaded, if it would change no layer.

A model that stretches its positions by the method "longrope" (Phi-4-mini) has two sets of factors, for sequences up to
its original length (4096) and for longer ones. If rollouts are sampled and a sequence of the run may be longer, all
sequences get the factors for long ones, because vLLM has one set for all; the run says so. Without sampling, each
sequence gets those of its own length.

## How to read the table

- **what is special**: how the class differs from plain attention. "windows": a token sees only the last tokens before
  it in some layers. "caps": large attention scores or logits are limited. "sinks": attention may also point at nothing.
  "chunks": attention stays within blocks of tokens. "partial rotary", "learnt positions", "ALiBi" and "NoPE": other
  ways to tell the positions of tokens, or none. Mamba, Gated DeltaNet, short convolutions and the like are layers that
  carry a state from token to token instead of attention.
- **layout**: how rollouts go through the model in training. "tree": what the rollouts of a problem share, such as its
  prompt, is computed once. "rows": every rollout is computed by itself, which takes longer. Losses and metrics are the
  same. The run chooses the layout (`model.layout: auto`) and prints why if it is "rows".
- **transformers engine**: whether `rollout.engine: transformers` samples from the class. "refused": the run ends at
  its start with an error.
- **vLLM**: whether `rollout.engine: vllm` does, with the adapter. "no class": vLLM does not have it; "for its layers
  without attention": it would run transformers' code, where it serves attention only. "no adapters": vLLM serves the
  class, but no adapters on it. "on the CPU": vLLM's build for the CPU, which the tests use, cannot
  serve it; on a GPU vLLM may, and the run checks this at its start. Other words name what vLLM computes in another way.
  Where vLLM does not serve a class, use the transformers engine.
- **NF4**: whether the base can be loaded in 4 bits, as for QLoRA (`model.quantize: nf4`), or why not.
- **template**: the chat template. "run": a whole run was tested with a template of this form; the row names the tokens
  that end an answer. "the tokenizer's own": no run was tested; what is known of the published templates follows.
  "opens the thought": the prompt ends in `<think>`; then set `data.expert_text: opened`.
- **tested how**: which tests the row comes from ([below](#how-it-was-tested)).

"not measured" says that no test was run. The tests use tiny models with random weights, so the table says that a class
is computed correctly, not how well a model of it learns.

| class of transformers | what is special | layout | transformers engine | vLLM | NF4 | template | tested how |
|---|---|---|---|---|---|---|---|
"""
BETWEEN = """
**Multimodal models** are trained on text only: the run takes the language model out of them and leaves out the parts
for images and sound. This works if transformers has a class for the language model alone and that class trains here:
Gemma 3 from 4B on (`Gemma3ForCausalLM`), Ministral 3 (`Ministral3ForCausalLM`) and others. An exported checkpoint is
of that class, and its card says what was left out. vLLM reads such a checkpoint only with `model.quantize: none`.

## Configurations to start from

"least" is the least GPU memory with which `trapo-lite plan` says that the configuration fits, and "card" is the
smallest card that the plan knows with that much. SmolLM2 is planned in bfloat16, because vLLM serves no adapters in
float32 on a GPU.

| configuration | model | least, GiB | card, by `trapo-lite plan` |
|---|---|---|---|
"""
TAIL = """
These are estimates from the sizes that the models' publishers give (`trapo_lite/planning/published_sizes.py`); none of
these models has been trained on such a card here. `trapo-lite plan --config FILE --gpu NAME` takes these sizes too, and
those of 24 more models by their names on the hub; of any other model it reads `config.json`.

## How it was tested

Each test compares a tiny model with a freshly loaded one of transformers: four layers, widths of 32 or 64, 64 tokens
in the vocabulary. `tests/family_results.jsonl` has each result with the versions of the packages. The tests of a class
fail if they find something else than its line.

- **gradient**: the adapter's gradient in the layout of the table is compared with the one of every rollout by itself in
  the model's own code, in float32, on 20 random groups of eight rollouts. The number is the largest difference, as a
  share of the gradient's norm; it has to be below 1e-5. `tests/model/test_families.py`, by `make test-all`.
- **drawing**: the transformers engine samples rollouts that start and end at different times, and its log-probs are
  compared. `tests/engines/test_transformers_families.py`, by `make test`.
- **vLLM**: log-probs without the adapter, with it and with it merged are compared, in float32 on the CPU. They agree
  within 1e-4, unless the row says more. `tests/engines/test_vllm_families.py` repeats this by `make test-all`. "vLLM
  once": `python benchmarks/vllm_families.py` has measured it, and no test repeats it.
- **NF4**: the class is loaded in 4 bits, and passes the check of its layout that every run begins with.
  `tests/training/test_nf4_families.py`, by `make test-all`.
- **chat run**: a model is trained with a chat template of this form, killed, resumed and exported.
  `tests/training/test_chat_models_end_to_end.py`, by `make test-all`. SmolLM2's own template was run by hand
  ([RESULTS.md](RESULTS.md#families-of-models)).
- Multimodal models: `tests/model/test_language_model.py` compares the logits on text with those of the whole model,
  `tests/training/test_multimodal_run.py` trains and exports, and `tests/engines/test_vllm_language_model.py` compares
  what vLLM serves.

Your own run checks again, at its start and after each update of the engine, that vLLM serves the adapter that is
trained. An adapter with a layer that vLLM cannot serve is an error that names the layer.
"""


def page() -> str:
    """Return the page."""
    from families import FAMILIES  # pyright: ignore[reportMissingImports]
    from family_results import read_results  # pyright: ignore[reportMissingImports]

    results = read_results()
    families = [family_row(name, results) for name in sorted(FAMILIES)]
    return HEAD + "".join(families) + BETWEEN + "".join(f"{row}\n" for row in start_rows()) + TAIL


def family_row(name: str, results: Results) -> str:
    """Return a family's row, with "not measured" where it has no result."""
    from families import FAMILIES  # pyright: ignore[reportMissingImports]
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    lines = {kind: results.get((name, kind)) for kind in ("gradient", "drawing", "vllm", "nf4")}
    cells = (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[FAMILIES[name].model_type],
        name.partition(", ")[2] or "full attention",
        *(UNMEASURED.get((name, kind)) or answer(lines[kind]) for kind in ("gradient", "drawing", "vllm", "nf4")),
        template(name),
        how_tested(name, lines),
    )
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |\n"


def answer(line: Mapping[str, Any] | None) -> str:
    """Return a result in words: why, if it is "no", and the difference, if it is large.

    >>> answer(None), answer({"result": "yes", "difference": 5e-3}), answer({"result": "no", "why": "no class"})
    ('not measured', 'yes, within 0.005', 'no class')
    """
    if line is None:
        return NOT_MEASURED
    if line["result"] == "no":
        return line["why"]
    return line["result"] + (f", within {line['difference']:.1g}" if line.get("difference", 0.0) > 1e-4 else "")


def template(name: str) -> str:
    """Return what is known of the family's chat template."""
    from chat_models import MODELS  # pyright: ignore[reportMissingImports]

    for model in MODELS.values():
        if model.family == name:
            ends = " or ".join(f"`{stop}`" for stop in model.stops)
            return f"run: ends by {ends}{', opens the thought' if model.opened else ''}"
    published = PUBLISHED_TEMPLATES.get(name)
    return "the tokenizer's own" + (f": {published}" if published else "")


def how_tested(name: str, lines: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Return the tests that hold the row, the first with the difference that was found."""
    from chat_models import MODELS  # pyright: ignore[reportMissingImports]
    from families import MOST_TRAINED  # pyright: ignore[reportMissingImports]

    gradient = lines["gradient"]
    tests = [f"gradient {gradient['difference']:.0e}".replace("e-0", "e-")] if gradient else []
    tests += [text for kind, text in (("drawing", "drawing"), ("nf4", "NF4")) if lines[kind]]
    if lines["vllm"]:
        tests.append("vLLM" if name in MOST_TRAINED else "vLLM once")
    if name in {model.family for model in MODELS.values()}:
        tests.append("chat run")
    return ", ".join(tests) or NOT_MEASURED


if __name__ == "__main__":
    print(page(), end="")
