"""Compare whole steps of GRPO with LoRA: this trainer against TRL's GRPOTrainer with PEFT.

    pip install -e '.[benchmarks]'
    python benchmarks/versus_trl.py --quick                      # under 3 minutes on two cores
    python benchmarks/versus_trl.py --json versus_trl.json       # longer, more steps, twice, rollouts by vLLM as well

Both sides have the same base in float32, the same LoRA (rank 32 on all linear layers), AdamW, and the same prompts of
53 to 113 tokens in the same steps. Each prompt has 8 rollouts of exactly the same length (nothing ends early). There
is one update per step with one problem's rollouts in a forward pass, generation by transformers in the trainer's
process, no gradient checkpointing, no reference model. This trainer serves the adapter merged (rollout.merge:
in_place), which TRL does for vLLM only. Each side verifies answers in its own way, TRL by its accuracy_reward. But the
answer's text decides the reward like a coin toss, because a random model earns none, and groups without reward have no
gradient.

Generation includes publishing of the adapter. Scoring is TRL's rewards, or here the wait for verdicts and the probe of
engine and trainer after each publication.
Every measurement is a process of its own, and the sides take turns. A step's seconds are the median over all steps but
each process's first; the peak is the process's largest resident size.
"""

import argparse
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worlds import TINY_CONFIG, World, scratch

GROUP_SIZE, MAX_PROMPT = 8, 192
RANK, LR, SEED = 32, 1e-4, 0
STAGES = ("generation", "scoring", "update", "step")


@dataclass(frozen=True)
class Work:
    """Hold problems per step, tokens of each rollout, steps, and threads (the fastest on two cores, for both sides)."""

    num_problems: int
    length: int
    num_steps: int
    num_threads: int


