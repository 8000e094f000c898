"""Trains the tiny base from scratch and writes it: weights in bf16, tokenizer, accuracy table.

Qwen2's architecture, 0.9 million parameters, float32 arithmetic on one thread (small tensors are slower on two). Loss on the
solution's tokens and the end-of-text token; the prompt is only read.
"""

import json
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from trapo_lite.tiny_world import BASE_DIR
from trapo_lite.tiny_world.corpus import documents
from trapo_lite.tiny_world.measure import measure_accuracy
from trapo_lite.tiny_world.problems import Kind, distinct_problems
from trapo_lite.tiny_world.tokenizer import build_tokenizer, prompt_text

BATCH_SIZE = 64
BATCHES_PER_POOL = 64
PEAK_LR, WARMUP_STEPS = 2e-3, 100
IGNORED_LABEL = -100
KINDS: tuple[Kind, ...] = ("easy", "hard")


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """A fresh base; the caller seeds torch."""
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
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def examples(tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Iterator[tuple[list[int], int]]:
    """(prompt + solution + end of text, length of the prompt), endlessly."""
    for problem, solution in documents(seed=seed):
        prompt = tokenizer(prompt_text(problem.text), add_special_tokens=False).input_ids
        completion = tokenizer(solution, add_special_tokens=False).input_ids
        yield [*prompt, *completion, tokenizer.eos_token_id], len(prompt)


def batches(tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, labels), each (BATCH_SIZE, longest), int64, padded on the right; examples of a batch are of similar length.

    Padding is read by nothing before it (attention is causal) and carries no label, so no mask is needed.
    """
    generator = torch.Generator().manual_seed(seed)
    stream = examples(tokenizer, seed=seed)
    while True:
        pool = sorted(islice(stream, BATCH_SIZE * BATCHES_PER_POOL), key=lambda example: len(example[0]))
        for index in torch.randperm(BATCHES_PER_POOL, generator=generator).tolist():
            batch = pool[index * BATCH_SIZE : (index + 1) * BATCH_SIZE]
            width = len(batch[-1][0])
            ids = torch.full((BATCH_SIZE, width), tokenizer.eos_token_id)
            labels = torch.full((BATCH_SIZE, width), IGNORED_LABEL)
            for row, (example, prompt_length) in enumerate(batch):
                ids[row, : len(example)] = torch.tensor(example)
                labels[row, prompt_length : len(example)] = torch.tensor(example[prompt_length:])
            yield ids, labels


def learning_rate(step: int, *, num_steps: int) -> float:
    """Linear warm-up to PEAK_LR, then a half cosine down to zero."""
    if step < WARMUP_STEPS:
        return PEAK_LR * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, num_steps - WARMUP_STEPS)
    return PEAK_LR * 0.5 * (1 + math.cos(math.pi * progress))


def train(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, *, num_steps: int, seed: int) -> None:
    """Trains the model in place and prints its progress."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    start = time.monotonic()
    for step, (ids, labels) in enumerate(islice(batches(tokenizer, seed=seed), num_steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps=num_steps)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == num_steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - start:6.0f} s", flush=True)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes weights (bf16), configuration, generation defaults and tokenizer; the model becomes bf16."""
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, do_sample=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def accuracy_table(folder: Path, tokenizer: PreTrainedTokenizerBase, *, num_problems: int, seed: int) -> dict:
    """Accuracy of the stored base, loaded as float32, on problems of the test split, at temperature 1."""
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


def pretrain(folder: Path = BASE_DIR, *, num_steps: int = 3000, num_problems: int = 1000, seed: int = 0) -> None:
    """Trains, saves and measures the base; the same seed gives the same base on the same machine."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    train(model, tokenizer, num_steps=num_steps, seed=seed)
    save(model, tokenizer, folder)
    table = accuracy_table(folder, tokenizer, num_problems=num_problems, seed=seed)
    (folder / "accuracy.json").write_text(json.dumps(table, indent=2) + "\n")
