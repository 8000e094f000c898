"""Run `make quickstart`: evaluate, train, merge and evaluate again, on the tiny world. [--seed N] [--restart]."""

import json
import time
from pathlib import Path

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite import cli
from trapo_lite.config import Config, load_config
from trapo_lite.engines.vllm.options import servable_dtype
from trapo_lite.evaluation.answer_store import read_answers
from trapo_lite.evaluation.evaluate import evaluate
from trapo_lite.evaluation.results import EvalResult
from trapo_lite.evaluation.target import EvalTarget
from trapo_lite.exporting.merge import export_run
from trapo_lite.run.folder import RunFolder
from trapo_lite.training.trainer import train

CONFIG = "configs/tiny_cpu.yaml"
TEST_SET = "trapo_lite/tiny_world/data/test.jsonl"


def quickstart(*, seed: int, restart: bool = False) -> Path:
    """Evaluate, train, merge and evaluate again; return the run's folder. An interrupted quickstart resumes."""
    started = time.perf_counter()
    overrides = [f"run.name=quickstart-seed{seed}", f"run.seed={seed}", f"model.dtype={servable_dtype()}"]
    config = load_config([CONFIG], overrides)
    folder = config.run.folder
    if restart:
        with RunFolder.open(config, restart=True) as restarted:
            for line in restarted.notes:
                print(line, flush=True)
    print(f"1/4  {config.model.name} before training, on {TEST_SET}", flush=True)
    before = evaluate_on_test_set(config, config.model.name, folder / "eval/before")
    print(f"\n2/4  training: {config.train.max_steps} steps of {config.rollout.num_problems} problems", flush=True)
    print("     own: share of correct rollouts of the first micro-group, which gets no help;")
    print("     guided: the same for rollouts with help; helped: share of rollouts with help;")
    print("     grad: norm of the gradient; eval: share of the development problems solved without help", flush=True)
    train(config)
    print("\n3/4  merging the adapter into the base", flush=True)
    report = export_run(folder, overwrite=True)
    print("\n".join(report.lines()))
    print(f"\n4/4  {folder / 'merged'} after training, on {TEST_SET}", flush=True)
    after = evaluate_on_test_set(config, str(folder / "merged"), folder / "eval/after")
    minutes = (time.perf_counter() - started) / 60
    print("\n".join(summary_lines(folder, before, after, minutes=minutes)))
    return folder


def evaluate_on_test_set(config: Config, model: str, out: Path) -> EvalResult:
    """Sample one answer to each unseen hard problem, at temperature 1, and grade it."""
    changed = config.model_copy(
        update={
            "model": config.model.model_copy(update={"name": model}),
            "eval": config.eval.model_copy(
                update={"data": TEST_SET, "num_problems": None, "num_samples": 1, "temperature": 1.0}
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
        '\nYour own problems: README.md, "Train your own"',
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
    rows = [json.loads(line) for line in Path(TEST_SET).read_text(encoding="utf-8").splitlines()]
    texts = {row.get("id", f"{Path(TEST_SET).stem}-{number}"): row["problem"] for number, row in enumerate(rows)}
    return texts.get(was["problem_id"], was["problem_id"]), was["completion"], now["completion"]


if __name__ == "__main__":
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole run (default 0)")
    parser.add_argument("--restart", action="store_true", help="rename an existing run of this seed and start again")
    args = parser.parse_args()
    with cli.exit_on_user_error(), cli.exit_when_stopped():
        quickstart(seed=args.seed, restart=args.restart)