FULL = {"tiny": Work(8, 128, 10, 1), "0.1B": Work(4, 128, 3, 2)}
TINY_PATH = "trapo_lite/tiny_world/base"
QUICK = {"tiny": Work(8, 32, 2, 1), "0.1B": Work(3, 40, 2, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps, once, without vLLM")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("SIDE", "MODEL", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        side, model, folder = args.measure
        measure(side, model, Path(folder), (QUICK if args.quick else FULL)[model])
        return
    if importlib.util.find_spec("trl") is None:
        raise SystemExit("TRL is not installed: pip install -e '.[benchmarks]'")
    figures = compare(is_quick=args.quick)
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def compare(*, is_quick: bool) -> dict[str, Any]:
    """Return the worse of both models for each ratio, and all results by themselves."""
    models = {}
    with scratch() as folder:
        write_prompts(folder / "prompts.jsonl")
        for model in FULL:
            if model != "tiny":
                write_model(model, folder / model)
            sides = ["trl", "ours"] if is_quick else ["trl", "ours", "ours_vllm"]
            runs = defaultdict(list)
            for _ in range(1 if is_quick else 2):
                for side in sides:
                    runs[side].append(run_apart(side, model, folder, is_quick=is_quick))
            assert len({json.dumps(run.pop("prompts")) for found in runs.values() for run in found}) == 1
            models[model] = {side: together(found) for side, found in runs.items()}
            trl, ours = models[model]["trl"], models[model]["ours"]
            models[model]["trl_over_ours"] = {name: round(trl[name] / ours[name], 2) for name in trl if ours[name]}
    ratios = [found["trl_over_ours"] for found in models.values()]
    return {
        "trl_over_ours_step": min(ratio["step"] for ratio in ratios),
        "trl_over_ours_peak_memory": min(ratio["peak_gib"] for ratio in ratios),
        "models": models,
    }


def run_apart(side: str, model: str, folder: Path, *, is_quick: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, *(["--quick"] if is_quick else []), "--measure", side, model, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(FULL[model].num_threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode != 0:
        raise SystemExit(f"{side} with {model} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def together(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return medians over the steps of several runs without their first ones, and the largest peak."""
    seconds = {name: statistics.median([s for run in runs for s in run[name][1:]]) for name in STAGES}
    return {name: round(value, 4) for name, value in seconds.items()} | {"peak_gib": max(r["peak_gib"] for r in runs)}


def write_prompts(file: Path) -> None:
    """Write sums of 25 to 55 terms: 53 to 113 tokens."""
    rng = random.Random(SEED)
    lines = []
    for _ in range(64):
        terms = " ".join(
            f"({'abcdefgh'[n % 8]}) {rng.choice('+-')} {rng.randint(1, 6)}" for n in range(rng.randint(25, 55))
        )
        lines.append(json.dumps({"problem": f"Compute {rng.randint(10, 15)} {terms}.", "answer": "6"}) + "\n")
    file.write_text("".join(lines))


def write_model(shape: str, folder: Path) -> None:
    """Write random weights with the tiny world's tokenizer, which has fewer tokens than the model."""
    World.random(shape, folder)
    for file in Path("trapo_lite/tiny_world/base").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())


def toss(answer: str) -> bool:
    return zlib.crc32(answer.encode()) % 2 == 0


# ----- one side, in a process of its own


def measure(side: str, model: str, folder: Path, work: Work) -> None:
    path = TINY_PATH if model == "tiny" else str(folder / model)
    if side == "trl":
        seconds = train_with_trl(path, folder, work)
    else:
        seconds = train_with_us(path, folder, work, engine="vllm" if side == "ours_vllm" else "transformers")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**seconds, "peak_gib": round(peak, 3)}))


def lines_of(run: Path, step: int) -> list[str]:
    return (run / f"rollouts/step-{step:06d}.jsonl").read_text().splitlines()


def prompts_of(texts: Iterable[str]) -> list[int]:
    """Return the checksums of a step's prompts, sorted."""
    return sorted({zlib.crc32(text.replace(" ", "").encode()) for text in texts})


def train_with_us(model: str, folder: Path, work: Work, *, engine: str) -> dict[str, list[Any]]:
    from run_differences import read_metrics

    from trapo_lite.config import load_config
    from trapo_lite.core.types import Response, Score
    from trapo_lite.reward import Scorer, Verdict
    from trapo_lite.training import rollouts as rollout_stage
    from trapo_lite.training.trainer import train

    class Tossing(Scorer):
        def submit(self, response: Response) -> "Future[Score]":
            tossed: Future[Score] = Future()
            is_correct = toss(response.text)
            score = Score(Verdict("correct" if is_correct else "wrong"), float(is_correct))
            super().submit(response).add_done_callback(lambda _: tossed.set_result(score))
            return tossed

    rollout_stage.Scorer = Tossing
    settings = rollout_stage.sampling_settings
    rollout_stage.sampling_settings = lambda *a, **options: replace(settings(*a, **options), stop_ids=())
    overrides = [
        f"model.name={model}",
        "model.config_overrides={max_position_embeddings: 2048}",
        f"lora.r={RANK}",
        f"lora.alpha={RANK}",
        f"data.train={folder / 'prompts.jsonl'}",
        "data.require_expert=false",
        "data.prompt_template='{problem}'",
        f"data.max_prompt_tokens={MAX_PROMPT}",
        f"rollout.engine={engine}",
        "rollout.merge=in_place",
        f"rollout.num_problems={work.num_problems}",
        f"rollout.max_response_tokens={work.length}",
        f"optim.lr={LR}",
        f"train.max_steps={work.num_steps}",
        f"train.save_every={work.num_steps}",
        f"train.tokens_per_batch={MAX_PROMPT + GROUP_SIZE * work.length}",
        "eval.every=0",
        "run.name=ours",
        f"run.dir={folder}",
        f"run.num_threads={work.num_threads}",
        "run.trackers=[]",
        "run.deterministic=false",
    ]
    run = train(load_config([TINY_CONFIG, "configs/algorithm/dr_grpo.yaml"], overrides), restart=True)
    rows = read_metrics(run / "metrics.jsonl")
    assert all(row["rollout/completion_tokens"] == work.length for row in rows)
    return {
        "prompts": [prompts_of(json.loads(line)["prompt"] for line in lines_of(run, row["step"])) for row in rows],
        "generation": [row["time/publish"] + row["time/sample"] for row in rows],
        "scoring": [row["time/verdicts"] + row["time/score"] for row in rows],
        "update": [row["time/update"] for row in rows],
        "step": [row["time/step"] for row in rows],
    }


def train_with_trl(model: str, folder: Path, work: Work) -> dict[str, list[Any]]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]
    from trl.rewards import accuracy_reward  # type: ignore[attr-defined]

    seconds: dict[str, list[Any]] = {name: [] for name in (*STAGES, "prompts")}

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = method(*arguments)
            seconds[name].append(time.perf_counter() - started)
            return result

        return call

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **_unused) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **_unused) -> None:
            seconds["step"].append(time.perf_counter() - self.started)

    def reward(completions: list[str], solution: list[str], **_unused: object) -> Any:
        accuracy_reward([[{"role": "assistant", "content": text}] for text in completions], solution)
        return [float(toss(text)) for text in completions]

    from trapo_lite.data.order import batch_indices

    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    sizes = {"batch_size": work.num_problems, "num_problems": len(rows), "seed": SEED}
    rows = [
        rows[index] for step in range(work.num_steps) for index in batch_indices(step, **sizes)
    ]  # in this trainer's order
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": r["problem"], "solution": f"${r['answer']}$"} for r in rows]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, target_modules="all-linear"),
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            model_init_kwargs={"dtype": torch.float32},
            per_device_train_batch_size=GROUP_SIZE,
            gradient_accumulation_steps=work.num_problems,
            num_generations=GROUP_SIZE,
            max_completion_length=work.length,
            generation_kwargs={"min_new_tokens": work.length},
            max_steps=work.num_steps,
            shuffle_dataset=False,
            learning_rate=LR,
            lr_scheduler_type="constant",
            beta=0.0,
            temperature=1.0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            seed=SEED,
        ),
        callbacks=[Clock()],
    )
    generate = timed("generation", trainer._generate)

    def generate_exactly(prompts: list[str]) -> Any:
        seconds["prompts"].append(prompts_of(prompts))
        result = generate(prompts)
        assert all(len(ids) == work.length for ids in result[1])
        return result

    trainer._generate = generate_exactly  # type: ignore[method-assign]
    trainer._generate_and_score_completions = timed(  # type: ignore[method-assign]
        "scoring", trainer._generate_and_score_completions
    )
    trainer.train()
    seconds["scoring"] = [both - drawn for both, drawn in zip(seconds["scoring"], seconds["generation"], strict=True)]
    stages = zip(seconds["step"], seconds["generation"], seconds["scoring"], strict=True)
    seconds["update"] = [step - drawn - scored for step, drawn, scored in stages]
    return seconds


if __name__ == "__main__":
    main()
