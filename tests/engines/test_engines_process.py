"""The engine's child process and its RAM-backed folder: failures are named, and nothing outlives the parent."""

import contextlib
import errno
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from conftest import TINY_MAX_LEN, TINY_RANK, VLLM_DTYPE

from trapo_lite.config import load_config
from trapo_lite.core.errors import EngineError
from trapo_lite.engines import adapter_folder
from trapo_lite.engines.adapter_folder import PREFIX, AdapterFolder, remove_stale_folders, room_for
from trapo_lite.engines.base import EngineDied
from trapo_lite.engines.child import ChildProcess, environment_without_launcher
from trapo_lite.engines.start import start_engine
from trapo_lite.engines.vllm.engine import VLLMEngine, child_environment, require_card
from trapo_lite.engines.vllm.options import VLLMOptions
from trapo_lite.engines.vllm.worker import engine_arguments

CHILD = """
import subprocess, sys, time
from multiprocessing.connection import Connection
from pathlib import Path
from trapo_lite.engines.child import die_with_parent
fd, parent = int(sys.argv[1]), int(sys.argv[2])
die_with_parent(fd, parent, Path(sys.argv[0]).parent / "in_memory")
connection = Connection(fd)
while True:
    method, arguments = connection.recv()
    if method == "fail":
        print("last words"); raise ValueError("what went wrong")
    if method == "exit":
        sys.exit(*arguments)
    if method == "sleep":
        time.sleep(*arguments)
    if method == "talk":
        for _ in range(int(10 * arguments[0])):
            print("still here"); time.sleep(0.1)
    if method == "start":
        subprocess.Popen(["sleep", "600"])
    connection.send((method, arguments))
"""

PARENT = """
import sys, time
from pathlib import Path
{body}
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "talking_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("RANK", "1")
    child = ChildProcess("talking_child", environment=environment_without_launcher(), log_path=tmp_path / "child.log")
    yield child
    child.close()


def wait_until(condition, limit_s: float = 10.0) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@pytest.mark.slow
def test_a_child_that_does_not_read_is_killed(child, monkeypatch) -> None:
    """Calls too long for the socket's buffer; the deadline of an answer has not begun."""
    child.connection.send(("sleep", (600,)))
    child.limit_sending(1)
    started = time.monotonic()
    with pytest.raises(EngineDied, match="did not read 'submit' within 1 s"):
        for _ in range(100):
            child.send("submit", b"x" * 100_000)
    assert time.monotonic() - started < 30 and child.process.poll() == -signal.SIGKILL


def test_what_a_killed_child_had_started_ends_with_it(child) -> None:
    child.call("start", limit_s=10)
    group = child.process.pid
    assert wait_until(lambda: len(members(group)) == 2)
    child.process.kill()
    with pytest.raises(EngineDied):
        child.call("anything", limit_s=10)
    assert wait_until(lambda: not members(group))


def members(group: int) -> list[str]:
    found = subprocess.run(["pgrep", "-g", str(group), "-r", "R,S,D"], capture_output=True, text=True)
    return found.stdout.split()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start_parent(body: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PARENT.format(body=body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)


# --- the child process


def test_calls_are_answered(child):
    assert child.call("hello", 1, "two", limit_s=60.0) == ("hello", (1, "two"))


def test_a_child_that_fails_is_reported_with_its_last_words(child):
    with pytest.raises(EngineError, match=r"(?s)exit status 1.*last words.*ValueError: what went wrong"):
        child.call("fail", limit_s=60.0)
    with pytest.raises(EngineError, match="closed or has died"):
        child.call("hello", limit_s=60.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "argument", "message"),
    [("exit", 3, "ended with exit status 3"), ("sleep", 600.0, "no answer to 'sleep' within 2 s")],
)
def test_a_child_that_ends_or_hangs_leaves_its_folder_to_the_one_that_follows(
    child, tmp_path, method, argument, message
):
    """Only one whose parent is gone removes it."""
    child.call("hello", limit_s=60.0)
    (tmp_path / "in_memory").mkdir()
    with pytest.raises(EngineDied, match=message):
        child.call(method, argument, limit_s=2.0)
    assert child.process.poll() is not None and (tmp_path / "in_memory").is_dir()


