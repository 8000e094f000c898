"""Load problems from files or the hub, tokenise them and distribute them in batches.

`sources` reads rows, `rows` understands them, `template` and `tokens` make prompts and traces of them, `loading`
filters and counts, `order` distributes.

    problems, report = load_problems(config.data, tokenizer, max_response_tokens=8192)
    batch = [problems[i] for i in batch_indices(step, batch_size=32, num_problems=len(problems), seed=0)]
"""

from trapo_lite.data.loading import Grader, Loaded, load_problems, load_with_rows, require_experts
from trapo_lite.data.order import batch_indices
from trapo_lite.data.report import DataReport, fingerprint
from trapo_lite.data.rows import Example
from trapo_lite.data.sources import check_sources
from trapo_lite.data.template import require_known_tags, template_warnings
from trapo_lite.data.tokens import (
    encode,
    end_of_text_id,
    expert_text,
    is_boundary_fn,
    load_tokenizer,
    prompt_text,
    text_of,
)

__all__ = [
    "DataReport",
    "Example",
    "Grader",
    "Loaded",
    "batch_indices",
    "check_sources",
    "encode",
    "end_of_text_id",
    "expert_text",
    "fingerprint",
    "is_boundary_fn",
    "load_problems",
    "load_tokenizer",
    "load_with_rows",
    "prompt_text",
    "require_experts",
    "require_known_tags",
    "template_warnings",
    "text_of",
]
