"""Kill a run again and again at random moments; the finished run must equal one that was never interrupted.

    python benchmarks/kill_resume.py --config configs/tiny_cpu.yaml --kills 20

After every kill: no process of the run may be left, nothing in shared memory, no lock. At the end adapter, optimizer,
rollouts and metrics (but times) are compared bit for bit.
"""

import argparse
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from trapo_lite.run_folder import differences, read_metrics

MARK = "TRAPO_LITE_KILL_TEST"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--shortest", type=float, default=1.0, help="seconds a life lasts at least")
    parser.add_argument("--longest", type=float, default=45.0, help="seconds a life may last at most")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    report = kill_and_resume(args)
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(report["differences"] or report["leftovers"]))


def kill_and_resume(args: argparse.Namespace) -> dict:
    rng = random.Random(args.seed)
    mark = f"{os.getpid()}-{args.seed}"
    shared_before = shared_memory()
    reference = start(args, "kill-reference", mark, restart=True)
    if reference.wait() != 0:
        raise SystemExit("the uninterrupted run failed; see its output above")
    folder = Path("runs/kill-interrupted")
    lives, leftovers, phases, restart = [], [], [], True
    while len(lives) < args.kills:
        process = start(args, folder.name, mark, restart=restart)
        restart = False
        life = rng.uniform(args.shortest, args.longest)
        try:
            code = process.wait(timeout=life)
            raise SystemExit(f"the run ended by itself (exit code {code}) after {len(lives)} kills; give more --steps")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        lives.append(round(life, 1))
        phases.append(len(read_metrics(folder / "metrics.jsonl")) if (folder / "metrics.jsonl").exists() else 0)
        leftovers += left_behind(mark, folder, shared_before)
        print(f"kill {len(lives)}: after {life:.1f} s, at step {phases[-1]}, leftovers {leftovers}", flush=True)
    if start(args, folder.name, mark, restart=False).wait() != 0:
        raise SystemExit("the last resume failed; see its output above")
    return {
        "kills": len(lives),
        "killed_after_seconds": lives,
        "killed_at_step": phases,
        "leftovers": leftovers,
        "differences": differences(Path("runs/kill-reference"), folder),
    }


def start(args: argparse.Namespace, name: str, mark: str, *, restart: bool) -> subprocess.Popen:
    command = [sys.executable, "scripts/train.py"]
    for config in args.config:
        command += ["--config", config]
    command += [f"run.name={name}", f"train.max_steps={args.steps}", "train.save_every=1", *args.overrides]
    return subprocess.Popen(command + ["--restart"] * restart, env={**os.environ, MARK: mark})


def left_behind(mark: str, folder: Path, shared_before: set[str]) -> list[str]:
    """What is still there ten seconds after the kill: a worker may have been starting when it came."""
    deadline = time.monotonic() + 10.0
    while True:
        found = [f"process {pid}: {command_line(pid)}" for pid in processes_with(mark)]
        found += [name for name in sorted(shared_memory() - shared_before) if not is_held(name)]
        found += ["lock"] if folder.exists() and is_locked(folder) else []
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def processes_with(mark: str) -> list[int]:
    """Processes, however deep below the run, that inherited its mark; this one does not have it."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # it ended meanwhile
                continue
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:  # it ended meanwhile
        return "ended"


def shared_memory() -> set[str]:
    return {str(path) for path in Path("/dev/shm").iterdir()}


def is_held(name: str) -> bool:
    """Whether a living process (another run, say) was given it, or has something of it open or mapped."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if name.encode() in (folder / "cmdline").read_bytes():
                    return True
                opened = [os.readlink(link) for link in (folder / "fd").iterdir()]
                if any(target.startswith(name) for target in opened) or name in (folder / "maps").read_text():
                    return True
            except OSError:  # it ended meanwhile
                continue
    return False


def is_locked(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


if __name__ == "__main__":
    main()
