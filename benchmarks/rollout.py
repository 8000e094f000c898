"""Measure rollout phases by schedule and by how the adapter is served, publishing, wrong adapters and engine kills.

    python benchmarks/rollout.py --quick                       # under 3 minutes on two cores
    python benchmarks/rollout.py --json rollout.json           # more sizes, and 10 engine kills in a 30-step run
    python benchmarks/rollout.py --shape 1.5B                  # on a GPU: phases on random weights of that shape

Real vLLM, on the tiny world's base or on random weights. Lengths are drawn, not sampled: log-normal, capped, a
function of each request's seed, so that every schedule draws the same rollouts. Verdicts are drawn too: a share of them
is correct. Modes take turns, and only their ratios mean something.
"""

import argparse
import concurrent.futures
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from engine_kills import engine_kills, publish_share
from merging import measure_merging
from worlds import SHAPES, TINY, World, scratch, start
from wrong_adapters import wrong_adapters

from trapo_lite.core.micro_groups import PRESETS, MicroGroup
from trapo_lite.core.types import Problem, Response, Rollout, Score, Verdict
from trapo_lite.engines.base import SampleRequest
from trapo_lite.rollout.sampler import sample_groups
from trapo_lite.rollout.settings import SamplingSettings

GRPO = (MicroGroup(8, 0.0, 0.0),)
TRAPO = PRESETS["reference_code"]
PROMPT, TRACE, LIMIT = 24, 120, 480
MEDIAN_LENGTH = 80
CORRECT_SHARE = 0.35
RIGHT = {"wrong_adapters_stopped": "4 of 4", "wrong_adapters_named": "4 of 4", "engine_kills_differences": []}
MODES = ("barrier", "pipelined", "speculative", "grpo")


@dataclass
class DrawnLengths:
    """Wrap an engine so that every completion has the length that its request's seed says."""

    engine: object
    sigma: float

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def submit(self, request: SampleRequest) -> None:
        length = int(MEDIAN_LENGTH * random.Random(request.seed).lognormvariate(0.0, self.sigma))
        num = max(1, min(length, request.max_tokens))
        self.engine.submit(replace(request, max_tokens=num, stop_ids=()))  # type: ignore[attr-defined]


class DrawnVerdicts:
    """Give a score at once, as a function of the answer. Whole expert traces are correct."""

    def submit(self, response: Response) -> "concurrent.futures.Future[Score]":
        ticket: concurrent.futures.Future[Score] = concurrent.futures.Future()
        text = response.text
        is_correct = text == response.problem.answer or random.Random(text).random() < CORRECT_SHARE
        ticket.set_result(Score(Verdict("correct" if is_correct else "wrong"), float(is_correct)))
        return ticket


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, fewer repetitions, no engine kills")
    parser.add_argument("--repeats", type=int, help="phases for each mode (default: 4, quick: 2)")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape; phases and merging only")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures: dict[str, object] = {}
    repeats = args.repeats or (2 if args.quick else 4)
    settings = [(8, 1.0)] if args.quick else [(8, 1.0), (4, 1.0), (16, 1.0), (8, 0.5)]
    with scratch() as folder:
        world = TINY if args.shape is None else World.random(args.shape, folder / "model")
        with start(world, folder, can_merge=True) as engine:
            if world is TINY:
                figures |= wrong_adapters(engine, folder)
            for num_problems, sigma in settings:
                figures |= measure_schedules(engine, num_problems=num_problems, sigma=sigma, repeats=repeats)
            figures |= measure_merging(engine, world, folder)
    if args.shape is None:
        with scratch() as folder:
            figures |= publish_share(folder)
    if args.shape is None and not args.quick:
        with scratch() as folder:
            figures |= engine_kills(folder, kills=10, steps=30)
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    broken = [name for name, right in RIGHT.items() if figures.get(name, right) != right]
    if broken:
        raise SystemExit(f"not as it must be: {', '.join(broken)}")


def measure_schedules(engine: object, *, num_problems: int, sigma: float, repeats: int) -> dict[str, object]:
    """Return the schedules' seconds for the same phases, summed over `repeats`, as ratios. The modes take turns."""
    seconds = dict.fromkeys(MODES, 0.0)
    requests = dict.fromkeys(MODES, 0)
    phase(engine, "speculative", num_problems=num_problems, sigma=sigma, step=-1)  # warms up
    for step in range(repeats):
        groups = {}
        for mode in MODES:
            started = time.perf_counter()
            groups[mode], report = phase(engine, mode, num_problems=num_problems, sigma=sigma, step=step)
            seconds[mode] += time.perf_counter() - started
            requests[mode] += report.num_requests
        same = [tokens(groups[mode]) for mode in ("barrier", "pipelined", "speculative")]
        flips = sum(a != b for other in same[1:] for a, b in zip(same[0], other, strict=True))
        if flips:
            raise SystemExit(f"{flips} rollouts of the schedules differ in step {step}: they must be the same")
    name = "" if (num_problems, sigma) == (8, 1.0) else f" problems {num_problems} sigma {sigma:g}"
    print(
        f"problems {num_problems}, sigma {sigma:g}: " + ", ".join(f"{m} {s:.1f} s" for m, s in seconds.items()),
        flush=True,
    )
    return {
        f"barrier_over_speculative{name}": round(seconds["barrier"] / seconds["speculative"], 3),
        f"barrier_over_pipelined{name}": round(seconds["barrier"] / seconds["pipelined"], 3),
        f"trapo_over_grpo{name}": round(seconds["speculative"] / seconds["grpo"], 3),
        f"requests speculative over barrier{name}": round(requests["speculative"] / requests["barrier"], 3),
    }


def phase(engine: object, mode: str, *, num_problems: int, sigma: float, step: int):
    problems = [drawn_problem(number) for number in range(num_problems)]
    sampler = partial(
        sample_groups,
        DrawnLengths(engine, sigma),  # type: ignore[arg-type]
        DrawnVerdicts(),
        micro_groups=GRPO if mode == "grpo" else TRAPO,
        settings=SamplingSettings(
            seed=0,
            max_response_tokens=LIMIT,
            stop_ids=(),
            start_order="pipelined" if mode == "grpo" else mode,  # type: ignore[arg-type]
        ),
        decode=lambda token_ids: " ".join(map(str, token_ids)),
        is_boundary=lambda token_id: False,
    )
    engine.reset_prefix_cache()  # type: ignore[attr-defined]
    return sampler(problems, step=step)


def drawn_problem(number: int) -> Problem:
    rng = random.Random(number)
    traces = tuple(tuple(rng.randrange(5, 40) for _ in range(TRACE)) for _ in range(2))
    prompt = tuple(rng.randrange(5, 40) for _ in range(PROMPT))
    return Problem(f"p{number}", prompt, " ".join(map(str, traces[1])), traces)


def tokens(groups: Sequence[Sequence[Rollout]]) -> list[tuple]:
    return [(r.slot, r.prefix_ids, r.completion_ids, r.reward) for group in groups for r in group]


if __name__ == "__main__":
    main()
