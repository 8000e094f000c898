"""Train a task that is not in the package: answer a question by a JSON object with the right sum, and nothing else.

    python examples/own_task/own_task.py

It takes about four minutes on two CPU cores. It writes ./own_task (a small base, and rows with other columns) and a run
in ./runs, trains with the reward function in json_rewards.py, and evaluates base and adapter.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import trapo_lite
from trapo_lite.tiny_world import BASE_DIR
from trapo_lite.tiny_world.corpus import documents
from trapo_lite.tiny_world.pretrain import loss_sum, pad, save
from trapo_lite.tiny_world.problems import Problem, distinct_problems, signed
from trapo_lite.tiny_world.tokenizer import END_OF_TEXT_ID, build_tokenizer, encode, prompt_text

HERE, FOLDER = Path(__file__).parent, Path("own_task")
NUM_ROWS = {"train": 400, "dev": 40, "test": 100}
BASE_STEPS, BATCH_SIZE, LR = 300, 32, 1e-3
JSON_SHARE, WRONG_SHARE = 0.5, 0.7  # of the base's texts are in JSON; of these have a wrong sum


def worked(problem: Problem, *, total: int) -> str:
    """Return a solution: an equation for each step, and the sum, as JSON."""
    steps = [
        f"{before}{signed(term)} = {after}"
        for before, term, after in zip(problem.totals[:-1], problem.terms[1:], problem.totals[1:], strict=True)
    ]
    return json.dumps({"steps": steps, "sum": total})


def write_rows(folder: Path) -> None:
    """Write the rows in columns of the task's own: question, total (a number), worked and level."""
    for split, num_rows in NUM_ROWS.items():
        problems = distinct_problems(split, "easy", num_rows, seed=7)
        rows = [
            {"question": p.text, "total": p.answer, "worked": worked(p, total=p.answer), "level": len(p.terms)}
            for p in problems
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts() -> Iterator[tuple[str, str]]:
    """Yield (prompt, answer): what the tiny base has read, and some JSON, often with a wrong sum."""
    rng = random.Random(7)
    for problem, solution in documents(seed=7):
        if problem.kind == "easy" and rng.random() < JSON_SHARE:
            error = rng.choice((-2, -1, 1, 2)) if rng.random() < WRONG_SHARE else 0
            solution = worked(problem, total=problem.answer + error)
        yield prompt_text(problem.text), solution


def write_base(folder: Path) -> None:
    """Let the tiny base read some JSON, as any model has that one starts from."""
    torch.manual_seed(7)
    tokenizer = build_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    stream = texts()
    for step in range(BASE_STEPS):
        examples = []
        for prompt, answer in islice(stream, BATCH_SIZE):
            ids = encode(tokenizer, prompt)
            examples.append(([*ids, *encode(tokenizer, answer), END_OF_TEXT_ID], len(ids)))
        ids, labels = pad(examples)
        loss = loss_sum(model(input_ids=ids).logits, labels) / (labels >= 0).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            print(f"base: step {step + 1} of {BASE_STEPS}, loss {loss.item():.3f}", flush=True)
    save(model, tokenizer, folder)


def main(overrides: Sequence[str] = ()) -> None:
    """Make base and rows, train, and evaluate base and adapter. overrides: options, such as train.max_steps=5."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    write_rows(FOLDER)
    if not (FOLDER / "base/config.json").exists():
        write_base(FOLDER / "base")
    score = f"{{type: function, path: {HERE / 'json_rewards.py'}:score}}"
    config = trapo_lite.load_config(
        ["tiny_cpu.yaml", HERE / "task.yaml"], [f"reward.functions={score}", *overrides]
    )  # with the whole path, so that it can be started from any folder
    test = [f"eval.data={FOLDER / 'test.jsonl'}"]
    run = trapo_lite.train(config)
    before = trapo_lite.evaluate(run=run.folder, base=True, overrides=test)["test"]
    after = trapo_lite.evaluate(run=run.folder, overrides=test)["test"]
    for name, result in (("before", before), ("after", after)):
        low, high = result.interval_95
        right = f"right {result.accuracy:.2f} (95 %: {low:.2f} to {high:.2f})"
        print(f"{name:7} {right}, mean reward {result.mean_reward:.2f}")
    print(f"for example {after.answers[0].completion}")


if __name__ == "__main__":
    main(sys.argv[1:])
