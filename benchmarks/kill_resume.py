"""Kill runs in every phase, and require that each finished run equals one that was never interrupted.

    python benchmarks/kill_resume.py --folder /tmp/kills --kills 200 --minutes 8     # again, until all kills are done

Phases are those of `phases.py`. A chain is one run that is killed in one phase after another, resumed each time by the
same command, and finished. It runs in its own process, or by `torchrun` in two; then rank 0, rank 1 or the launcher is
killed. After every kill no process of the run may be left, nothing in shared memory, no lock. At the end adapter,
newest checkpoint, rollouts and metrics (except times) are compared bit for bit; of the jobs, what they wrote.

The phase of a kill is the one in which the process died, which may differ from the phase that was aimed at. Lives of
one process are forked from this one, which has imported the libraries; those of two are started as programs.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import phases
from leftovers import left_behind, shared_memory
from lives import Life, lengths
from run_differences import differences

CONFIG = "configs/tiny_cpu.yaml"
TRAIN_ROWS, TRAIN_FILE = 150, "trapo_lite/tiny_world/data/train.jsonl"
SETTINGS = (
    "rollout.engine=transformers",
    "rollout.num_problems=2",
    "rollout.max_response_tokens=56",
    "algorithm.schedule=[{num_rollouts: 2}, {num_rollouts: 1, prefix_ratio: 0.5, help_below: 1.0}, "
    "{num_rollouts: 1, prefix_ratio: 1.0, help_below: 1.0}]",
    "reward.num_workers=1",
    "train.max_steps=6",
    "train.save_every=2",
    "eval.every=3",
    "eval.num_problems=2",
    "run.trackers=[]",
)
# Phase -> how many of 200 kills, with one process and with two.
SHARES = {
    "start": (16, 5),
    "publishing": (15, 5),
    "sampling": (15, 5),
    "grading": (14, 4),
    "update": (15, 5),
    "evaluation": (14, 4),
    "logging": (10, 3),
    "checkpoint": (15, 5),
    "finish": (10, 4),
    "export": (12, 0),
    "evaluation job": (12, 0),
    "data building": (12, 0),
}
KILLS_A_CHAIN = 6


@dataclass
class Kill:
    """Hold one kill.

    target: rank 0, rank 1 or all, which is the launcher
    aimed:  the phase that was aimed at
    after:  seconds from that phase's begin
    """

    phase: str
    aimed: str
    target: str
    after: float
    leftovers: list[str] = field(default_factory=list)


@dataclass
class Chain:
    """Hold one run or job: its kills, and its differences from an undisturbed one."""

    name: str
    processes: int
    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


class Bench:
    """Run lives and kills in one folder. Finished chains are in chains.jsonl."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log = folder, folder / "output.log"
        self.chains_file = folder / "chains.jsonl"
        self.chains = read_chains(self.chains_file)
        self.rng = random.Random(f"{seed}/{len(self.chains)}")
        self.durations = {}
        rows = folder / "train.jsonl"
        if not rows.exists():
            lines = Path(TRAIN_FILE).read_text().splitlines(keepends=True)
            rows.write_text("".join(lines[:TRAIN_ROWS]))

    def command(self, name: str, job: str | None) -> list[str]:
        """Return script and arguments of a run called `name`, or of a job that writes to `name`."""
        out, reference = str(self.folder / name), str(self.folder / "reference-1")
        if job == "export":
            return ["export.py", "--run", reference, "--out", out]
        if job == "evaluation job":
            options = ["eval.num_problems=12", "rollout.max_num_seqs=4"]
            return ["evaluate.py", "--run", reference, "--out", out, *options]
        if job == "data building":
            rows = f"data.train={self.folder / 'train.jsonl'}"
            second = ["--second", TRAIN_FILE, "--verify", "--out", f"{out}/set.jsonl"]
            return ["prepare_data.py", "--config", CONFIG, rows, "reward.num_workers=1", *second]
        run = [f"data.train={self.folder / 'train.jsonl'}", f"run.dir={self.folder}", f"run.name={name}"]
        return ["train.py", "--config", CONFIG, *SETTINGS, *run]

    def reference(self, processes: int, job: str | None = None) -> Path:
        """Make, once, the result without kills. The lengths of its phases decide the moments of kills."""
        name = f"reference-{job or processes}"
        record = self.folder / f"{name}.phases"
        if not (self.folder / f"{name}.done").exists():
            self.prepare(name, job)
            record.unlink(missing_ok=True)
            life = self.life(name, job, processes, record)
            if life.wait() != 0:
                raise SystemExit(f"the uninterrupted {name} failed; see {self.log}")
            (self.folder / f"{name}.done").touch()
        self.durations |= {phase: max(seconds) for phase, seconds in lengths(record).items()}
        return self.folder / name

    def life(self, name: str, job: str | None, processes: int, record: Path) -> Life:
        command = self.command(name, job)
        return Life(command, processes=processes, record=record, log=self.log, mark=self.mark)

    def prepare(self, name: str, job: str | None) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        if job == "data building":
            (self.folder / name).mkdir()

    def run_chain(self, processes: int, aims: Sequence[str], job: str | None = None) -> Chain:
        """Kill once in each of the phases, finish, compare, and record."""
        reference = self.reference(processes, job)
        chain = Chain(f"chain-{len(self.chains)}", processes)
        self.prepare(chain.name, job)
        shared_before = shared_memory()
        has_ended = False
        for number, aimed in enumerate(aims):
            kill = self.kill_once(chain, job, aimed, self.folder / f"{chain.name}.{number}.phases")
            if kill is None:
                has_ended = True
                break
            kill.leftovers = left_behind(self.mark, self.folder / chain.name, shared_before)
            chain.kills.append(kill)
        last = None if has_ended else self.life(chain.name, job, processes, self.folder / f"{chain.name}.last.phases")
        if last is not None and last.wait() != 0:
            chain.differences = [f"the last resume ended with {last.exit_code}; see {self.log}"]
        elif job is None:
            chain.differences = differences(reference, self.folder / chain.name)
        else:
            chain.differences = different_files(reference, self.folder / chain.name)
        if not chain.differences and not any(kill.leftovers for kill in chain.kills):
            shutil.rmtree(self.folder / chain.name)
            for file in self.folder.glob(f"{chain.name}.*.phases"):
                file.unlink()
        self.chains.append(chain)
        with self.chains_file.open("a") as file:
            file.write(json.dumps(asdict(chain)) + "\n")
        return chain

    def kill_once(self, chain: Chain, job: str | None, aimed: str, record: Path) -> Kill | None:
        """Start a life and end it by SIGKILL at a random moment of the aimed phase's first or a later turn.

        Returns None if it ended by itself before.
        """
        turn = self.rng.randint(1, 60) if aimed in ("sampling", "grading") else self.rng.choice((1, 1, 2))
        turn = 1 if aimed in ("start", "finish", *phases.SCRIPT_BY_JOB) else turn
        after = self.rng.random() * self.durations[aimed]
        target = self.rng.choice(("rank 0", "rank 1", "all")) if chain.processes > 1 else "rank 0"
        rank = "1" if target == "rank 1" and has_phase(aimed, rank=1) else "0"
        life = self.life(chain.name, job, chain.processes, record)
        if not life.wait_for(aimed, turn=turn, rank=rank, then=after):
            return None
        died_in = life.kill(target)
        return None if life.exit_code == 0 else Kill(died_in, aimed, target, round(after, 4))

    @property
    def mark(self) -> str:
        return f"{os.getpid()}-kills"


