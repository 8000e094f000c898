"""Decide how the transformers engine runs a class of models, and check that it draws from what the class computes."""

from typing import TYPE_CHECKING, Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from trapo_lite.config import ModelSection
from trapo_lite.core.errors import EngineError, ModelError
from trapo_lite.engines.base import Completion, SampleRequest
from trapo_lite.engines.transformers.cache import ATTENTION, RowCache
from trapo_lite.model.base import model_config
from trapo_lite.model.shape import FAILURES, meta_model, runs_on_meta

if TYPE_CHECKING:
    from trapo_lite.engines.transformers.engine import TransformersEngine

LENGTHS = (1, 4)  # tokens of the prompts that the check reads
MAX_TOKENS = 3
INSTEAD = "set rollout.engine: vllm if it serves this class, or take another model"
# Mean difference in nats above which a class is refused. In tiny models of 21 families, rounding was at most 4e-7 in
# float32 and 0.004 in bfloat16, an ignored mask 0.13 to 0.2. The rounding of larger models was not measured.
TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.05}


def attention_of(section: ModelSection) -> str | None:
    """Return the engine's attention, or None (the one that transformers chooses) if the class takes only its own."""
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config(section)), None)
    return None if model_class is not None and not model_class._can_set_attn_implementation() else ATTENTION


def check_class(section: ModelSection) -> None:
    """Raise EngineError, before a weight is read, if the class cannot be continued from this engine's cache.

    Four tokens and one more run through the model on the meta device. A class that leaves a layer of the cache empty
    has another memory than the cache.
    """
    model = meta_model(model_config(section), attention=attention_of(section)).eval()
    cache = RowCache(model.config)

    def read(first: int, last: int) -> None:
        ids = torch.zeros(1, last - first, dtype=torch.long)
        positions = torch.arange(first, last)[None]
        inputs = {"past_key_values": cache, "position_ids": positions} if cache.has_columns else {"cache_params": cache}
        _ = model(input_ids=ids, use_cache=True, **inputs).logits

    def read_twice() -> None:
        read(0, 4)
        read(4, 5)
        if num_empty := cache.num_empty:
            raise ModelError(f"{num_empty} of its layers keep nothing in the cache that they are given")

    try:
        runs_on_meta(
            read_twice,
            name=f"model.name: {type(model).__name__}",
            complaint="cannot be continued token by token here",
            remedy=INSTEAD,
        )
    except ModelError as error:
        raise EngineError(str(error)) from None


def require_served(engine: "TransformersEngine") -> None:
    """Raise EngineError if rows of different length are drawn from something else than `score` computes for each.

    Classes differ in what they do with masks, positions and a cache that they are given; some ignore it silently.
    """
    where = f"model.name: {type(engine.model).__name__}"
    prompts = {str(length): tuple(range(1, length + 1)) for length in LENGTHS}
    for seed, (name, prompt) in enumerate(prompts.items()):
        engine.submit(SampleRequest(name, prompt, seed=seed, max_tokens=MAX_TOKENS))
    completions: list[Completion] = []
    try:
        while len(completions) < len(prompts):
            completions += engine.poll()
        scores = [engine.score(prompts[row.request_id] + row.token_ids)[-MAX_TOKENS:] for row in completions]
    except (ModelError, *FAILURES) as error:
        reason = str(error).strip().partition("\n")[0]
        raise EngineError(
            f"{where}: cannot be continued token by token here ({type(error).__name__}: {reason}); {INSTEAD}"
        ) from None
    drawn = torch.tensor([row.logprobs for row in completions])
    difference = float((drawn - torch.tensor(scores)).abs().mean())
    if difference > TOLERANCE[engine.dtype]:
        raise EngineError(
            f"{where}: with a cache and rows of different length, its log-probs change by {difference:.2g} nats; "
            f"{INSTEAD}"
        )
