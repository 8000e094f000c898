"""Run the quickstart: evaluate, train, merge and evaluate again, on the tiny world that the package holds."""

import json
import time
from pathlib import Path

from trapo_lite.config import Config, load_config
from trapo_lite.config.shipped import CONFIGS, shipped_path
from trapo_lite.engines.vllm.options import servable_dtype
from trapo_lite.evaluation.answer_store import read_answers
from trapo_lite.evaluation.evaluate import evaluate
from trapo_lite.evaluation.results import EvalResult
from trapo_lite.evaluation.target import EvalTarget
from trapo_lite.exporting.merge import export_run
from trapo_lite.run.calling import command
from trapo_lite.run.folder import RunFolder
from trapo_lite.training.trainer import train

CONFIG = CONFIGS / "tiny_cpu.yaml"
TEST_SET = "trapo_lite/tiny_world/data/test.jsonl"


def quickstart(*, seed: int, restart: bool = False) -> Path:
    """Evaluate, train, merge and evaluate again; return the run's folder. An interrupted quickstart resumes."""
    started = time.perf_counter()
    overrides = [f"run.name=quickstart-seed{seed}", f"run.seed={seed}", f"model.dtype={servable_dtype()}"]
    config, test_set = load_config([CONFIG], overrides), shipped_path(TEST_SET)
    folder = config.run.folder
    if restart:
        with RunFolder.open(config, restart=True) as restarted:
            for line in restarted.notes:
                print(line, flush=True)
    print(f"1/4  {config.model.name} before training, on {test_set}", flush=True)
    before = evaluate_on(test_set, config, config.model.name, folder / "eval/before")
    print(f"\n2/4  training: {config.train.max_steps} steps of {config.rollout.num_problems} problems", flush=True)
    print("     own: share of correct rollouts of the first micro-group, which gets no help;")
    print("     guided: the same for rollouts with help; helped: share of rollouts with help;")
    print("     grad: norm of the gradient; eval: share of the development problems solved without help", flush=True)
    train(config)
    print("\n3/4  merging the adapter into the base", flush=True)
    report = export_run(folder, overwrite=True)
    print("\n".join(report.lines()))
    print(f"\n4/4  {folder / 'merged'} after training, on {test_set}", flush=True)
    after = evaluate_on(test_set, config, str(folder / "merged"), folder / "eval/after")
    minutes = (time.perf_counter() - started) / 60
    print("\n".join(summary_lines(folder, before, after, minutes=minutes)))
    return folder


def evaluate_on(test_set: str, config: Config, model: str, out: Path) -> EvalResult:
    """Sample one answer to each problem, at temperature 1, and grade it."""
    changed = config.model_copy(
        update={
            "model": config.model.model_copy(update={"name": model}),
            "eval": config.eval.model_copy(
                update={"data": test_set, "num_problems": None, "num_samples": 1, "temperature": 1.0}
            ),
        }
    )
    [result] = evaluate(EvalTarget(changed, None, out)).values()
    return result


def summary_lines(folder: Path, before: EvalResult, after: EvalResult, *, minutes: float) -> list[str]:
    """Return the lines to print at the end: both accuracies, an example, and where the files are."""

    def accuracy(result: EvalResult) -> str:
        low, high = result.interval_95
        return f"{result.accuracy:.3f}  (95 %: {low:.3f} to {high:.3f})"

    problem, was, now = learned_example(folder)
    return [
        "",
        f"What was learned in {minutes:.1f} minutes, on {len(after.groups)} unseen problems at temperature 1:",
        f"  before   {accuracy(before)}",
        f"  after    {accuracy(after)}",
        f"\nFor example {problem}",
        "  before   " + was.replace("\n", "\n           "),
        "  after    " + now.replace("\n", "\n           "),
        f"\nMerged checkpoint   {folder / 'merged'}",
        f"Adapter             {folder / 'adapter'}",
        f"Metrics             {folder / 'metrics.jsonl'} (tensorboard --logdir {folder / 'tensorboard'})",
        f"Every rollout       {folder / 'rollouts'}",
        f"Every test answer   {folder / 'eval/before/test.jsonl'}, {folder / 'eval/after/test.jsonl'}",
        f"\nYour own problems: {command('train')} --config smollm2_135m.yaml data.train=YOURS.jsonl",
    ]


def learned_example(folder: Path) -> tuple[str, str, str]:
    """Return the first test problem that was wrong before and is right after, or else the first, with both answers."""
    before, after = (
        [answer.to_row() for answer in read_answers(folder / "eval" / name / "test.jsonl")]
        for name in ("before", "after")
    )
    pairs = list(zip(before, after, strict=True))
    learned = [pair for pair in pairs if pair[0]["verdict"] != "correct" and pair[1]["verdict"] == "correct"]
    was, now = (learned or pairs)[0]
    rows = [json.loads(line) for line in Path(shipped_path(TEST_SET)).read_text(encoding="utf-8").splitlines()]
    texts = {row.get("id", f"{Path(TEST_SET).stem}-{number}"): row["problem"] for number, row in enumerate(rows)}
    return texts.get(was["problem_id"], was["problem_id"]), was["completion"], now["completion"]
