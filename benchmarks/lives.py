"""Run one life of a run or job: start it, watch it, kill it in a phase. Part of benchmarks/kill_resume.py."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import phases
from leftovers import MARK

TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
SLOWEST_LIFE = 240.0  # seconds


class Life:
    """A Life is a run from its start until it ends or is killed."""

    def __init__(self, command: Sequence[str], *, processes: int, record: Path, log: Path, mark: str) -> None:
        self.record, self.exit_code = record, None
        record.unlink(missing_ok=True)
        with log.open("a") as output:
            print(f"----- {' '.join(command)}", file=output, flush=True)
            if processes == 1:
                self.pid = fork(command, record=record, output=output.fileno(), mark=mark)
            else:
                launched = [sys.executable, *TWO_PROCESSES, "benchmarks/phases.py", str(record), *command]
                environment = {**os.environ, MARK: mark}
                self.pid = subprocess.Popen(
                    launched, env=environment, stdout=output, stderr=output, start_new_session=True
                ).pid

    def wait(self) -> int:
        """Return the exit status. Raise SystemExit if it hangs."""
        deadline = time.monotonic() + SLOWEST_LIFE
        while self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise SystemExit(f"{self.record}: no end after {SLOWEST_LIFE:g} s")
            else:
                time.sleep(0.002)
        return self.exit_code

    def wait_for(self, phase: str, *, turn: int, rank: str, then: float) -> bool:
        """Wait until `turn` turns of the phase have begun in this rank, and a while. Return False if it ends before."""
        deadline = time.monotonic() + SLOWEST_LIFE
        while True:
            begins = [line for line in read_record(self.record) if line[1:] == (rank, line[2], "+", phase)]
            if len(begins) >= turn:
                time.sleep(max(0.0, float(begins[turn - 1][2]) + then - time.monotonic()))
                return self._is_running()
            if not self._is_running():
                return False
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.record}: no {phase} after {SLOWEST_LIFE:g} s")
            time.sleep(0.001)

    def kill(self, target: str) -> str:
        """Send SIGKILL. Return the phase in which the process died."""
        lines = read_record(self.record)
        rank = "1" if target == "rank 1" else "0"
        pids = {line[1]: int(line[0]) for line in lines}
        if target == "all":
            os.killpg(self.pid, signal.SIGKILL)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids.get(rank, self.pid), signal.SIGKILL)
        self.wait()
        return phase_at_end([line for line in read_record(self.record) if line[1] == rank])

    def _is_running(self) -> bool:
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is None


def fork(command: Sequence[str], *, record: Path, output: int, mark: str) -> int:
    """Start a child of this process that runs the script. Return its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ[MARK] = mark
        phases.record(record)
        phases.run_script(command[0], list(command[1:]))
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def read_record(file: Path) -> list[tuple[str, ...]]:
    """Return (process id, rank, seconds, + or -, phase) of each whole line."""
    text = file.read_text() if file.exists() else ""
    return [tuple(line.split(" ", 4)) for line in text.split("\n")[:-1]]


def phase_at_end(lines: Sequence[tuple[str, ...]]) -> str:
    """Return the outermost phase that had begun and not ended."""
    inside: list[str] = []
    for *_, sign, phase in lines:
        if sign == "+":
            inside.append(phase)
        else:
            inside.remove(phase)
    return inside[0] if inside else "between phases" if lines else phases.START


def lengths(record: Path) -> dict[str, list[float]]:
    """Return the seconds of each turn of each phase."""
    begun: dict[tuple[str, str], float] = {}
    found: dict[str, list[float]] = {}
    for pid, _, seconds, sign, phase in read_record(record):
        if sign == "+":
            begun[pid, phase] = float(seconds)
        else:
            found.setdefault(phase, []).append(float(seconds) - begun[pid, phase])
    return found