def has_phase(phase: str, *, rank: int) -> bool:
    """Return whether the rank has the phase: only the main process writes."""
    return rank == 0 or phase not in ("logging", "checkpoint")


def different_files(left: Path, right: Path) -> list[str]:
    """Return the names of files that differ between two folders, apart from the folders' own paths inside them."""

    def content(root: Path, name: Path) -> bytes | None:
        file = root / name
        return file.read_bytes().replace(str(root).encode(), b"") if file.is_file() else None

    names = {path.relative_to(root) for root in (left, right) for path in root.rglob("*") if path.is_file()}
    return [str(name) for name in sorted(names) if content(left, name) != content(right, name)]


def read_chains(file: Path) -> list[Chain]:
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [Chain(**{**row, "kills": [Kill(**kill) for kill in row["kills"]]}) for row in rows]


def missing(chains: Sequence[Chain], processes: int, num_kills: int) -> list[str]:
    """Return the phases, each as often as kills in it are missing."""
    done = Counter(kill.phase for chain in chains if chain.processes == processes for kill in chain.kills)
    wanted = {phase: round(shares[processes - 1] * num_kills / 200) for phase, shares in SHARES.items()}
    return [phase for phase in wanted for _ in range(wanted[phase] - done[phase])]


def table(chains: Sequence[Chain]) -> list[dict]:
    """Return a row per phase and number of processes: kills, and how many were in runs that ended bit for bit."""
    rows: dict[tuple[str, int], dict] = {}
    order = [*SHARES, "between phases"]
    for chain in chains:
        for kill in chain.kills:
            row = rows.setdefault(
                (kill.phase, chain.processes),
                {"phase": kill.phase, "processes": chain.processes, "kills": 0, "bit_for_bit": 0, "leftovers": 0},
            )
            row["kills"] += 1
            row["bit_for_bit"] += not chain.differences
            row["leftovers"] += bool(kill.leftovers)
    return [rows[key] for key in sorted(rows, key=lambda key: (key[1], order.index(key[0])))]


