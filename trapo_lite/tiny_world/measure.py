"""Measure how often a model solves problems of the tiny world when it samples at temperature 1."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trapo_lite.tiny_world.problems import Problem
from trapo_lite.tiny_world.tokenizer import END_OF_TEXT_ID, encode, prompt_text

MAX_NEW_TOKENS = 96


@dataclass(frozen=True)
class Accuracy:
    """Count the solved problems among the sampled ones.

    >>> low, high = Accuracy(num_correct=50, num_samples=100).interval_95
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """

    num_correct: int
    num_samples: int

    @property
    def value(self) -> float:
        return self.num_correct / self.num_samples

    @property
    def interval_95(self) -> tuple[float, float]:
        """Return Wilson's score interval."""
        z, n, p = 1.959964, self.num_samples, self.value
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return center - half, center + half


@torch.no_grad()
def sample(model: PreTrainedModel, prompt_ids: Tensor, *, eos_id: int, generator: torch.Generator) -> Tensor:
    """Sample one completion per prompt at temperature 1.

    Args:    prompt_ids: (B, T), int64, no padding: every prompt has the same length.
    Returns: (B, at most MAX_NEW_TOKENS), int64; `eos_id` after the end of a completion.
    """
    cache, step_ids, columns = None, prompt_ids, []
    is_done = torch.zeros(len(prompt_ids), dtype=torch.bool)
    while not is_done.all() and len(columns) < MAX_NEW_TOKENS:
        output = model(input_ids=step_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        probabilities = output.logits[:, -1].float().softmax(-1)
        next_ids = torch.multinomial(probabilities, 1, generator=generator).squeeze(1).masked_fill(is_done, eos_id)
        is_done |= next_ids == eos_id
        columns.append(next_ids)
        step_ids = next_ids.unsqueeze(1)
    return torch.stack(columns, dim=1)


def sample_solutions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    seed: int,
    batch_size: int = 128,
) -> list[str]:
    """Return one sampled solution per problem, in the problems' order."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [encode(tokenizer, prompt_text(problem.text)) for problem in problems]
    indices_by_length: defaultdict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        indices_by_length[len(prompt)].append(index)
    solutions = [""] * len(problems)
    for _, indices in sorted(indices_by_length.items()):
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            prompt_ids = torch.tensor([prompts[index] for index in batch])
            completions = sample(model, prompt_ids, eos_id=END_OF_TEXT_ID, generator=generator)
            texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                solutions[index] = text
    return solutions


def is_solved(problem: Problem, solution: str) -> bool:
    r"""Return whether the last box holds the answer.

    >>> is_solved(Problem((2, 3), "Compute {sum}."), "\\boxed{4}, no: \\boxed{5}")
    True
    """
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", solution)
    return bool(boxes) and boxes[-1] == str(problem.answer)


def measure_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], *, seed: int
) -> Accuracy:
    """Measure the accuracy at temperature 1, with one sample per problem."""
    solutions = sample_solutions(model, tokenizer, problems, seed=seed)
    return Accuracy(sum(map(is_solved, problems, solutions)), len(problems))
