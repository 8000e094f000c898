"""TRAPO, whole: sample, cut, grade, advantages, loss, step. Run it with `python examples/trapo_in_one_file.py`.

The model has 0.9 million parameters and adds numbers. The mathematics is the package's own (`trapo_lite.core`), and the
gradient is the trainer's (tests/test_trapo_in_one_file.py). Left out is what makes the trainer fast and safe: vLLM,
packed trees, several processes, checkpoints. Here every rollout is a row, and micro-groups wait for each other.
"""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trapo_lite.core.advantage import group_advantages
from trapo_lite.core.losses import clipped_policy_gradient, trust_region_nll
from trapo_lite.core.micro_groups import PRESETS, cut_prefix, prefix_ratio
from trapo_lite.core.types import Problem, Rollout, Verdict
from trapo_lite.tiny_world import BASE_DIR, DATA_DIR

PROMPT = "<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"
MAX_TOKENS = 128  # of a response: expert prefix and completion together
ALPHA = 0.1  # edge of the trust region, in probability


def read_problems(file: Path, tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
    """Return the rows of a file as token ids; an expert solution ends with EOS."""
    problems = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        traces = [(*tokenizer.encode(text), tokenizer.eos_token_id) for text in row["solutions"]]
        prompt = tokenizer.encode(PROMPT.format(problem=row["problem"]))
        problems.append(Problem(str(number), tuple(prompt), row["answer"], tuple(map(tuple, traces))))
    return problems


@torch.no_grad()
def sample(model: PreTrainedModel, beginnings: Sequence[tuple[int, ...]], *, end_id: int) -> list[tuple[int, ...]]:
    """Continue each sequence of token ids at temperature 1, up to the first EOS inclusive."""
    longest = max(map(len, beginnings))
    input_ids = torch.tensor([[end_id] * (longest - len(ids)) + list(ids) for ids in beginnings])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in beginnings])
    output = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        max_new_tokens=MAX_TOKENS,
        pad_token_id=end_id,
    )
    completions = output[:, longest:].tolist()
    return [tuple(ids[: ids.index(end_id) + 1] if end_id in ids else ids) for ids in completions]


def grade(text: str, answer: str) -> float:
    """Return 1 if the last box holds the answer."""
    boxes = re.findall(r"\\boxed\{(.*?)\}", text)
    return float(bool(boxes) and boxes[-1] == answer)


def draw_groups(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
) -> list[list[Rollout]]:
    """Draw the micro-groups of each problem: it is helped by an expert prefix where it has failed so far."""
    groups: list[list[Rollout]] = [[] for _ in problems]
    for micro_group in PRESETS["reference_code"]:
        planned = []  # problem's index, prefix, whether the prefix is trained
        for index, problem in enumerate(problems):
            ratio = prefix_ratio(micro_group, [rollout.reward for rollout in groups[index]])
            trace = problem.expert_ids[micro_group.trace or 0]
            prefix = trace[: cut_prefix(trace, ratio, lambda token: "\n\n" in tokenizer.decode([token]))]
            num_trained = micro_group.num_rollouts if micro_group.num_trained is None else micro_group.num_trained
            for place in range(micro_group.num_rollouts):
                planned.append((index, prefix, bool(prefix) and place >= micro_group.num_rollouts - num_trained))
        beginnings = [problems[index].prompt_ids + prefix for index, prefix, _ in planned]
        completions = sample(model, beginnings, end_id=tokenizer.eos_token_id)
        for (index, prefix, is_trained), completion in zip(planned, completions, strict=True):
            is_all_expert = prefix in problems[index].expert_ids
            completion = () if is_all_expert else completion[: MAX_TOKENS - len(prefix)]
            reward = grade(tokenizer.decode(prefix + completion), problems[index].answer)
            rollout = Rollout(
                problem_id=problems[index].id, slot=len(groups[index]), trace=micro_group.trace, adapter_version=None,
                prompt_ids=problems[index].prompt_ids, prefix_ids=prefix, completion_ids=completion,
                completion_logprobs=(0.0,) * len(completion),  # unused: sampler and trainer are one model here
                finish_reason="expert" if is_all_expert else "stop", train_prefix=is_trained,
                verdict=Verdict("correct" if reward else "wrong"), reward=reward,
            )  # fmt: skip
            groups[index].append(rollout)
    return groups


def response_logprobs(model: PreTrainedModel, rollout: Rollout) -> Tensor:
    """Return the log-prob of each token of prefix and completion."""
    ids = torch.tensor(rollout.prompt_ids + rollout.response_ids)
    logprobs = model(input_ids=ids[None, :-1]).logits[0].float().log_softmax(dim=-1)
    return logprobs.gather(1, ids[1:, None])[len(rollout.prompt_ids) - 1 :, 0]


def trapo_loss(model: PreTrainedModel, group: Sequence[Rollout]) -> Tensor:
    """Return the loss of one problem: trust-region SFT on expert tokens, policy gradient on own tokens, both summed."""
    loss = torch.zeros(())
    advantages = group_advantages(torch.tensor([[rollout.reward for rollout in group]]), divide_by_std=False)[0]
    for rollout, advantage in zip(group, advantages, strict=True):
        if not rollout.train_prefix and advantage == 0:
            continue  # nothing in it moves the weights
        logprobs = response_logprobs(model, rollout)
        prefix, own = logprobs[: len(rollout.prefix_ids)], logprobs[len(rollout.prefix_ids) :]
        if rollout.train_prefix:
            loss = loss + trust_region_nll(prefix, alpha=ALPHA).sum()
        loss = loss + clipped_policy_gradient(own, own.detach(), advantage, clip_low=None, clip_high=None).sum()
    return loss


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> float:
    """Return the share of problems that are solved by one answer without help."""
    answers = sample(model, [problem.prompt_ids for problem in problems], end_id=tokenizer.eos_token_id)
    pairs = zip(answers, problems, strict=True)
    return sum(grade(tokenizer.decode(ids), problem.answer) for ids, problem in pairs) / len(problems)


def main(num_steps: int = 40, num_problems: int = 8) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # faster than two on tensors as small as these
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    base = AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=32, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.01)
    problems, unseen = (read_problems(DATA_DIR / f"{name}.jsonl", tokenizer) for name in ("train", "test"))
    print(f"solved before: {accuracy(model, tokenizer, unseen):.3f} of {len(unseen)} unseen problems", flush=True)
    for step in range(1, num_steps + 1):
        groups = draw_groups(model, tokenizer, random.Random(step).sample(problems, num_problems))
        for group in groups:
            loss = trapo_loss(model, group) / (MAX_TOKENS * num_problems)
            if loss.requires_grad:
                loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        own = [rollout.reward for group in groups for rollout in group[:4]]
        helped = [bool(rollout.prefix_ids) for group in groups for rollout in group]
        print(f"step {step:2d}  own {sum(own) / len(own):.2f}  helped {sum(helped) / len(helped):.2f}", flush=True)
    print(f"solved after: {accuracy(model, tokenizer, unseen):.3f} of {len(unseen)} unseen problems")


if __name__ == "__main__":
    main()
