"""A byte-level tokenizer and a tiny random Qwen2 that speaks it: any text trains, nothing has to be downloaded."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes (ids in the order of GPT-2's byte alphabet), the blank line as one token, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    newline = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("\n")[0][0]
    vocabulary[newline * 2] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[(newline, newline)]))
    core.normalizer = normalizers.NFC()  # transformers adds it when it reloads this as Qwen2's tokenizer
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def byte_model(*, num_layers: int = 2, hidden_size: int = 64, seed: int = 0) -> Qwen2ForCausalLM:
    """Random weights, float32, positions up to 4096."""
    vocabulary = byte_tokenizer().get_vocab()
    end_id = vocabulary["<|endoftext|>"]
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,  # head_dim 32: vLLM has no CPU kernels for 16
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).float()


def write_byte_model(folder: Path, **size: int) -> Path:
    """Save tokenizer and model (arguments of byte_model) as from_pretrained reads them; returns the folder."""
    byte_tokenizer().save_pretrained(folder)
    byte_model(**size).save_pretrained(folder)
    return folder
