"""Hold the forms of the chat templates in which tests/training/test_chat_models_end_to_end.py trains."""

from dataclasses import dataclass
from typing import Any

EACH = "{{ bos_token }}{% for m in messages %}"
LAST = "{% endfor %}{% if add_generation_prompt %}"


@dataclass(frozen=True)
class ChatModel:
    """A ChatModel is a family's class with the form of its template.

    family: of tests/families.py
    stops:  its tokens that end an answer, the first of which the template writes
    opened: whether the template opens the thought
    """

    family: str
    model_type: str
    options: dict[str, Any]
    template: str
    bos: str | None
    stops: tuple[str, ...]
    opened: bool = False


MODELS = {
    "llama": ChatModel(
        "llama",
        "llama",
        {},
        EACH
        + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
        + LAST
        + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        bos="<|begin_of_text|>",
        stops=("<|eot_id|>", "<|end_of_text|>"),
    ),
    "gemma3": ChatModel(
        "gemma3, windows",
        "gemma3",
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
        EACH
        + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n"
        + LAST
        + "<start_of_turn>model\n{% endif %}",
        bos="<bos>",
        stops=("<end_of_turn>", "<eos>"),
    ),
    "qwen3.5": ChatModel(
        "qwen3.5, Gated DeltaNet",
        "qwen3_5",
        {
            "layer_types": ["linear_attention", "full_attention"],
            **{"linear_num_key_heads": 2, "linear_num_value_heads": 2},
            **{"linear_key_head_dim": 32, "linear_value_head_dim": 32},
        },
        EACH.removeprefix("{{ bos_token }}")
        + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        + LAST
        + "<|im_start|>assistant\n<think>\n{% endif %}",
        bos=None,
        stops=("<|im_end|>", "<|endoftext|>"),
        opened=True,
    ),
    "mistral": ChatModel(
        "mistral, windows",
        "mistral",
        {"sliding_window": 6},
        EACH
        + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}"
        + "{% endfor %}",
        bos="<s>",
        stops=("</s>",),
    ),
}
