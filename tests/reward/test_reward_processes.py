"""What functions of the user's do to their processes stays there, and ends with them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reward_sections import scored, section_of, write

from trapo_lite.core.errors import RewardError

ROOT = Path(__file__).parents[2]


def test_a_function_that_hangs_or_eats_memory_is_ended_and_the_next_response_is_scored(write) -> None:
    mine = write(
        "def score(response):\n"
        "    while response == 'hang': pass\n"
        "    if response == 'eat':\n"
        "        eaten = [bytearray(1 << 26) for _ in range(100)]\n"
        "    return 1\n"
    )
    for response, deadline, kind in (("hang", 1.0, "timeout"), ("eat", 60.0, "crash")):
        section = section_of(mine("score"), deadline_seconds=deadline, memory_mb=512)
        before = time.monotonic()
        bad, good = scored(section, response, "good")
        assert (bad.verdict.kind, bad.reward) == (kind, None) and good.reward == 1.0
        assert time.monotonic() - before < 30.0


def test_the_memory_limit_is_about_what_a_function_takes_beside_its_imports(write) -> None:
    """The address space of large libraries would be above the limit before the first call."""
    mine = write(
        "import mmap\nspace = mmap.mmap(-1, 1 << 30)\ndef score(response): return len(bytearray(1 << 27)) / (1 << 27)\n"
    )
    [score] = scored(section_of(mine("score"), memory_mb=512), "x")
    assert score.reward == 1.0


def test_printing_reading_threads_and_processes_do_no_harm(write, tmp_path: Path) -> None:
    mine = write(
        "import os, subprocess, sys, threading, time\n"
        "def loud(response):\n"
        "    for stream in (sys.stdout, sys.stderr):\n"
        "        stream.write('x' * 10_000_000)\n"
        "    os.write(1, b'y' * 100_000); os.write(2, b'y' * 100_000)\n"
        "    return 1\n"
        "def reads(response): return len(sys.stdin.read()) + len(os.read(0, 10)) + 1\n"
        "def threads(response):\n"
        "    for _ in range(5): threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "    return 1\n"
        "def child(response):\n"
        f"    child = subprocess.Popen(['sleep', '600']); open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "    return 1\n"
    )
    section = section_of(mine("loud"), mine("reads"), mine("threads"), mine("child"))
    assert [score.reward for score in scored(section, "a", "b")] == [4.0, 4.0]
    assert ends(int((tmp_path / "pid").read_text())), "a process that a function started outlived its worker"


def ends(pid: int) -> bool:
    """Return whether a process ends within some seconds; kill it if it does not."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return False


TRAINER = """
import sys
from reward_sections import PROBLEM, section_of
from trapo_lite.core.types import Response
from trapo_lite.reward import Scorer
scorer = Scorer(section_of({"type": "function", "path": sys.argv[1]}, deadline_seconds=600.0))
tickets = [scorer.submit(Response(PROBLEM, text)) for text in ("start", "compute")]
print(int(tickets[0].result().reward), *scorer._pool.worker_pids(), flush=True)
tickets[1].result()
"""


@pytest.mark.slow
def test_workers_and_what_they_started_end_with_a_trainer_that_is_killed(write) -> None:
    """The function computes in C at that moment, so that no Python code of the worker can run."""
    mine = write(
        "import subprocess\n"
        "def score(response):\n"
        "    if response == 'start': return subprocess.Popen(['sleep', '600']).pid\n"
        "    return 7 ** (7 ** 11) % 2\n"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, mine("score")["path"]],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )
    try:
        assert trainer.stdout is not None
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(pids) == 2 and all(Path(f"/proc/{pid}").exists() for pid in pids)
        time.sleep(0.3)  # into the computation
        trainer.send_signal(signal.SIGKILL)
        trainer.wait(timeout=10.0)
        assert [ends(pid) for pid in pids] == [True, True]
    finally:
        trainer.kill()
        trainer.wait()
        trainer.stdout.close()