def markdown(rows: Sequence[dict]) -> str:
    names = ("phase", "processes", "kills", "resumed bit for bit", "leftovers")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
    totals = [sum(row[key] for row in rows) for key in ("kills", "bit_for_bit", "leftovers")]
    return "\n".join([*lines, "| all | | " + " | ".join(map(str, totals)) + " |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of runs and results; again: resume")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no further chain after this time")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    args = parser.parse_args()
    bench = Bench(args.folder.absolute(), seed=args.seed)
    preload()
    end = time.monotonic() + 60 * args.minutes
    while time.monotonic() < end and (choice := next_chain(bench, args.kills)) is not None:
        chain = bench.run_chain(*choice)
        killed = ", ".join(f"{kill.phase} ({kill.target})" for kill in chain.kills)
        print(f"{chain.name}, {chain.processes} process(es): {killed}: {chain.differences or 'same'}", flush=True)
    rows = table(bench.chains)
    (bench.folder / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    (bench.folder / "table.md").write_text(markdown(rows) + "\n")
    print(markdown(rows))
    bad = [chain for chain in bench.chains if chain.differences or any(kill.leftovers for kill in chain.kills)]
    sys.exit(1 if bad else 0 if next_chain(bench, args.kills) is None else 75)  # 75: not done, to be continued


def next_chain(bench: Bench, num_kills: int) -> tuple[int, list[str], str | None] | None:
    """Return (processes, phases to aim at, job) with the most kills left, or None if all are done."""
    one, two = (missing(bench.chains, processes, num_kills) for processes in (1, 2))
    jobs = [phase for phase in one if phase in phases.SCRIPT_BY_JOB]
    one = [phase for phase in one if phase not in jobs]
    if not (one or two or jobs):
        return None
    kinds = [(len(one), 1, one), (len(two) * 2, 2, two), (len(jobs) * 2, 0, jobs)]
    _, processes, left = max(kinds, key=lambda kind: kind[0])
    if processes == 0:
        job = bench.rng.choice(left)
        return 1, [job] * min(2, left.count(job)), job
    aims = bench.rng.sample(left, min(KILLS_A_CHAIN if processes == 1 else 4, len(left)))
    return processes, sorted(aims, key=lambda phase: phase == "finish"), None


def preload() -> None:
    """Import what every life needs, once, before the first fork. Nothing is computed here."""
    import peft  # noqa: F401
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    for target in phases.FUNCTIONS.values():
        __import__(target.partition(":")[0])


if __name__ == "__main__":
    main()