def test_a_child_that_is_killed_is_reported(child):
    child.process.kill()
    with pytest.raises(EngineError, match="by signal SIGKILL"):
        child.call("hello", limit_s=60.0)


@pytest.mark.slow
def test_a_child_that_still_writes_its_log_has_not_hung(child, monkeypatch):
    """As while it downloads a model; the limit then counts from its last line."""
    monkeypatch.setattr("trapo_lite.engines.child.WAIT_INTERVAL_S", 0.1)
    child.call("hello", limit_s=60.0)
    child.send("talk", 3.0)
    assert child.receive(limit_s=1.5, waiting_for="talk", restarts_with_log=True) == ("talk", (3.0,))
    child.send("sleep", 600)
    with pytest.raises(EngineDied, match="no answer to 'sleep' within 1 s in which its log did not grow"):
        child.receive(limit_s=1.0, waiting_for="sleep", restarts_with_log=True)


@pytest.mark.slow
def test_waiting_is_reported(child, monkeypatch):
    monkeypatch.setattr("trapo_lite.engines.child.WAIT_INTERVAL_S", 0.1)
    waits = []
    child.send("sleep", 1.0)
    child.receive(limit_s=60.0, waiting_for="sleep", on_wait=waits.append)
    assert len(waits) >= 2 and waits == sorted(waits)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["socket", "process"])
def test_a_child_ends_when_its_parent_is_killed(tmp_path, how):
    """process: a forked sibling still holds the socket, so that only the loss of the parent can be noticed."""
    (tmp_path / "talking_child.py").write_text(CHILD)
    (tmp_path / "in_memory").mkdir()
    for number in range(5000):  # to remove them takes longer than the main thread's end does
        (tmp_path / "in_memory" / str(number)).touch()
    body = f"""
import os
from trapo_lite.engines.child import *
child = ChildProcess("talking_child", environment=dict(os.environ), log_path=Path({str(tmp_path / "log")!r}))
child.call("hello", limit_s=60.0)
if {how == "process"} and os.fork() == 0:
    time.sleep(8); os._exit(0)
print(child.process.pid, flush=True)
"""
    parent = start_parent(body, PYTHONPATH=str(tmp_path))
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not is_running(pid), limit_s=5.0)
    assert not (tmp_path / "in_memory").exists()
    parent.stdout.close()


def test_the_launchers_variables_are_hidden(monkeypatch):
    hidden = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in hidden.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    environment = child_environment(1, 1, Path("/scratch"))
    assert not hidden.keys() & environment.keys()
    assert environment["CUDA_VISIBLE_DEVICES"] == "6", "the second of the cards this process may see"


# --- the RAM-backed folder


@pytest.mark.slow
def test_a_killed_owners_folder_is_removed_by_the_next_one(tmp_path):
    body = f"""
from trapo_lite.engines.adapter_folder import PREFIX, AdapterFolder
folder = AdapterFolder(Path({str(tmp_path)!r}))
print(folder.path, flush=True)
"""
    owner = start_parent(body)
    assert owner.stdout is not None
    path = Path(owner.stdout.readline().strip())
    assert remove_stale_folders(tmp_path) == [] and path.is_dir(), "its owner lives"
    owner.kill()
    owner.wait()
    owner.stdout.close()
    folder = AdapterFolder(tmp_path)
    assert not path.exists()
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_versions_get_paths_of_their_own(tmp_path, tiny_adapter_dir):
    folder = AdapterFolder(tmp_path)
    (first, num_bytes), (second, _) = folder.add(tiny_adapter_dir, 1), folder.add(tiny_adapter_dir, 2)
    assert first != second and num_bytes > 10_000
    folder.remove(first)
    assert not first.exists() and (second / "adapter_model.safetensors").is_file()
    folder.close()


