"""What a rollout phase costs, by schedule; what publishing costs; whether wrong adapters are stopped; engine kills.

    python benchmarks/rollout.py --quick                       # schedules, publishing, wrong adapters: under 3 minutes
    python benchmarks/rollout.py --json rollout.json           # more repetitions, and 10 engine kills in a 30-step run

Real vLLM on the tiny world's base. Lengths are drawn, not sampled: log-normal, capped, a function of each request's
seed, so that every schedule draws the same rollouts. Verdicts are drawn too: a share of them is correct. Modes take
turns, and only their ratios mean something.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trapo_lite.config import Config, load_config
from trapo_lite.config.presets import PRESETS
from trapo_lite.engines.base import EngineError, SampleRequest
from trapo_lite.engines.start import start_engine
from trapo_lite.policy import Policy
from trapo_lite.publishing import Publisher
from trapo_lite.run_folder import differences, read_metrics
from trapo_lite.sampler import Sampler, SamplingSettings
from trapo_lite.types import MicroGroup, Problem, Rollout, Verdict

CONFIG = "configs/tiny_cpu.yaml"
GRPO = (MicroGroup(8, 0.0, 0.0),)
TRAPO = PRESETS["reference_code"]
PROMPT, TRACE, LIMIT = 24, 120, 480
MEDIAN_LENGTH = 80
CORRECT_SHARE = 0.35
MODES = ("barrier", "pipelined", "speculative", "grpo")


@dataclass
class DrawnLengths:
    """The engine inside, with every completion as long as its request's seed says."""

    engine: object
    sigma: float

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def submit(self, request: SampleRequest) -> None:
        length = int(MEDIAN_LENGTH * random.Random(request.seed).lognormvariate(0.0, self.sigma))
        num = max(1, min(length, request.max_tokens))
        self.engine.submit(replace(request, max_tokens=num, stop_ids=()))  # type: ignore[attr-defined]


