"""Train the tiny base from scratch and write it: weights in bf16, tokenizer, accuracy table.

Qwen2's architecture, 0.9 million parameters, float32 arithmetic on one thread (small tensors are slower on two). The
loss is on the solution's tokens and the end-of-text token, not on the prompt.
"""

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from trapo_lite.tiny_world import BASE_DIR
from trapo_lite.tiny_world.corpus import documents
from trapo_lite.tiny_world.measure import measure_accuracy
from trapo_lite.tiny_world.problems import Kind, Problem, distinct_problems
from trapo_lite.tiny_world.tokenizer import END_OF_TEXT_ID, build_tokenizer, encode, prompt_text

BATCH_SIZE, PART_SIZE = 64, 16
PEAK_LR, WARMUP_STEPS, COOLDOWN_SHARE = 2e-3, 100, 0.3
IGNORED_LABEL = -100
KINDS: tuple[Kind, ...] = ("easy", "hard")

Documents = Callable[..., Iterator[tuple[Problem, str]]]
"""Yields (problem, solution) without end for a `seed`, as `corpus.documents` does."""


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """Return a new base. The caller seeds torch."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def examples(
    tokenizer: PreTrainedTokenizerBase, *, seed: int, documents: Documents = documents
) -> Iterator[tuple[list[int], int]]:
    """Yield (prompt + solution + end of text, length of the prompt) without end."""
    for problem, solution in documents(seed=seed):
        prompt = encode(tokenizer, prompt_text(problem.text))
        yield [*prompt, *encode(tokenizer, solution), END_OF_TEXT_ID], len(prompt)


def batches(
    tokenizer: PreTrainedTokenizerBase, *, seed: int, documents: Documents = documents
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield batches of BATCH_SIZE examples in parts of PART_SIZE, sorted by length, so that little is padding.

    A part is (ids, labels), each (PART_SIZE, longest), int64, padded on the right. No mask is needed: attention is
    causal, so that no token before it reads the padding, and padding has no label.
    """
    stream = examples(tokenizer, seed=seed, documents=documents)
    while True:
        batch = sorted(islice(stream, BATCH_SIZE), key=lambda example: len(example[0]))
        yield [pad(batch[start : start + PART_SIZE]) for start in range(0, BATCH_SIZE, PART_SIZE)]


def pad(part: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """Return examples as (ids, labels), padded on the right to the longest. Only solutions have labels."""
    width = max(len(ids) for ids, _ in part)
    ids = torch.full((len(part), width), END_OF_TEXT_ID)
    labels = torch.full((len(part), width), IGNORED_LABEL)
    for row, (example, prompt_length) in enumerate(part):
        ids[row, : len(example)] = torch.tensor(example)
        labels[row, prompt_length : len(example)] = torch.tensor(example[prompt_length:])
    return ids, labels


def learning_rate(step: int, *, num_steps: int) -> float:
    """Return the rate: linear warm-up to PEAK_LR, constant, linearly to 0 over the last COOLDOWN_SHARE of the steps."""
    warmup = (step + 1) / WARMUP_STEPS
    cooldown = (num_steps - step) / (COOLDOWN_SHARE * num_steps)
    return PEAK_LR * min(1.0, warmup, cooldown)


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed negative log-likelihood of the labels, (B, T), under the logits, (B, T, V)."""
    predictions, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return cross_entropy(predictions, targets, ignore_index=IGNORED_LABEL, reduction="sum")


def train(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_steps: int,
    seed: int,
    documents: Documents = documents,
) -> None:
    """Train the model in place and print its progress: the mean loss per token since the last line."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    start, losses = time.monotonic(), []
    for step, parts in enumerate(islice(batches(tokenizer, seed=seed, documents=documents), num_steps)):
        num_tokens = sum(int((labels != IGNORED_LABEL).sum()) for _, labels in parts)
        batch_loss = 0.0
        for ids, labels in parts:
            loss = loss_sum(model(input_ids=ids).logits, labels) / num_tokens
            loss.backward()
            batch_loss += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps=num_steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(batch_loss)
        if len(losses) == 100 or step == num_steps - 1:
            print(f"step {step + 1:5d}  loss {mean(losses):.4f}  {time.monotonic() - start:6.0f} s", flush=True)
            losses.clear()


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (bf16), configuration, generation defaults and tokenizer. The model becomes bf16."""
    model.generation_config = GenerationConfig(eos_token_id=END_OF_TEXT_ID, do_sample=True)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def accuracy_table(folder: Path, tokenizer: PreTrainedTokenizerBase, *, num_problems: int, seed: int) -> dict:
    """Measure the stored base, loaded as float32, on problems of the test split at temperature 1."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    table = {}
    for kind in KINDS:
        problems = distinct_problems("test", kind, num_problems, seed=0)
        accuracy = measure_accuracy(model, tokenizer, problems, seed=seed)
        low, high = accuracy.interval_95
        table[kind] = {
            "accuracy": round(accuracy.value, 4),
            "interval_95": [round(low, 4), round(high, 4)],
            "num_samples": accuracy.num_samples,
        }
        print(f"{kind}: {accuracy.value:.3f} [{low:.3f}, {high:.3f}] of {accuracy.num_samples}", flush=True)
    return table


def pretrain(
    folder: Path = BASE_DIR,
    *,
    num_steps: int = 1000,
    num_problems: int = 1000,
    seed: int = 0,
    documents: Documents = documents,
) -> None:
    """Train, save and measure the base. The same seed gives the same base on the same machine."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    train(model, tokenizer, num_steps=num_steps, seed=seed, documents=documents)
    save(model, tokenizer, folder)
    table = accuracy_table(folder, tokenizer, num_problems=num_problems, seed=seed)
    (folder / "accuracy.json").write_text(json.dumps(table, indent=2) + "\n")