def test_an_adapter_in_the_scratch_folder_is_taken_without_a_copy(tmp_path, tiny_adapter_dir):
    folder = AdapterFolder(tmp_path)
    shutil.copytree(tiny_adapter_dir, folder.scratch)
    written = folder.scratch / "adapter_model.safetensors"
    taken = folder.add(folder.scratch, 1)[0] / "adapter_model.safetensors"
    assert taken.stat().st_ino == written.stat().st_ino
    shutil.rmtree(folder.scratch)
    assert taken.read_bytes() == (tiny_adapter_dir / "adapter_model.safetensors").read_bytes()
    folder.close()


def test_an_adapter_is_copied_where_files_cannot_have_two_names(tmp_path, tiny_adapter_dir, monkeypatch):
    def refuse(*_paths: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(adapter_folder.os, "link", refuse)
    folder = AdapterFolder(tmp_path)
    shutil.copytree(tiny_adapter_dir, folder.scratch)
    taken = folder.add(folder.scratch, 1)[0] / "adapter_model.safetensors"
    assert taken.read_bytes() == (tiny_adapter_dir / "adapter_model.safetensors").read_bytes()
    folder.close()


def test_a_users_adapter_is_copied_and_can_be_read_by_others(tmp_path, tiny_adapter_dir):
    """safetensors writes files that only their owner may read; a file with a second name would stay so."""
    users = shutil.copytree(tiny_adapter_dir, tmp_path / "users")
    for file in users.iterdir():
        file.chmod(0o600)
    folder = AdapterFolder(tmp_path)
    (plain := tmp_path / "plain").touch()
    for file in folder.add(users, 1)[0].iterdir():
        assert file.stat().st_mode == plain.stat().st_mode
        assert file.stat().st_ino != (users / file.name).stat().st_ino
    folder.close()


def test_a_version_that_a_dead_engine_left_is_replaced(tmp_path, tiny_adapter_dir, other_adapter_dir):
    folder = AdapterFolder(tmp_path)
    left, _ = folder.add(other_adapter_dir, 1)
    assert folder.add(tiny_adapter_dir, 1)[0] == left
    assert (left / "adapter_model.safetensors").read_bytes() == (
        tiny_adapter_dir / "adapter_model.safetensors"
    ).read_bytes()
    folder.close()


@pytest.fixture
def small_memory(tmp_path, monkeypatch) -> Iterator[Path]:
    """A real file system in memory that holds 64 KiB, as a container's /dev/shm holds 64 MiB."""
    memory = tmp_path / "memory"
    memory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", memory], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a file system")
    monkeypatch.setattr(adapter_folder, "IN_MEMORY", memory)
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    yield memory
    subprocess.run(["umount", memory], check=True)


def test_adapters_go_to_disk_where_memory_has_no_room_for_several(small_memory, tmp_path):
    lines = []
    fitting = AdapterFolder(room=1000, notify=lines.append)
    assert fitting.path.parent == small_memory and lines == []
    folder = AdapterFolder(room=room_for(10_000, num_engines=8), notify=lines.append)
    assert folder.path.parent == tmp_path / "disk"
    [line] = lines
    assert str(small_memory) in line and str(tmp_path / "disk") in line
    fitting.close()
    folder.close()


def test_room_is_asked_for_old_and_new_adapter_of_every_engine():
    """A 7B model's adapter of rank 64 takes 646 MB: two of them and the engine's temporary files, on each card."""
    assert room_for(646_000_000, num_engines=8) > 8 * (2 * 646_000_000 + 100_000_000)
    assert room_for(646_000_000, num_engines=1) < 4e9  # half of docker run --shm-size=8g


