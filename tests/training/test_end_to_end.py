"""The commands a user types, on the tiny world with the real vLLM engine: killed, resumed, on two processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import leftovers
import pytest
from byte_model import write_byte_model
from conftest import VLLM_DTYPE
from run_differences import differences, read_metrics

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("TRAPO_LITE_SHARED", ROOT.parent / "shared"))
TINY = ["--config", "configs/tiny_cpu.yaml", f"model.dtype={VLLM_DTYPE}"]
SMALL = ["rollout.num_problems=2", "eval.every=0", "run.trackers=[]"]
pytestmark = pytest.mark.long


def command(folder: Path, name: str, *overrides: str, launcher: tuple[str, ...] = ()) -> list[str]:
    run = [f"run.dir={folder}", f"run.name={name}"]
    return [sys.executable, *launcher, "scripts/train.py", *TINY, *SMALL, *run, *overrides]


def run(arguments: list[str], *, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def start_and_signal(arguments: list[str], folder: Path, *, after_steps: int, signum: int, mark: str) -> int:
    """Start a run, wait for `after_steps` lines of metrics and a moment more, signal the main process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", leftovers.MARK: mark}
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < after_steps:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended or hung before the signal"
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signum)
    return process.wait(timeout=60)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = run(command(folder, "whole", "train.max_steps=12", "train.save_every=3"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in (folder / "whole/engine-0.log").read_text()
    return folder / "whole"


def test_a_signalled_run_leaves_nothing_behind_and_resumes_exactly(uninterrupted: Path, tmp_path: Path) -> None:
    """Stopped by SIGTERM, gone on with, killed, gone on with."""
    shared_before = leftovers.shared_memory()
    arguments = command(tmp_path, "parts", "train.max_steps=12", "train.save_every=3")
    mark, folder = f"test-{os.getpid()}", tmp_path / "parts"
    assert start_and_signal(arguments, folder, after_steps=1, signum=signal.SIGTERM, mark=mark) == 143
    assert leftovers.left_behind(mark, folder, shared_before) == []
    log = (folder / "engine-0.log").read_text()
    assert log.endswith("the trainer closed this engine or ended\n") and "Traceback" not in log
    stopped_at = len(read_metrics(folder / "metrics.jsonl"))
    assert max((folder / "checkpoints").glob("step-*")).name == f"step-{stopped_at:06d}"  # whatever save_every says
    killed = start_and_signal(arguments, folder, after_steps=stopped_at + 2, signum=signal.SIGKILL, mark=mark)
    assert killed == -signal.SIGKILL
    assert leftovers.left_behind(mark, folder, shared_before) == []
    done = run(arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ended after step" in done.stdout and "without a message: it was killed" in done.stdout
    assert any(f"resuming after step {step}" in done.stdout for step in range(stopped_at, 12)), done.stdout
    assert differences(uninterrupted, folder) == []


def test_schedule_and_merging_change_when_tokens_are_drawn_and_not_which(uninterrupted: Path, tmp_path: Path) -> None:
    """The step that samples from the base, and the next, whose adapter is merged into the engine's weights."""
    options = ["rollout.schedule=speculative", "rollout.merge=in_place", "rollout.colocate=false"]
    done = run(command(tmp_path, "merged", *options, "train.max_steps=2"))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_metrics(tmp_path / "merged/metrics.jsonl")
    assert [row["engine/merged"] for row in rows] == [1, 1]
    assert rows[1]["engine/merge_kept"] == pytest.approx(1.0, abs=1e-3) and rows[1]["mismatch/abs"] < 1e-4
    for step in ("step-000001.jsonl", "step-000002.jsonl"):
        one, other = (
            [json.loads(line) for line in (folder / "rollouts" / step).read_text().splitlines()]
            for folder in (uninterrupted, tmp_path / "merged")
        )
        for name in ("problem_id", "slot", "prefix_ids", "completion_ids", "verdict", "finish_reason"):
            assert [line[name] for line in one] == [line[name] for line in other], (step, name)


def test_two_processes_have_an_engine_each(tmp_path: Path) -> None:
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    options = ["rollout.schedule=speculative", "rollout.merge=in_place", "train.max_steps=2"]
    done = run(command(tmp_path, "both", *options, launcher=two), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes on cpu" in done.stdout
    assert [row["step"] for row in read_metrics(tmp_path / "both/metrics.jsonl")] == [1, 2]
    lines = [json.loads(line) for line in (tmp_path / "both/rollouts/step-000001.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 8 and len({line["problem_id"] for line in lines}) == 2
    assert {p.name for p in (tmp_path / "both").glob("engine-*.log")} == {"engine-0.log", "engine-1.log"}


def test_a_killed_launcher_takes_its_run_with_it(tmp_path: Path) -> None:
    shared_before = leftovers.shared_memory()
    launcher = ("-m", "accelerate.commands.launch", "--cpu")
    mark = f"test-{os.getpid()}-launcher"
    arguments = command(tmp_path, "launched", "train.max_steps=50", launcher=launcher)
    start_and_signal(arguments, tmp_path / "launched", after_steps=1, signum=signal.SIGKILL, mark=mark)
    assert leftovers.left_behind(mark, tmp_path / "launched", shared_before) == []


def test_two_processes_are_stopped_killed_and_resumed_exactly(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    settings = ["rollout.engine=transformers", "train.max_steps=6", "train.save_every=2"]
    whole = run(command(tmp_path, "whole", *settings, launcher=launcher))
    assert whole.returncode == 0, whole.stderr[-3000:]
    arguments, folder = command(tmp_path, "parts", *settings, launcher=launcher), tmp_path / "parts"
    mark, shared_before = f"test-{os.getpid()}-two", leftovers.shared_memory()
    start_and_signal(arguments, folder, after_steps=1, signum=signal.SIGTERM, mark=mark)
    assert leftovers.left_behind(mark, folder, shared_before) == []
    stopped_at = len(read_metrics(folder / "metrics.jsonl"))
    newest = max((folder / "checkpoints").glob("step-*")).name
    assert newest == f"step-{stopped_at:06d}"  # whatever save_every says, no finished step is lost
    start_and_signal(arguments, folder, after_steps=stopped_at + 1, signum=signal.SIGKILL, mark=mark)
    assert leftovers.left_behind(mark, folder, shared_before) == []
    resumed = run(arguments)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "resuming after step" in resumed.stdout
    assert differences(tmp_path / "whole", folder) == []


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
CRASHING = """
import os, signal, sys
from trapo_lite import cli
from trapo_lite.training.rollouts import RolloutStage

sample = RolloutStage.sample

def crash(self, step):
    if self.ranks.index == 1 and step == 3:
        CRASH
    return sample(self, step)

RolloutStage.sample = crash
cli.train(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("crash", "own_line"),
    [("raise RuntimeError('this process has crashed')", "this process has crashed"), (KILL, "")],
    ids=["crashed", "killed"],
)
def test_the_end_of_another_process_is_named_and_leaves_the_last_logged_step_in_a_checkpoint(
    tmp_path: Path, crash: str, own_line: str
) -> None:
    (tmp_path / "crashing.py").write_text(CRASHING.replace("CRASH", crash))
    settings = ["rollout.engine=transformers", "train.max_steps=6", "train.save_every=50"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    arguments = command(tmp_path, "crashed", *settings, launcher=launcher)
    arguments[arguments.index("scripts/train.py")] = str(tmp_path / "crashing.py")
    done = run(arguments)
    assert done.returncode != 0 and own_line in done.stderr
    said = done.stdout + done.stderr  # a warning if the launcher stopped this process, otherwise an error
    assert re.search(r"(warning|error): launch: rank 1 \(process \d+\) ended before the run did; ", said), said[-3000:]
    assert ('crashing.py", line' in done.stderr) == bool(own_line)  # only a crash has a traceback
    assert [row["step"] for row in read_metrics(tmp_path / "crashed/metrics.jsonl")] == [1, 2, 3]
    assert [path.name for path in (tmp_path / "crashed/checkpoints").glob("step-*")] == ["step-000003"]


SIGNALLED = """
import os, signal, sys
from trapo_lite import cli
from trapo_lite.core.errors import UpdateError
from trapo_lite.reward import Scorer
from trapo_lite.training.rollouts import RolloutStage

def fail(self, step):
    raise UpdateError("update: made to fail")

close = Scorer.close

def close_slowly(self):
    os.kill(os.getpid(), signal.SIGTERM)  # as a launcher does when another process has ended
    close(self)

RolloutStage.sample, Scorer.close = fail, close_slowly
cli.train(sys.argv[1:])
"""


def test_a_signal_while_a_failed_run_closes_does_not_take_its_message_away(tmp_path: Path) -> None:
    (tmp_path / "signalled.py").write_text(SIGNALLED)
    arguments = command(tmp_path, "signalled", "rollout.engine=transformers", "train.max_steps=2")
    arguments[arguments.index("scripts/train.py")] = str(tmp_path / "signalled.py")
    done = run(arguments)
    assert done.returncode == 2 and "error: update: made to fail" in done.stderr, done.stderr[-2000:]


def test_real_mathematics_rows_train_and_resume(tmp_path: Path) -> None:
    rows = SHARED / "data/train/gsm8k_train512_openr1_schema.parquet"
    if not rows.exists():
        pytest.skip(f"{rows} is not there: real rows are not part of the project")
    model = write_byte_model(tmp_path / "model")
    settings = [
        f"model.name={model}",
        f"data.train={rows}",
        "data.expert_text=thought",
        "data.prompt_template='{problem}\\n'",
        "data.max_prompt_tokens=512",
        "data.on_bad_row=skip",  # some prompts are longer
        "rollout.max_response_tokens=512",
        "rollout.engine=transformers",
        "lora.r=4",
    ]
    whole = run(command(tmp_path, "whole", *settings, "train.max_steps=3", "train.save_every=1"))
    assert whole.returncode == 0, whole.stderr[-3000:]
    for steps in (2, 3):
        parts = run(command(tmp_path, "parts", *settings, f"train.max_steps={steps}", "train.save_every=1"))
        assert parts.returncode == 0, parts.stderr[-3000:]
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
    metrics = read_metrics(tmp_path / "whole/metrics.jsonl")
    assert all(row["rollout/guided"] == 0.5 for row in metrics)  # a random model always needs help: 4 of 8 are guided
    assert all(row["optim/grad_norm"] > 0 for row in metrics)


def test_a_killed_run_with_a_teacher_resumes_exactly(tmp_path: Path) -> None:
    opsd = ["--config", "configs/algorithm/opsd.yaml", "rollout.engine=transformers", "optim.updates_per_batch=2"]
    settings = [*opsd, "train.max_steps=4", "train.save_every=2"]
    whole = run(command(tmp_path, "whole", *settings))
    assert whole.returncode == 0, whole.stderr[-3000:]
    arguments, folder = command(tmp_path, "parts", *settings), tmp_path / "parts"
    start_and_signal(arguments, folder, after_steps=3, signum=signal.SIGKILL, mark=f"test-{os.getpid()}-teacher")
    resumed = run(arguments)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "resuming after step" in resumed.stdout
    assert differences(tmp_path / "whole", folder) == []