@pytest.mark.parametrize("waits", [True, False], ids=["before its parent", "after its parent"])
def test_a_process_that_a_function_forks_and_that_returns_from_it_answers_nothing(write, waits: bool) -> None:
    mine = write(
        "import os, time\n"
        "def score(response):\n"
        "    time.sleep(0.2)\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        time.sleep(0.1)\n"
        "        return -1.0\n"
        f"    if {waits}: os.waitpid(pid, 0)\n"
        "    return float(response)\n"
    )
    assert [score.reward for score in scored(section_of(mine("score")), "1", "2", "3", "4")] == [1.0, 2.0, 3.0, 4.0]


def test_processes_of_multiprocessing_and_programs_can_be_stopped(write) -> None:
    mine = write(
        "import multiprocessing, subprocess, time\n"
        "def pool(response):\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool: return sum(pool.map(abs, [-1, 2]))\n"
        "def process(response):\n"
        "    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))\n"
        "    child.start()\n"
        "    time.sleep(0.2)\n"
        "    child.terminate()\n"
        "    child.join()\n"
        "    return child.exitcode\n"
        "def program(response):\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        "    child.terminate()\n"
        "    return child.wait()\n"
    )
    [score] = scored(section_of(mine("pool"), mine("process"), mine("program")), "x")
    assert score.parts == (("pool", 3.0), ("process", -15.0), ("program", -15.0))


def test_a_signal_that_comes_right_after_a_fork_is_not_lost(write) -> None:
    mine = write(
        "import os, signal, time\n"
        "def survivors(response):\n"
        "    count = 0\n"
        "    for _ in range(50):\n"
        "        child = os.fork()\n"
        "        if child == 0:\n"
        "            time.sleep(600)\n"
        "            os._exit(0)\n"
        "        os.kill(child, signal.SIGTERM)\n"
        "        end = time.monotonic() + 1\n"
        "        while os.waitpid(child, os.WNOHANG) == (0, 0):\n"
        "            if time.monotonic() > end:\n"
        "                count += 1\n"
        "                os.kill(child, signal.SIGKILL)\n"
        "                os.waitpid(child, 0)\n"
        "                break\n"
        "            time.sleep(0.001)\n"
        "    return count\n"
    )
    [score] = scored(section_of(mine("survivors"), deadline_seconds=60.0), "x")
    assert score.parts == (("survivors", 0.0),)


@pytest.mark.parametrize(
    "body",
    ["json.dumps([0, 'correct', 7.0, None]).encode()", "b'no JSON'", "b'[]'"],
    ids=["of another", "text", "list"],
)
def test_what_is_written_into_the_socket_of_a_worker_is_no_answer(write, body: str) -> None:
    mine = write(
        "import json, os, stat, struct\n"
        f"BODY = {body}\n"
        "def score(response):\n"
        "    for descriptor in range(3, 20) if response == 'write' else ():\n"
        "        try: is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)\n"
        "        except OSError: continue\n"
        "        if is_socket: os.write(descriptor, struct.pack('>I', len(BODY)) + BODY)\n"
        "    return 1\n"
    )
    scores = scored(section_of(mine("score")), "x", "write", "y")
    assert [(score.verdict.kind, score.reward) for score in scores] == [("correct", 1), ("crash", None), ("correct", 1)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import os; os._exit(3)",
            r"ended the process with exit status 3; correct it\. It printed nothing$",
        ),
        (
            "import os, sys; print('no licence', file=sys.stderr, flush=True); os.abort()",
            r"ended the process by signal SIGABRT; .*printed: no licence$",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            r"was ended by signal SIGKILL, which the system sends when memory runs out \(reward\.memory_mb does not",
        ),
        (
            "import time; time.sleep(600)",
            r"took more than 3 s, so its process was killed; let it do less, or later, in",
        ),
    ],
    ids=["exit", "abort", "kill", "hang"],
)
def test_an_import_that_ends_its_process_is_named_with_the_cause(
    write, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.setattr("trapo_lite.reward.worker_process.START_SECONDS", 3.0)
    with pytest.raises(RewardError, match=r"^reward\.functions: late: importing .*mine\.py " + message):
        scored(section_of("exact", {**write(source)("score"), "name": "late"}), "x")