def test_a_full_folder_is_named_and_keeps_no_half_of_an_adapter(small_memory, tiny_adapter_dir):
    folder = AdapterFolder()
    assert (tiny_adapter_dir / "adapter_model.safetensors").stat().st_size > 20_000
    with pytest.raises(EngineError, match=rf"{folder.path}/version-0+\d: cannot write .* No space left .*make room in"):
        for version in range(1, 4):
            folder.add(tiny_adapter_dir, version)
    assert {path.name[:7] for path in folder.path.iterdir()} <= {"lock", "version"}
    folder.close()


# --- options


def test_a_rank_beyond_vllms_is_refused_before_anything_starts(tmp_path):
    options = VLLMOptions(model_path="no model", max_model_len=64, lora_rank=513)
    with pytest.raises(EngineError, match=r"lora\.r: .* up to 512, found 513"):
        VLLMEngine(options, log_path=tmp_path / "log")


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ("expandable_segments:True", None),
        ("Expandable_Segments : true, max_split_size_mb:64", "max_split_size_mb:64"),
        ("max_split_size_mb:64,expandable_segments:False", "max_split_size_mb:64"),
        ("roundup_power2_divisions:[256:1,>:2]", "roundup_power2_divisions:[256:1,>:2]"),
    ],
)
def test_the_engine_does_without_expandable_segments_and_the_trainer_keeps_them(monkeypatch, name, settings, left):
    monkeypatch.setenv(name, settings)
    assert child_environment(1, None, Path("/scratch")).get(name) == left
    assert os.environ[name] == settings


def test_an_engine_is_given_one_folder_for_what_is_written_and_what_it_serves(monkeypatch):
    """So publishing copies nothing: a file of one folder can have a second name there."""
    given = []

    class Stub:
        def __init__(self, options: VLLMOptions, *, folder: AdapterFolder, **_: object) -> None:
            given.append(folder)

        def wait_for_class(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr("trapo_lite.engines.vllm.engine.VLLMEngine", Stub)
    engine = start_engine(load_config(["configs/tiny_cpu.yaml"], []), max_model_len=64, log_path=Path("log"))
    [folder] = given
    assert engine.scratch == folder.scratch and engine._folder.is_relative_to(folder.path)
    assert folder.path.is_dir()
    engine.close()
    assert not folder.path.exists()


@pytest.mark.parametrize(
    ("dist", "on_cuda", "is_refused"),
    [("0.32.0", False, True), ("0.32.0", True, False), ("0.32.0+cpu", False, False), (None, False, False)],
)
def test_a_vllm_for_cuda_is_refused_without_a_card(monkeypatch, dist, on_cuda, is_refused):
    def version(name: str) -> str:
        if dist is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return dist

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with (
        pytest.raises(EngineError, match="no card, CUDA_VISIBLE_DEVICES is empty; make one visible")
        if is_refused
        else contextlib.nullcontext()
    ):
        require_card(on_cuda=on_cuda)


def test_float32_on_cuda_is_refused_with_its_cure_before_anything_starts(tmp_path):
    options = VLLMOptions(model_path="no model", max_model_len=64, lora_rank=8, dtype="float32")
    with pytest.raises(EngineError, match=r"model\.dtype=bfloat16, or rollout\.engine=transformers"):
        VLLMEngine(options, log_path=tmp_path / "log", device_index=0)
    config = load_config(["configs/tiny_cpu.yaml"], [])
    with pytest.raises(EngineError, match=r"found float32"):
        start_engine(config, max_model_len=64, log_path=tmp_path / "log", device_index=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("card_gib", "max_num_seqs", "batched_tokens"), [(79, 32, 8192), (79, 9000, 9000), (22, 32, None)]
)
def test_a_large_card_reads_longer_prompts_at_once(card_gib, max_num_seqs, batched_tokens):
    options = VLLMOptions(model_path="x", max_model_len=64, lora_rank=8, max_num_seqs=max_num_seqs)
    arguments = engine_arguments(options, is_cpu=False, gpu_memory=card_gib * 2**30)
    assert arguments.get("max_num_batched_tokens") == batched_tokens


def test_a_missing_vllm_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="pip install"):
        VLLMEngine(VLLMOptions(model_path="x", max_model_len=64, lora_rank=8), log_path=tmp_path / "log")


def test_nf4_without_its_plugin_names_the_command(tmp_path):
    if importlib.util.find_spec("vllm_bnb_plugin") is not None:
        pytest.skip("the plugin is installed")
    options = VLLMOptions(model_path="x", max_model_len=64, lora_rank=8, quantize="nf4")
    with pytest.raises(EngineError, match="pip install vllm-bnb-plugin"):
        VLLMEngine(options, log_path=tmp_path / "log")


# --- the real engine


@pytest.mark.long
def test_an_engine_that_cannot_start_says_why(tmp_path):
    options = VLLMOptions(model_path=str(tmp_path / "nothing"), max_model_len=64, lora_rank=8)
    engine = VLLMEngine(options, log_path=tmp_path / "log", start_limit_s=200.0)
    with pytest.raises(EngineError, match=r"(?s)exit status 1.*nothing"):
        engine.wait()
    engine.close()


@pytest.mark.long
@pytest.mark.parametrize("moment", ["starting", "loading", "sampling"])
def test_nothing_of_vllm_outlives_a_killed_parent(tmp_path, tiny_model_dir, tiny_adapter_dir, moment):
    memory_before = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
    body = f"""
from trapo_lite.engines.base import SampleRequest
from trapo_lite.engines.vllm.engine import VLLMEngine, VLLMOptions
options = VLLMOptions({str(tiny_model_dir)!r}, {TINY_MAX_LEN}, {TINY_RANK}, dtype={VLLM_DTYPE!r}, kv_cache_gib=0.01)
engine = VLLMEngine(options, log_path=Path({str(tmp_path / "log")!r}))
if {moment == "sampling"}:
    engine.publish(Path({str(tiny_adapter_dir)!r}), 1)
    engine.submit(SampleRequest("x", (1, 2, 3), 0, 500))
    engine.poll()
elif {moment == "loading"}:
    time.sleep(2)
print(engine._child.process.pid, engine._folder.path, flush=True)
"""
    parent = start_parent(body, TMPDIR=str(tmp_path))
    assert parent.stdout is not None
    pid, folder = parent.stdout.readline().split()
    assert is_running(int(pid)) and Path(folder).is_dir()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not is_running(int(pid)), limit_s=10.0)
    assert children == []
    assert not Path(folder).exists()
    if Path("/dev/shm").is_dir():
        left = set(os.listdir("/dev/shm")) - memory_before
        # Other runs have folders of their own, and hold what is theirs.
        mine = {name for name in left if not name.startswith(PREFIX) and not leftovers.is_held(f"/dev/shm/{name}")}
        assert mine == set()
    assert {path.name for path in tmp_path.iterdir()} == {"log"}


def test_a_full_disk_does_not_keep_a_child_alive_whose_parent_is_gone(tmp_path: Path) -> None:
    """The child's output is /dev/full, so that its last line cannot be written."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    program = (
        "import os, socket, sys, time\n"
        "from pathlib import Path\n"
        "from trapo_lite.engines.child import die_with_parent\n"
        "mine, other = socket.socketpair()\n"
        "die_with_parent(mine.fileno(), os.getppid(), Path(sys.argv[1]))\n"
        "other.close()\n"
        "time.sleep(60)\n"
    )
    with open("/dev/full", "wb") as full:
        child = subprocess.Popen([sys.executable, "-c", program, str(scratch)], stdout=full, start_new_session=True)
    try:
        child.wait(timeout=40)
    finally:
        child.kill()
    assert not scratch.exists()
