"""Write docs/models.md: the families of models that the tests train, and configurations with the cards they need.

    python benchmarks/models_page.py > docs/models.md

The table of families shows tests/family_results.jsonl, which the tests of each family compare with what they find. The
table of configurations is computed by the plan. tests/test_models_page.py fails if the page is not what this prints.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from published_sizes import start_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

Results = Mapping[tuple[str, str], Mapping[str, Any]]
NOT_MEASURED = "not measured"
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

Nearly any causal language model of transformers trains here. `trapo-lite train --dry-run` says within seconds
how, or names the reason why not. Its prompt is `data.prompt_template: chat` for a model with a chat template of its
own, or a text that you write ([data.md](data.md#the-prompt)).

`model.layout: auto` runs a problem's rollouts as one packed tree where the tree reaches every layer of the model's
class: full and sliding attention, capped and scaled scores, attention sinks, and recurrent layers, whose chains start
from the state of the chain above them. Other classes take rows: every rollout runs by itself through the model's own
forward pass, with the same losses and metrics, and the run says why.

The table shows what was measured on a tiny model of each class: random weights, four layers, widths of 32 or 64, 64
tokens in the vocabulary. `tests/family_results.jsonl` has each result with the versions of the packages, and the tests
of a class fail if they find something else. A class without a result says "not measured". The columns:

- **layout**: what the policy takes under `auto`. Compared are the adapter's gradients in float32, on 20 random groups
  of eight rollouts with nested prefixes: the policy's, and those of every rollout as a row of its own in a freshly
  loaded model with eager attention. The loss is a policy gradient with a prefix and an entropy term. The adapter is on
  all linear layers, the default, except in the Mamba layers and routers that PEFT or the trainer refuses. No difference
  reaches 1e-5 of the gradient's norm; "tested how" has the largest one. `tests/model/test_families.py`, by `make
  test-all`.
- **transformers engine**: compared are the log-probs of tokens that it draws, in rows of different lengths that join
  late and leave early, with those of a freshly loaded model. "refused": it ends at its start, because it cannot
  continue the class token by token. `tests/engines/test_transformers_families.py`, by `make test`.
- **vLLM**: compared are log-probs without the adapter, with it and with it merged, with those of a freshly loaded
  model, and those of drawn tokens with the engine's own scores, in float32 on vLLM's build for the CPU, within 1e-4
  unless the row says more. "no adapters": vLLM has the class, but serves no adapters on it. "on the CPU": only this
  build lacks it. `tests/engines/test_vllm_families.py`, by `make test-all`, measures the rows with "vLLM" in "tested
  how"; `python benchmarks/vllm_families.py` has measured those with "vLLM once". Of results from before there was such
  a file, it holds the answer and the versions, but not always the difference.
- **NF4**: whether the class loads with `model.quantize: nf4` and passes the check of its layout that a run begins with.
  `tests/training/test_nf4_families.py`, by `make test-all`.
- **template**: "run": a model was trained in a chat template of this form, killed, resumed and exported
  (`tests/training/test_chat_models_end_to_end.py`, by `make test-all`, "chat run"). The other classes take the
  tokenizer's own template, which no test has run; the row names what is known of the published ones. SmolLM2's own
  was run by hand ([RESULTS.md](RESULTS.md#families-of-models)).

A run measures at its start and after each publish that vLLM serves what is trained, on every machine. An adapter with a
layer that vLLM has no place for is refused at the first publish, which names it.

| class of transformers | what is special | layout | transformers engine | vLLM | NF4 | template | tested how |
|---|---|---|---|---|---|---|---|
"""
BETWEEN = """
Of a multimodal model the language model alone is trained, on text, if transformers has a class for it and that class
trains here: Gemma 3 from 4B on (`Gemma3ForCausalLM`), Ministral 3 (`Ministral3ForCausalLM`) and others. The adapter's
layers are named as in that class. The exported checkpoint is of that class; the weights of the other parts are left
out, and its card says so. `tests/model/test_language_model.py` compares the logits on text with those of the whole
multimodal class, `tests/training/test_multimodal_run.py` trains and exports, and
`tests/engines/test_vllm_language_model.py` compares what vLLM serves, without and with an adapter. vLLM reads such a
checkpoint unquantised only (`model.quantize: none`).

## Configurations to start from

"least" is the least memory of a card with which the plan says that the configuration fits. "card" is the smallest one
of the plan's table. SmolLM2 is planned in bfloat16, because vLLM serves no adapters in float32 on a card.

| configuration | model | least, GiB | card, by `trapo-lite plan` |
|---|---|---|---|
"""
TAIL = """
The plan was made with the sizes that the models' publishers give, written by hand (`benchmarks/published_sizes.py`),
and none of these models has been trained on such a card here. `trapo-lite plan --config FILE --gpu NAME` reads
the model's own config.json.

## What is refused

Refused before a weight is read: multimodal models without a class for their language model (Qwen2.5-VL, Qwen3-VL),
classes without linear layers (GPT-2), and adapters on fused experts or routers, which engines cannot serve; name the
layers to adapt in `lora.target_modules` instead. PEFT refuses `out_proj` of Mamba layers, which a fused kernel reads
past the adapter. RoPE of type longrope (Phi-4-mini) has its long factors at every length if a sequence of the run may
pass the original length (4096) and rollouts are drawn: vLLM chooses them once for all sequences, so the trainer does
too, and says so. Without rollouts each row has those of its own length. NF4 is refused when the model is loaded if it
changes no layer.
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
        *(answer(lines[kind]) for kind in ("gradient", "drawing", "vllm", "nf4")),
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