class DrawnVerdicts:
    """A verdict at once, a function of the answer; whole expert traces are correct."""

    def submit(self, answer_text: str, gold: str) -> "concurrent.futures.Future[Verdict]":
        ticket: concurrent.futures.Future[Verdict] = concurrent.futures.Future()
        is_correct = answer_text == gold or random.Random(answer_text).random() < CORRECT_SHARE
        ticket.set_result(Verdict("correct" if is_correct else "wrong"))
        return ticket


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no engine kills")
    parser.add_argument("--repeats", type=int, help="phases a mode (default: 3, quick: 2)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures: dict[str, object] = {}
    repeats = args.repeats or (2 if args.quick else 3)
    settings = [(8, 1.0)] if args.quick else [(8, 1.0), (4, 1.0), (16, 1.0), (8, 0.5)]
    with scratch() as folder, engine_on_tiny_world(folder) as engine:
        for num_problems, sigma in settings:
            figures |= measure_schedules(engine, num_problems=num_problems, sigma=sigma, repeats=repeats)
    with scratch() as folder:
        figures |= wrong_adapters(folder)
        figures |= publish_share(folder)
    if not args.quick:
        with scratch() as folder:
            figures |= engine_kills(folder, kills=10, steps=30)
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="rollout-benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def engine_on_tiny_world(folder: Path, **changes: object) -> Iterator[object]:
    config = tiny_config(**changes)
    device = 0 if torch.cuda.is_available() else None
    engine = start_engine(config, max_model_len=512, log_path=folder / "engine.log", device_index=device)
    try:
        yield engine
    finally:
        engine.close()


def tiny_config(**changes: object) -> Config:
    return load_config([CONFIG], [f"{key}={json.dumps(value)}" for key, value in changes.items()])


# ----- schedules


def measure_schedules(engine: object, *, num_problems: int, sigma: float, repeats: int) -> dict[str, object]:
    """Seconds of the same phases by each schedule, summed over `repeats`, as ratios; the modes take turns."""
    seconds = dict.fromkeys(MODES, 0.0)
    requests = dict.fromkeys(MODES, 0)
    for step in range(-1, repeats):  # -1: to warm up
        groups = {}
        for mode in MODES:
            started = time.perf_counter()
            groups[mode], report = phase(engine, mode, num_problems=num_problems, sigma=sigma, step=step)
            if step >= 0:
                seconds[mode] += time.perf_counter() - started
                requests[mode] += report.num_requests
        same = [tokens(groups[mode]) for mode in ("barrier", "pipelined", "speculative")]
        flips = sum(a != b for other in same[1:] for a, b in zip(same[0], other, strict=True))
        if flips:
            raise SystemExit(f"{flips} rollouts of the schedules differ in step {step}: they must be the same")
    name = "" if (num_problems, sigma) == (8, 1.0) else f" problems {num_problems} sigma {sigma:g}"
    print(f"problems {num_problems}, sigma {sigma:g}: " + ", ".join(f"{m} {s:.1f} s" for m, s in seconds.items()))
    return {
        f"barrier_over_speculative{name}": round(seconds["barrier"] / seconds["speculative"], 3),
        f"barrier_over_pipelined{name}": round(seconds["barrier"] / seconds["pipelined"], 3),
        f"trapo_over_grpo{name}": round(seconds["speculative"] / seconds["grpo"], 3),
        f"requests speculative over barrier{name}": round(requests["speculative"] / requests["barrier"], 3),
    }


def phase(engine: object, mode: str, *, num_problems: int, sigma: float, step: int):
    problems = [drawn_problem(number) for number in range(num_problems)]
    sampler = Sampler(
        DrawnLengths(engine, sigma),  # type: ignore[arg-type]
        DrawnVerdicts(),
        micro_groups=GRPO if mode == "grpo" else TRAPO,
        settings=SamplingSettings(
            seed=0,
            max_response_tokens=LIMIT,
            stop_ids=(),
            schedule="pipelined" if mode == "grpo" else mode,  # type: ignore[arg-type]
        ),
        decode=lambda token_ids: " ".join(map(str, token_ids)),
        is_boundary=lambda token_id: False,
    )
    engine.reset_prefix_cache()  # type: ignore[attr-defined]
    return sampler.sample(problems, step=step)


def drawn_problem(number: int) -> Problem:
    rng = random.Random(number)
    traces = tuple(tuple(rng.randrange(5, 40) for _ in range(TRACE)) for _ in range(2))
    prompt = tuple(rng.randrange(5, 40) for _ in range(PROMPT))
    return Problem(f"p{number}", prompt, " ".join(map(str, traces[1])), traces)


def tokens(groups: Sequence[Sequence[Rollout]]) -> list[tuple]:
    return [(r.slot, r.prefix_ids, r.completion_ids, r.reward) for group in groups for r in group]


# ----- wrong adapters


class Injecting:
    """The engine inside, given `folder` instead of what is published from now on."""

    def __init__(self, engine: object) -> None:
        self.engine = engine
        self.folder: Path | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def publish(self, adapter_dir: Path, version: int) -> None:
        self.engine.publish(self.folder or adapter_dir, version)  # type: ignore[attr-defined]


PHRASES = {
    "stale": "still samples from the previous adapter",
    "no_op": "samples from the bare base",
    "doubled": "applies the adapter twice over",
    "wrong_rank": "has rank 16, the engine was started for 32",
}


def wrong_adapters(folder: Path) -> dict[str, object]:
    """A stale, a no-op, a doubled and a wrong-rank adapter: what stops each, in the step that published it."""
    config = tiny_config()
    policy = Policy.load(config.model, config.lora, device="cpu")
    other_rank = Policy.load(config.model, config.lora.model_copy(update={"r": 16}), device="cpu")
    messages = {}
    with engine_on_tiny_world(folder) as engine:
        injecting = Injecting(engine)
        publisher = Publisher(
            injecting,  # type: ignore[arg-type]
            policy,
            scratch=folder / "scratch",
            vocab_size=policy.model.config.vocab_size,
            num_tokens=512,
            max_length=512,
        )
        folders = {kind: folder / kind for kind in ("stale", "no_op", "doubled", "wrong_rank")}
        policy.save_adapter(folders["no_op"])  # B is still 0
        other_rank.save_adapter(folders["wrong_rank"])
        version = 0
        for kind, adapter in folders.items():
            version += 1
            injecting.folder = None
            move(policy, seed=version)
            publisher.publish(version)
            if kind == "stale":
                policy.save_adapter(adapter)
            move(policy, seed=version + 100)
            if kind == "doubled":
                save_doubled(policy, adapter)
            injecting.folder = adapter
            version += 1
            try:
                publisher.publish(version)
            except EngineError as error:
                messages[kind] = str(error)[:160]
    print("\n".join(f"{kind}: {message}" for kind, message in messages.items()))
    named = [kind for kind, phrase in PHRASES.items() if phrase in messages.get(kind, "")]
    return {"wrong_adapters_stopped": f"{len(messages)} of 4", "wrong_adapters_named": f"{len(named)} of 4"}


def move(policy: Policy, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def save_doubled(policy: Policy, folder: Path) -> None:
    policy.save_adapter(folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))


# ----- publishing, and engine kills, in real runs


def publish_share(folder: Path) -> dict[str, object]:
    """Of eight steps on the tiny world, the median share of a step from handing over the adapter to the first token."""
    rows = read_metrics(run(folder, "publish", steps=8) / "metrics.jsonl")[1:]
    share = statistics.median(row["time/first_token"] / row["time/step"] for row in rows)
    publish = statistics.median(row["time/publish"] / row["time/step"] for row in rows)
    adapter = (folder / "publish/adapter/adapter_model.safetensors").stat().st_size
    config = (folder / "publish/adapter/adapter_config.json").stat().st_size
    return {
        "publish_share_of_step": round(share, 4),  # to the first token, reading the prompts included
        "publish_alone_share_of_step": round(publish, 4),
        "bytes_moved_over_adapter": round(rows[-1]["engine/publish_bytes"] / (adapter + config), 3),
    }


def engine_kills(folder: Path, *, kills: int, steps: int) -> dict[str, object]:
    """SIGKILL the engine at random moments of a deterministic run; compare it with one that was left alone."""
    whole = run(folder, "whole", steps=steps)
    command = run_command(folder, "killed", steps=steps)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    rng, killed = random.Random(0), 0
    metrics = folder / "killed/metrics.jsonl"
    while process.poll() is None:
        time.sleep(0.2)
        done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        if killed < kills and done >= 1 + killed * (steps - 2) // kills:
            time.sleep(rng.uniform(0.0, 1.5))
            for pid in engine_processes(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
    if killed < kills:
        raise SystemExit(f"the run ended after {killed} engine kills; give more steps")
    return {
        "engine_kills": killed,
        "engine_kills_exit_code": process.returncode,
        "engine_kills_differences": differences(whole, folder / "killed"),
    }


def engine_processes(parent: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(parent), "-f", "vllm_child"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def run(folder: Path, name: str, *, steps: int) -> Path:
    subprocess.run(run_command(folder, name, steps=steps), check=True, stdout=subprocess.DEVNULL)
    return folder / name


def run_command(folder: Path, name: str, *, steps: int) -> list[str]:
    settings = [f"run.dir={folder}", f"run.name={name}", f"train.max_steps={steps}", "eval.every=0"]
    return [sys.executable, "scripts/train.py", "--config", CONFIG, "run.tensorboard=false", *settings]


if __name__ == "__main__":
    main()
