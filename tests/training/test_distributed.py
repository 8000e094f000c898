"""Two and three real processes (gloo) compute what one computes, given the same rollouts."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ports import free_port

from trapo_lite.run.launch import _is_python

TESTS = Path(__file__).parents[1]
LR = 1e-2


def run_steps(
    out: Path, *, processes: int, optimizer: str, budget: int, tied: bool = False, divergence: str | None = None
) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(TESTS / "distributed_steps.py"), str(out), optimizer, str(budget), "tied" if tied else "untied"]
    command += [] if divergence is None else [divergence]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    result = torch.load(out)
    assert result["world"] == processes
    return result


@pytest.mark.long
@pytest.mark.parametrize(("processes", "budget"), [(2, 100_000), (3, 60)])
def test_gradients_and_weights_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, processes: int, budget: int
) -> None:
    one = run_steps(tmp_path / "one.pt", processes=1, optimizer="sgd", budget=100_000)
    several = run_steps(tmp_path / "several.pt", processes=processes, optimizer="sgd", budget=budget)
    for mine, theirs in zip(several["gradients"], one["gradients"], strict=True):
        assert theirs.norm() > 0
        assert (mine - theirs).norm() / theirs.norm() < 1e-5
    torch.testing.assert_close(several["weights"], one["weights"], rtol=0, atol=1e-6)
    for weights in several["by_rank"]:
        assert torch.equal(weights, several["weights"])  # every rank holds the same adapter, bit for bit
    assert several["expert_loss"] == pytest.approx(one["expert_loss"], rel=1e-5)
    assert one["expert_loss"][1] == 6 + 8 + 9  # tokens of the three problems that have a solution


@pytest.mark.long
def test_what_is_known_of_help_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    known = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
        command += [str(TESTS / "distributed_utility.py"), str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        by_rank = json.loads(out.read_text())
        assert len(by_rank) == processes and all(of_rank == by_rank[0] for of_rank in by_rank)
        known.append(by_rank[0]["utility"])
    assert known[0].keys() == known[1].keys() == {"0 1", "0 2"}
    for key, arms in known[0].items():
        for one, several in zip(arms, known[1][key], strict=True):
            assert one["weight"] > 0 and one == pytest.approx(several, rel=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("divergence", ["sampled", "reverse_kl"])
def test_a_teachers_gradients_do_not_depend_on_the_number_of_processes(tmp_path: Path, divergence: str) -> None:
    options = {"optimizer": "sgd", "divergence": divergence}
    one = run_steps(tmp_path / "one.pt", processes=1, budget=100_000, **options)
    two = run_steps(tmp_path / "two.pt", processes=2, budget=90, **options)
    for mine, theirs in zip(two["gradients"], one["gradients"], strict=True):
        assert theirs.norm() > 0
        assert (mine - theirs).norm() / theirs.norm() < 1e-5
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=1e-6)


@pytest.mark.long
def test_adamw_amplifies_rounding_by_less_than_a_fifth_of_a_step(tmp_path: Path) -> None:
    one = run_steps(tmp_path / "one.pt", processes=1, optimizer="adamw", budget=100_000)
    two = run_steps(tmp_path / "two.pt", processes=2, optimizer="adamw", budget=100_000)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=0.2 * LR)


IN_GLOO = """
import os, time
import torch
from trapo_lite.run.processes import Ranks

ranks = Ranks()
real = torch.distributed.all_gather_object, torch.distributed.barrier

def gather(objects, item, group=None):
    assert group is not None and torch.distributed.get_backend(group) == "gloo", "the default group is NCCL's on GPUs"
    real[0](objects, item, group=group)

def barrier(group=None, **options):
    assert group is not None and torch.distributed.get_backend(group) == "gloo", "the default group is NCCL's on GPUs"
    real[1](group=group, **options)

torch.distributed.all_gather_object, torch.distributed.barrier = gather, barrier
assert ranks.gather([ranks.index, "x"]) == [0, "x", 1, "x"] and ranks.largest([float(ranks.index)]) == [1.0]
assert ranks.sum_tensor(torch.ones(2)).tolist() == [2.0, 2.0]
ranks.wait()
if ranks.index == 1:
    os._exit(7)
started = time.monotonic()
for exchange in (lambda: ranks.gather([1]), lambda: ranks.sum_tensor(torch.ones(2)), ranks.wait):
    try:
        exchange()
        print("NOT NOTICED", flush=True)
    except RuntimeError:
        print(f"noticed after {time.monotonic() - started:.0f} s", flush=True)
"""


@pytest.mark.long
def test_the_end_of_one_process_is_noticed_by_the_others_whatever_carries_tensors(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(IN_GLOO)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent), "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    # Without a launcher, which would end the rank that lives, perhaps before it has noticed.
    lives, ends = (
        subprocess.Popen(
            [sys.executable, str(tmp_path / "talk.py")],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    )
    said, errors = lives.communicate(timeout=120)
    assert ends.wait(timeout=60) == 7, ends.communicate()
    lines = [line for line in said.splitlines() if "otice" in line.lower()]
    assert len(lines) == 3 and all(line.startswith("noticed after ") for line in lines), said + errors[-3000:]
    assert max(int(line.split()[2]) for line in lines) < 20


RANK = """
import os, sys, time
while sys.argv[1] != "stay" and os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
from trapo_lite.cli import exit_on_user_error
from trapo_lite.run.launch import end_with_launcher
with exit_on_user_error():
    end_with_launcher()
    print("goes on")
"""
ELASTIC = os.environ | {"TORCHELASTIC_RUN_ID": "some"}


@pytest.mark.slow
@pytest.mark.skipif(_is_python(1), reason="what adopts orphans here looks like a launcher")
def test_a_rank_whose_launcher_died_before_it_could_notice_ends_with_a_message(tmp_path: Path) -> None:
    """Before, it waited in its rendezvous for hours."""
    said = tmp_path / "said"
    rank = shlex.join([sys.executable, "-c", RANK])
    subprocess.run(["sh", "-c", f"{rank} $$ > {said} 2>&1 &"], env=ELASTIC, check=True)
    deadline = time.monotonic() + 120
    while not (said.exists() and said.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert said.read_text() == "error: launch: the launcher that started this process is gone; give the command again\n"


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", [[], ["sh", "-c", '"$@"; exit $?', "sh"]])
def test_a_rank_whose_launcher_lives_goes_on_also_below_a_shell(wrapper: list[str]) -> None:
    rank = [*wrapper, sys.executable, "-c", RANK, "stay"]
    done = subprocess.run(rank, env=ELASTIC, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr
