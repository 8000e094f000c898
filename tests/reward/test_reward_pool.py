r"""The pool: deadlines, crashes, threads, and that nothing stays behind."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from trapo_lite.core.errors import VerifierError
from trapo_lite.core.types import Problem, Response
from trapo_lite.reward import MathVerifier
from trapo_lite.reward.worker import read_frame, write_frame
from trapo_lite.reward.worker_process import BOOTSTRAP, Judgement

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("TRAPO_LITE_SHARED", ROOT.parent / "shared"))
CASES = SHARED / "data" / "verifier_cases.jsonl"
DEADLINE = 1.5
GOOD = (r"so \boxed{\frac{1}{2}}", "0.5")
TOWER = (r"\boxed{9^{9^{9^{9}}}}", "5")  # neither number nor word, and SymPy never returns
HOSTILE = [
    TOWER,
    (r"\boxed{\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}}", "1"),
    (r"\boxed{2^{10^{11}}}", "1"),  # 12 GB as an integer
    (r"\boxed{(100000!)!}", "7"),
    (r"\boxed{" + "(" * 400 + "1" + ")" * 400 + "}", "1"),
    (r"\boxed{" + r"\sqrt{" * 60 + "x" + "}" * 60 + "}", "1"),
    (r"\boxed{" * 5000, "1"),
    ("$" * 20_000, "1"),
    ("1+" * 20_000, "1"),
    ("Wait, let me think. " * 10_000, "1"),
]


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(num_workers=2, deadline_seconds=DEADLINE) as pool:
        pool.grade([GOOD] * 4)
        yield pool


def is_alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie, which nobody has waited for yet, does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def submit_to_pool(verifier: MathVerifier) -> Future[Judgement]:
    """Submit the tower; a verdict's own future is never running, the pool's is as soon as a worker has it."""
    text, gold = TOWER
    return verifier.pool.submit(0, Response(Problem("", (), gold), text))


def wait_until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_verdicts_come_in_order(verifier):
    kinds = [verdict.kind for verdict in verifier.grade([GOOD, (r"\boxed{3}", "4"), ("no idea", "4"), GOOD])]
    assert kinds == ["correct", "wrong", "no_answer", "correct"]


def test_the_graded_text_comes_with_the_verdict(verifier):
    assert verifier.submit(*GOOD).result().answer == r"\frac{1}{2}"


def test_a_box_can_be_required():
    with MathVerifier(num_workers=1, require_box=True) as strict:
        assert [v.kind for v in strict.grade([("it is 4", "4"), (r"it is \boxed{4}", "4")])] == ["no_answer", "correct"]


@pytest.mark.long
def test_hostile_answers_are_cut_off_at_the_deadline(verifier):
    for question in HOSTILE:
        before = time.monotonic()
        verdict = verifier.submit(*question).result()
        assert time.monotonic() - before < DEADLINE + 0.5, question[0][:60]
        assert verdict.kind in ("wrong", "no_answer", "timeout", "crash"), question[0][:60]
        assert wait_until(lambda: len(verifier.worker_pids()) == 2)
        assert [v.kind for v in verifier.grade([GOOD] * 4)] == ["correct"] * 4  # both workers are back


def test_a_tower_of_powers_times_out_and_its_worker_is_replaced(verifier):
    assert wait_until(lambda: len(verifier.worker_pids()) == 2)
    workers, before = set(verifier.worker_pids()), time.monotonic()
    assert verifier.submit(*TOWER).result().kind == "timeout"
    assert time.monotonic() - before < DEADLINE + 0.5
    assert wait_until(lambda: len(set(verifier.worker_pids()) - workers) == 1)
    assert verifier.submit(*GOOD).result().is_correct


def test_a_worker_that_dies_gives_a_crash():
    with MathVerifier(num_workers=1, deadline_seconds=60.0) as pool:
        assert pool.submit(*GOOD).result().is_correct
        ticket = submit_to_pool(pool)
        assert wait_until(ticket.running)
        (worker,) = pool.worker_pids()
        os.kill(worker, signal.SIGKILL)
        assert ticket.result(timeout=10.0).kind == "crash"
        assert pool.submit(*GOOD).result().is_correct


def test_four_threads_at_once(verifier):
    def ask(i: int) -> list[bool]:
        return [v.is_correct for v in verifier.grade([(rf"\boxed{{{i}}}", str(j)) for j in range(4)])]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(4))) == [[i == j for j in range(4)] for i in range(4)]


def test_hundreds_of_answers_reuse_the_workers(verifier):
    workers = set(verifier.worker_pids())
    assert all(v.is_correct for v in verifier.grade([("x " * 4000 + rf"\boxed{{{i}}}", str(i)) for i in range(300)]))
    assert set(verifier.worker_pids()) == workers


def test_closing_during_a_grade_is_quick_and_final():
    pool = MathVerifier(num_workers=1, deadline_seconds=60.0)
    assert pool.submit(*GOOD).result().is_correct
    (worker,) = pool.worker_pids()
    tickets = [submit_to_pool(pool), *(pool.submit(*TOWER) for _ in range(2))]
    assert wait_until(tickets[0].running)
    before = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - before < 2.0
    for ticket in tickets:
        with pytest.raises(VerifierError, match="closed"):
            ticket.result(timeout=1.0)
    with pytest.raises(VerifierError, match="closed"):
        pool.submit(*GOOD)
    assert not is_alive(worker)


@pytest.mark.parametrize("seconds_in", [0.0, 0.05])
def test_closing_while_the_workers_start(seconds_in):
    before = time.monotonic()
    pool = MathVerifier(num_workers=2)
    ticket = pool.submit(*GOOD)
    time.sleep(seconds_in)
    pool.close()
    assert time.monotonic() - before < 2.0
    with pytest.raises(VerifierError, match="closed"):
        ticket.result(timeout=1.0)


def test_a_worker_that_cannot_start_is_an_error_and_not_a_verdict(monkeypatch):
    monkeypatch.setattr("trapo_lite.reward.worker_process.BOOTSTRAP", "raise SystemExit('no such grader')")
    with MathVerifier(num_workers=1) as broken, pytest.raises(VerifierError, match="no such grader"):
        broken.grade([GOOD])


def test_a_worker_that_cannot_be_started_now_is_started_later(monkeypatch):
    def no_more(*args, **kwargs):
        raise OSError(errno.EAGAIN, "no more processes")

    with MathVerifier(num_workers=1, deadline_seconds=DEADLINE) as pool:
        assert pool.submit(*GOOD).result().is_correct
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", no_more)
            assert pool.submit(*TOWER).result().kind == "timeout"
            with pytest.raises(VerifierError, match=r"cannot be started: .*no more processes"):
                pool.submit(*GOOD).result(timeout=10.0)
        assert pool.submit(*GOOD).result(timeout=60.0).is_correct


@pytest.mark.parametrize(("limit", "kind"), [(512 << 20, "crash"), (8 << 30, "wrong")])
def test_at_its_memory_limit_a_worker_ends(monkeypatch, limit, kind):
    """A grader that takes 1 GiB for the tower, and nothing for other answers."""
    hungry = (
        "import trapo_lite.reward.worker as w; load = w._load_math; "
        "w._load_math = lambda **options: (lambda response, judge=load(**options): "
        "(bytearray(1 << 30) and ('wrong', 0.0, None)) if '9^' in response['response'] else judge(response)); "
    )
    imported = "from trapo_lite.reward.worker import main; "
    monkeypatch.setattr("trapo_lite.reward.worker_process.BOOTSTRAP", BOOTSTRAP.replace(imported, hungry + imported))
    with MathVerifier(num_workers=1, deadline_seconds=60.0, memory_limit_bytes=limit) as pool:
        assert pool.submit(*TOWER).result().kind == kind
        assert pool.submit(*GOOD).result().is_correct


@pytest.mark.long
@pytest.mark.skipif(not CASES.exists(), reason=f"the shared verifier cases are not at {CASES}")
def test_open_cases_from_four_threads_neither_hang_nor_crash_nor_grow(capsys):
    rows = [row for row in map(json.loads, CASES.read_text().splitlines()) if row["rule"] == "open"]
    deadline, seconds, kinds, most = 2.0, [], [], 0
    with MathVerifier(num_workers=2, deadline_seconds=deadline) as pool, ThreadPoolExecutor(4) as threads:
        pool.grade([GOOD] * 4)

        def ask(row: dict) -> None:
            ticket = pool.submit(row["answer_text"], row["gold"])
            while not (ticket.running() or ticket.done()):
                time.sleep(0.005)
            start = time.monotonic()  # a worker has taken it up
            kinds.append(ticket.result(timeout=60.0).kind)
            seconds.append(time.monotonic() - start)

        asked = [threads.submit(ask, row) for row in rows]
        while not all(one.done() for one in asked):
            most = max(most, sum(map(resident_bytes, pool.worker_pids())))
            time.sleep(0.05)
        for one in asked:
            one.result()
        assert [v.kind for v in pool.grade([GOOD] * 4)] == ["correct"] * 4
    with capsys.disabled():
        print(f"[{len(kinds)} open cases: slowest {max(seconds):.2f} s, {most / 2**20:.0f} MiB]", end=" ")
    assert len(kinds) == len(rows) == 174
    assert max(seconds) < deadline + 0.5
    assert most < 2 * (2 << 30)


@pytest.mark.parametrize("arguments", [{"num_workers": 0}, {"deadline_seconds": 0.0}, {"memory_limit_bytes": 1 << 20}])
def test_settings_that_cannot_work_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MathVerifier(**arguments)


def test_a_worker_imports_nothing_heavy():
    heavy = ("torch", "transformers", "numpy", "vllm", "datasets", "peft", "accelerate", "pydantic")
    code = (
        "import sys, trapo_lite.reward.worker as worker; worker._load_math(require_box=False); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert printed.stdout.strip() == "[]"


SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
print("started", flush=True)
from trapo_lite.reward import MathVerifier
verifier = MathVerifier(num_workers=2, deadline_seconds=600.0)
print(*(v.kind for v in verifier.grade([(r"\\boxed{{1}}", "1")] * 8)), flush=True)
print(*verifier.worker_pids(), flush=True)
tickets = [verifier.submit(r"\\boxed{{9^{{9^{{9^{{9}}}}}}}}", "5") for _ in range(2)]
"""  # no __main__ guard


