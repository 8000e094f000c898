"""Fill the disk at each write of a job in turn: nothing is lost, there is one clear error, the same command resumes.

    python benchmarks/full_disk.py --folder /tmp/full-disk --minutes 8     # again, until all writes have failed once

Jobs: train (two more steps of a run that has done two, with checkpoints and evaluation), evaluate, export and
prepare_data, on a byte-level model. A write is a file or folder created, written to, renamed, truncated or synced
inside the job's folder, by Python or by a library (full_disk.c, loaded by LD_PRELOAD). It fails once, or from then on,
in turn. Of writes of the same kind to the same file only the first and the last are tried.
"""

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

JOBS = ("train", "evaluate", "export", "prepare_data")
MARGIN = 300.0  # seconds a job may take


@dataclass
class Case:
    """Hold one write that failed.  what: create, write, rename, ...;  verdict: ok, or what was wrong."""

    job: str
    what: str
    path: str
    is_once: bool
    verdict: str
    message: str


def compiled(folder: Path) -> Path:
    """Build the library that refuses writes. Return its path."""
    library = folder / "full_disk.so"
    if not library.exists():
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "full_disk.c", "-ldl"], check=True)
    return library


class World:
    """Hold a folder with a model, data, an unfinished and a finished run, and the jobs' expected results."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder, self.log = folder, folder / "output.log"
        self.shim = ctypes.CDLL(str(library))
        self.before, self.after, self.work = folder / "before", folder / "after", folder / "work"
        if not (folder / "made").exists():
            self._make()

    def _make(self) -> None:
        from byte_model import write_byte_model

        for name in ("model", "before", "after", "work"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        write_byte_model(self.folder / "model", num_layers=1, hidden_size=64)
        rows = [
            {"problem": f"{a}+{b}?", "answer": str(a + b), "solution": f"{a} and {b}.\n\nSo \\boxed{{{a + b}}}"}
            for a in range(9)
            for b in range(9)
        ]
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for job, steps in (("train", 2), ("train", 4), *((job, 4) for job in JOBS[1:])):
            if job == "prepare_data":
                (self.work / "data").mkdir(exist_ok=True)
            if self.run(job, steps=steps)[0] != 0:
                raise SystemExit(f"{job} failed with room on the disk; see {self.log}")
            if steps == 2:
                shutil.copytree(self.work, self.before)
        shutil.copytree(self.work, self.after)
        (self.folder / "made").touch()

    def command(self, job: str, steps: int = 4) -> list[str]:
        run = ["--run", str(self.work / "run")]
        if job == "evaluate":
            return ["evaluate.py", *run, "eval.num_problems=3", "--out", str(self.work / "eval")]
        if job == "export":
            return ["export.py", *run, "--out", str(self.work / "merged")]
        rows, model = f"data.train={self.folder / 'rows.jsonl'}", f"model.name={self.folder / 'model'}"
        settings = [rows, model, "data.expert_text=full", "data.prompt_template='{problem}'", "reward.num_workers=1"]
        if job == "prepare_data":
            second = ["--second", str(self.folder / "rows.jsonl")]
            return ["prepare_data.py", *settings, *second, "--out", str(self.work / "data/set.jsonl")]
        return [
            "train.py", "--config", "configs/tiny_cpu.yaml", *settings,
            f"run.dir={self.work}", "run.name=run", f"train.max_steps={steps}",
            "train.save_every=1", "eval.every=2", f"eval.data={self.folder / 'rows.jsonl'}", "eval.num_problems=2",
            "eval.max_response_tokens=4", "lora.r=2", "rollout.engine=transformers",
            "rollout.num_problems=2", "rollout.max_response_tokens=40", 
            "algorithm.schedule=[{num_rollouts: 1}, {num_rollouts: 1, prefix_ratio: 1.0, help_below: 1.0}]",
        ]  # fmt: skip

    def prepare(self, job: str) -> None:
        """Restore the work folder to the state that the job expects."""
        shutil.rmtree(self.work)
        shutil.copytree(self.before if job == "train" else self.after, self.work)
        for written in {"evaluate": ["eval"], "export": ["merged"], "prepare_data": ["data"]}.get(job, []):
            shutil.rmtree(self.work / written)
        if job == "prepare_data":
            (self.work / "data").mkdir()

    def run(self, job: str, *, fails_at: int = 0, is_once: bool = False, steps: int = 4) -> tuple[int, str, list[str]]:
        """Run a job in a process of its own. Return (exit status, error output, its writes)."""
        import phases

        report, errors = self.folder / "writes.txt", self.folder / "errors.txt"
        command = self.command(job, steps)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for file, descriptors in ((self.log, [1]), (errors, [2])):
                    mode = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if file == self.log else os.O_TRUNC)
                    opened = os.open(file, mode)
                    for descriptor in descriptors:
                        os.dup2(opened, descriptor)
                writes = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                self.shim.arm(str(self.work).encode(), ctypes.c_long(fails_at), ctypes.c_long(is_once), writes)
                phases.run_script(command[0], command[1:])
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        deadline = time.monotonic() + MARGIN
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(pid, 9)
            time.sleep(0.02)
        return os.waitstatus_to_exitcode(ended[1]), errors.read_text(), report.read_text().splitlines()

    def try_write(self, job: str, number: int, *, is_once: bool) -> Case:
        """Let one write fail, check what is left, and run the same command again."""
        self.prepare(job)
        code, message, writes = self.run(job, fails_at=number, is_once=is_once)
        failed = next((line for line in writes if line.endswith(" 1")), "0 none  0").split(" ")
        lines = [line for line in message.splitlines() if line.startswith("error: ")]
        problems = [*self._lost(job), *self._unclear(code, message, lines)]
        is_same = self._is_same(job)
        if code == 0 and not is_same:
            problems.append("it ended as if all were well, with another result")
        if not is_same:
            again, second, _ = self.run(job)
            if again != 0:
                problems.append(f"the same command ended with {again}: {second.strip()[-300:]}")
            elif not self._is_same(job):
                problems.append("the result is another than with room on the disk")
        if problems:
            (self.folder / f"{job}-{number}.txt").write_text(message)
        said = lines[0] if lines else message.strip()[-300:]
        return Case(job, failed[1], _normal(failed[2]), is_once, "; ".join(problems) or "ok", said)

    def _lost(self, job: str) -> list[str]:
        """Return what was there before and is not whole any more."""
        from trapo_lite.training.checkpoint import find_checkpoint

        found, damaged = find_checkpoint(self.work / "run/checkpoints")
        lost = [] if found is not None and found.step >= 2 and not damaged else [f"checkpoints: {damaged or 'gone'}"]
        if job != "train":
            kept = [path for path in (self.after / "run").rglob("*") if path.is_file()]
            lost += [str(p) for p in kept if p.read_bytes() != _bytes(self.work / p.relative_to(self.after))]
        return lost

    def _unclear(self, code: int, message: str, lines: Sequence[str]) -> list[str]:
        """Return what is wrong with the message of a job that failed."""
        if code == 0:
            return []
        if "Traceback" in message:
            return ["a traceback"]
        if code != 2 or len(lines) != 1:
            return [f"exit status {code}, {len(lines)} errors"]
        problems = [] if str(self.work) in lines[0] else ["the message names no file of the job"]
        is_named = "disk is full" in lines[0] or "No space left" in lines[0]
        return problems + ([] if is_named else ["the message does not say that the disk is full"])

    def _is_same(self, job: str) -> bool:
        """Return whether the result is the same as with room on the disk."""
        from run_differences import differences

        if job == "train":
            return (self.work / "run/metrics.jsonl").exists() and not differences(self.after / "run", self.work / "run")
        place = {"evaluate": "eval", "export": "merged", "prepare_data": "data"}[job]
        names = [path.relative_to(self.after) for path in (self.after / place).rglob("*") if path.is_file()]
        return all(_bytes(self.after / name) == _bytes(self.work / name) for name in names)


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _normal(path: str) -> str:
    """Return the path without the parts that differ in every run."""
    return re.sub(r"events\.out\.\S+", "events", path)


def chosen(writes: Sequence[str]) -> list[int]:
    """Return the numbers of the first and the last write of each kind to each file."""
    places: dict[tuple[str, str], list[int]] = {}
    for line in writes:
        number, what, path, _ = line.split(" ")
        places.setdefault((what, re.sub(r"\d+", "N", _normal(path))), []).append(int(number))
    return sorted({number for numbers in places.values() for number in (numbers[0], numbers[-1])})


def table(cases: Sequence[Case]) -> str:
    tried, good = Counter(), Counter()
    for case in cases:
        tried[case.job] += 1
        good[case.job] += case.verdict == "ok"
    lines = [
        "| job | writes that failed | nothing lost, clear message, same result after the same command |",
        "|---|---|---|",
    ]
    lines += [f"| {job} | {tried[job]} | {good[job]} |" for job in JOBS]
    bad = [f"{case.job}: {case.what} {case.path}{' once' if case.is_once else ''}: {case.verdict} ({case.message})"
           for case in cases if case.verdict != "ok"]  # fmt: skip
    return "\n".join([*lines, *bad])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of jobs and results; again: resume")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no further write after this time")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="try one write in N")
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    library = compiled(folder)
    if str(library) not in os.environ.get("LD_PRELOAD", ""):
        os.environ["LD_PRELOAD"] = str(library)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    from kill_resume import preload

    preload()
    world = World(folder, library)
    results = folder / "cases.jsonl"
    cases = [Case(**json.loads(line)) for line in results.read_text().splitlines()] if results.exists() else []
    end, is_done = time.monotonic() + 60 * args.minutes, True
    for job in args.jobs:
        world.prepare(job)
        numbers = chosen(world.run(job)[2])[:: args.every]
        done = sum(case.job == job for case in cases)
        for place, number in list(enumerate(numbers))[done:]:
            if time.monotonic() > end:
                is_done = False
                break
            case = world.try_write(job, number, is_once=place % 2 == 1)
            cases.append(case)
            with results.open("a") as file:
                file.write(json.dumps(asdict(case)) + "\n")
            print(f"{job} {place + 1}/{len(numbers)}: {case.what} {case.path}: {case.verdict}", flush=True)
    print(table(cases))
    (folder / "table.md").write_text(table(cases) + "\n")
    sys.exit(75 if not is_done else 1 if any(case.verdict != "ok" for case in cases) else 0)


if __name__ == "__main__":
    main()