@pytest.mark.parametrize(
    ("ending", "stop"),
    [
        pytest.param("import time; time.sleep(600)", signal.SIGKILL, id="SIGKILL"),
        pytest.param("import time; time.sleep(600)", signal.SIGTERM, id="SIGTERM", marks=pytest.mark.long),
        pytest.param("import time; time.sleep(600)", signal.SIGINT, id="SIGINT", marks=pytest.mark.long),
        pytest.param("", None, id="end of script", marks=pytest.mark.long),
        pytest.param("import os; os._exit(1)", None, id="os._exit", marks=pytest.mark.long),
    ],
)
def test_no_worker_outlives_its_parent(tmp_path, ending, stop):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + ending)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip() == "started"
        assert set(parent.stdout.readline().split()) == {"correct"}  # and not "started" again
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        if stop is not None:
            assert all(is_alive(pid) for pid in workers)
            time.sleep(0.3)  # into the computation
            parent.send_signal(stop)
        parent.wait(timeout=10.0)
        assert wait_until(lambda: not any(is_alive(pid) for pid in workers), seconds=3.0)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def test_a_worker_whose_parent_forgets_it_ends_by_its_own_timer():
    ours, theirs = socket.socketpair()
    functions = json.dumps([{"type": "math", "require_box": False}])
    arguments = [str(os.getpid()), "0.5", str(1 << 30), functions, *sys.path]
    with ours, theirs, subprocess.Popen([sys.executable, "-c", BOOTSTRAP, *arguments], stdin=theirs.fileno()) as worker:
        ours.settimeout(60.0)
        assert [read_frame(ours), read_frame(ours)] == [["loading", 0], ["ready", [["response", "answer"]]]]
        write_frame(ours, [1, 0, dict(zip(("response", "answer"), TOWER, strict=True))])
        assert worker.wait(timeout=5.0) == -signal.SIGALRM


def test_a_forked_process_is_told_to_build_its_own(verifier):
    pid = os.fork()
    if pid == 0:
        try:
            verifier.submit(*GOOD)
        except VerifierError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_it_works_from_a_thread_that_ends(verifier):
    """Linux ties a child to the thread that started it; the workers must not hang on the caller's thread."""
    pools: list[MathVerifier] = []
    thread = threading.Thread(target=lambda: pools.append(MathVerifier(num_workers=1)))
    thread.start()
    thread.join()
    with pools[0] as pool:
        assert pool.grade([GOOD])[0].is_correct
