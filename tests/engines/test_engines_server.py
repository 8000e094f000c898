"""Two real `vllm serve` endpoints on the loopback: the same tokens as from one engine, also when one of them dies."""

import asyncio
import http.server
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import leftovers
import pytest
import torch
from conftest import VLLM_DTYPE, VLLM_ROUNDING
from ports import free_port
from run_differences import read_metrics

from trapo_lite.config import load_config
from trapo_lite.config.paths import check_paths
from trapo_lite.core.errors import ConfigError, EngineError
from trapo_lite.engines import parity
from trapo_lite.engines.base import Completion, RolloutEngine, SampleRequest
from trapo_lite.engines.child import environment_without_launcher
from trapo_lite.engines.server import endpoints
from trapo_lite.engines.server.engine import API_KEY, ServerEngine
from trapo_lite.engines.start import start_engine
from trapo_lite.tiny_world import BASE_DIR
from trapo_lite.training.trainer import train

MAX_LEN = 256
DTYPE = getattr(torch, VLLM_DTYPE)
KEY = "a-secret-for-the-test"


@dataclass
class Server:
    process: subprocess.Popen
    url: str


def start_server(log: Path, *, logprobs_mode: str = "processed_logprobs") -> Server:
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(BASE_DIR)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", VLLM_DTYPE, "--max-model-len", str(MAX_LEN)]
    command += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--generation-config", "vllm"]
    command += ["--logprobs-mode", logprobs_mode, "--no-enable-chunked-prefill", "--block-size", "32"]
    command += ["--max-num-batched-tokens", "4096", "--kv-cache-memory-bytes", str(64 << 20), "--enforce-eager"]
    environment = environment_without_launcher() | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_API_KEY": KEY,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    return Server(process, f"http://127.0.0.1:{port}")


def wait_for(server: Server, log: Path, limit_s: float = 240.0) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        assert server.process.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(f"{server.url}/health").status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(f"no server after {limit_s:.0f} s: {log.read_text()[-3000:]}")


def signal_all(server: Server, which: signal.Signals) -> None:
    os.killpg(server.process.pid, which)


def kill(server: Server) -> None:
    if server.process.poll() is None:
        signal_all(server, signal.SIGKILL)
        server.process.wait()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two as they should be, and a third that reports raw log-probs."""
    folder = tmp_path_factory.mktemp("servers")
    shared_before = set(Path("/dev/shm").iterdir())
    logs = [folder / f"server-{number}.log" for number in range(3)]
    modes = ["processed_logprobs", "processed_logprobs", "raw_logprobs"]
    started = [start_server(log, logprobs_mode=mode) for log, mode in zip(logs, modes, strict=True)]
    try:
        for server, log in zip(started, logs, strict=True):
            wait_for(server, log)
        yield started
    finally:
        for server in started:
            kill(server)
        for left in set(Path("/dev/shm").iterdir()) - shared_before:  # what a killed server leaves is not ours to leave
            if left.name.startswith(("psm_", "sem.mp-")) and not leftovers.is_held(str(left)):
                left.unlink()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = []
    for seed in (1, 2):
        base = AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)
        torch.manual_seed(seed)
        model = get_peft_model(base, LoraConfig(r=8, lora_alpha=8, target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        folders.append(tmp_path_factory.mktemp(f"adapter-{seed}"))
        model.save_pretrained(str(folders[-1]))
    return folders


def requests(num: int, *, max_tokens: int = 60) -> list[SampleRequest]:
    return [
        SampleRequest(f"r{i}", tuple(range(4, 9 + i % 5)), seed=100 + i, max_tokens=max_tokens, stop_ids=(0,))
        for i in range(num)
    ]


def collect(engine: RolloutEngine, wanted: list[SampleRequest], *, after: int = 10**9, then=None) -> list[Completion]:
    """All completions, in the order of the requests; `then` is called once when `after` of them are in."""
    for request in wanted:
        engine.submit(request)
    found: dict[str, Completion] = {}
    while len(found) < len(wanted):
        found |= {completion.request_id: completion for completion in engine.poll()}
        if len(found) >= after and then is not None:
            then()
            then = None
    return [found[request.request_id] for request in wanted]


@pytest.mark.long
def test_a_server_with_log_probs_of_another_distribution_is_refused(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY, KEY)
    with pytest.raises(EngineError, match=rf"{servers[2].url} gives log-probs of the model.*--logprobs-mode processed"):
        ServerEngine([servers[0].url, servers[2].url], max_model_len=MAX_LEN, dtype=DTYPE)


@pytest.mark.long
@pytest.mark.parametrize(
    ("stopped", "reason"), [("server", "no longer answers"), ("engine", "its engine has not moved for 3 s")]
)
def test_a_server_that_hangs_loses_its_requests_to_the_others(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch, stopped: str, reason: str
) -> None:
    """Its connections stay open: only asking shows that it does nothing."""
    monkeypatch.setenv(API_KEY, KEY)
    for name, seconds in (("WATCH_EVERY_S", 0.3), ("WATCH_LIMIT_S", 2.0), ("STALL_LIMIT_S", 3.0)):
        monkeypatch.setattr(endpoints, name, seconds)
    lines: list[str] = []
    urls = [server.url for server in servers[:2]]
    engine = ServerEngine(urls, max_model_len=MAX_LEN, dtype=DTYPE, notify=lines.append)
    processes = [servers[1].process.pid] if stopped == "server" else engine_processes(servers[1])
    try:
        expected = [completion.token_ids for completion in collect(engine, requests(8))]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        assert [completion.token_ids for completion in collect(engine, requests(8))] == expected
        assert [line for line in lines if urls[1] in line and reason in line and "1 endpoints are left" in line]
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        engine.close()


def engine_processes(server: Server) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(server.process.pid), "-f", "EngineCore"], capture_output=True, text=True)
    assert found.stdout, "no process of the server is called EngineCore"
    return [int(pid) for pid in found.stdout.split()]


class ListingServer(http.server.ThreadingHTTPServer):
    """Lists a model, as vLLM does, and knows nothing else; over TLS with a certificate and its key in one file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"data": [{"id": "m", "max_model_len": MAX_LEN, "parent": None}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.answer(404, {"detail": "Not Found"})

        def answer(self, status: int, body: dict) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None: ...

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.server_port}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        super().__exit__(*error)


@pytest.mark.slow
def test_a_server_that_takes_no_adapters_while_it_runs_is_refused() -> None:
    with (
        ListingServer() as server,
        pytest.raises(EngineError, match=r"has no /v1/load_lora_adapter.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
    ):
        ServerEngine([server.url], max_model_len=MAX_LEN, dtype=DTYPE)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_is_checked_against_the_environments_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=local -keyout {pem} -out {tmp_path}/c.pem"
    command += " -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), check=True, capture_output=True)
    pem.write_text(pem.read_text() + (tmp_path / "c.pem").read_text())
    with ListingServer(pem) as server:
        with pytest.raises(EngineError, match="CERTIFICATE_VERIFY_FAILED"):
            ServerEngine([server.url], max_model_len=MAX_LEN, dtype=DTYPE)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
        with pytest.raises(EngineError, match="has no /v1/load_lora_adapter"):  # so it has been spoken to
            ServerEngine([server.url], max_model_len=MAX_LEN, dtype=DTYPE)


@pytest.mark.long
def test_a_run_over_two_servers_leaves_the_key_nowhere(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(API_KEY, KEY)
    urls = ", ".join(repr(server.url) for server in servers[:2])
    overrides = ["rollout.engine=server", f"rollout.servers=[{urls}]", "run.deterministic=false", "eval.every=0"]
    overrides += [
        f"model.dtype={VLLM_DTYPE}",
        "lora.r=8",
        "rollout.schedule=speculative",
        "train.max_steps=2",
        f"run.dir={tmp_path}",
    ]
    folder = train(load_config([Path("configs/tiny_cpu.yaml")], overrides))
    rows = read_metrics(folder / "metrics.jsonl")
    assert len(rows) == 2 and all(row["mismatch/abs"] < VLLM_ROUNDING for row in rows)
    assert rows[1]["engine/probe_projection"] == pytest.approx(1.0, abs=0.05) and rows[0]["time/first_token"] is None
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5 and not any(KEY.encode() in path.read_bytes() for path in files)


@pytest.mark.long
def test_two_servers_serve_as_one_engine_also_when_one_dies(
    servers: list[Server], adapters: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    urls = [server.url for server in servers[:2]]
    with pytest.raises(EngineError, match=r"401.*set TRAPO_LITE_SERVER_API_KEY"):  # without the key nothing is served
        ServerEngine(urls, max_model_len=MAX_LEN, dtype=DTYPE)
    monkeypatch.setenv(API_KEY, KEY)
    with pytest.raises(EngineError, match="start it with --max-model-len 4096"):
        ServerEngine(urls, max_model_len=4096, dtype=DTYPE)
    with pytest.raises(EngineError, match=rf"past {MAX_LEN - 1} .*another RoPE.*--max-model-len 16"):
        ServerEngine(urls, max_model_len=16, most_model_len=MAX_LEN - 1, dtype=DTYPE)

    lines: list[str] = []
    engine = ServerEngine(urls, max_model_len=MAX_LEN, dtype=DTYPE, notify=lines.append)
    alone = ServerEngine(urls[:1], max_model_len=MAX_LEN, dtype=DTYPE)
    try:
        probe = tuple(range(3, 120, 3))
        base_scores = engine.score(probe)
        assert engine.adapter_checksum() is None
        engine.publish(adapters[0], 1)
        alone.publish(adapters[0], 1)
        assert engine.adapter_checksum() == parity.checksum(adapters[0], dtype=DTYPE)
        adapted = engine.score(probe)
        assert max(abs(a - b) for a, b in zip(adapted, base_scores, strict=True)) > 0.01
        torch.testing.assert_close(adapted, trainer_scores(adapters[0], probe), rtol=0, atol=VLLM_ROUNDING)

        wanted = requests(24)
        spread = collect(engine, wanted)
        assert [completion.token_ids for completion in collect(alone, wanted)] == [c.token_ids for c in spread]
        for request, completion in zip(wanted, spread, strict=True):
            assert completion.adapter_version == 1 and len(completion.logprobs) == len(completion.token_ids)
            assert completion.finish_reason == ("stop" if completion.token_ids[-1] == 0 else "length")
            assert len(completion.token_ids) <= request.max_tokens
        check_logprobs(adapters[0], wanted[0], spread[0])

        engine.submit(SampleRequest("aborted", (5, 6), 1, 200))
        engine.abort("aborted")
        engine.publish(adapters[1], 2)
        assert collect(engine, requests(4))[0].adapter_version == 2
        second = engine.score(probe)
        assert max(abs(a - b) for a, b in zip(adapted, second, strict=True)) > 0.01

        engine.publish(adapters[0], 3)
        long = [replace(request, max_tokens=20 + 8 * i, stop_ids=()) for i, request in enumerate(wanted)]
        alone.publish(adapters[0], 2)
        expected = [completion.token_ids for completion in collect(alone, long)]
        signal_all(servers[1], signal.SIGSTOP)  # so that its share is still in flight when it is killed
        again = collect(engine, long, after=1, then=lambda: kill(servers[1]))
        assert [completion.token_ids for completion in again] == expected
        assert urls[1] in lines[0] and "1 endpoints are left" in lines[0]
        kill(servers[0])
        with pytest.raises(EngineError, match="the last endpoint"):
            collect(engine, wanted)
    finally:
        engine.close()
        alone.close()
    assert not any(KEY in line for line in lines)


def trainer_scores(adapter: Path, token_ids: tuple[int, ...]) -> list[float]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([token_ids])).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(token_ids[1:])[:, None]).squeeze(1).tolist()


def check_logprobs(adapter: Path, request: SampleRequest, completion: Completion) -> None:
    scores = trainer_scores(adapter, request.token_ids + completion.token_ids)
    torch.testing.assert_close(
        list(completion.logprobs), scores[len(request.token_ids) - 1 :], rtol=0, atol=VLLM_ROUNDING
    )


@pytest.mark.slow
def test_the_command_in_a_message_is_the_configurations_own(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    overrides = ["rollout.engine=server", f"rollout.servers={url}", "run.deterministic=false", "lora.r=24"]
    config = load_config([Path("configs/tiny_cpu.yaml")], overrides)
    with pytest.raises(EngineError, match=r"--model trapo_lite/tiny_world/base --dtype float32 .*--max-lora-rank 32 "):
        start_engine(config, max_model_len=64, log_path=tmp_path / "engine.log")


def test_certificates_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with pytest.raises(EngineError, match=r"certificates cannot be read .*/nowhere/ca.pem"):
        ServerEngine(["https://127.0.0.1:1"], max_model_len=64, dtype=DTYPE)


def make_endpoints(answers, urls: list[str]) -> endpoints.Endpoints:
    """Endpoints whose servers are `answers(endpoint, path)`; call it on an event loop."""
    found = endpoints.Endpoints(urls, headers={}, max_model_len=64, command="", notify=lambda line: None)

    async def call(method, endpoint, path, body=None, **_):
        return answers(endpoint, path)

    found._call = call  # type: ignore[method-assign]
    return found


def test_every_replica_is_asked_for_the_adapter_also_after_one_has_failed() -> None:
    def answers(endpoint: endpoints.Endpoint, path: str):
        if endpoint.url == "http://a":
            raise endpoints._EndpointFailed("is down")
        return {"data": [{"id": "adapter"}] if endpoint.url == "http://c" else []}

    async def scene() -> None:
        with pytest.raises(EngineError, match="http://b does not list adapter"):
            await make_endpoints(answers, ["http://a", "http://b", "http://c"]).require_listed("adapter")

    asyncio.run(scene())


def test_a_request_goes_to_the_endpoint_with_the_fewest_in_flight() -> None:
    asked = []

    async def sample(endpoint: endpoints.Endpoint, body: object) -> dict:
        asked.append(endpoint.url)
        await asyncio.sleep(0.01)
        return {}

    async def scene() -> None:
        servers = make_endpoints(None, ["http://a", "http://b"])
        servers._sample = sample  # type: ignore[method-assign]
        sent = [servers.complete(request, None, None) for request in requests(4)]
        await asyncio.gather(*sent, return_exceptions=True)

    asyncio.run(scene())
    assert asked == ["http://a", "http://b", "http://a", "http://b"]


@pytest.mark.parametrize(("status", "is_dropped"), [(400, False), (404, True), (500, True)])
def test_a_request_no_server_would_take_drops_no_server(status: int, is_dropped: bool) -> None:
    def answers(endpoint: endpoints.Endpoint, path: str):
        raise endpoints._EndpointFailed(f"answers {status}", status=status)

    async def scene() -> None:
        servers = make_endpoints(answers, ["http://a", "http://b"])
        with pytest.raises(
            EngineError, match="the last endpoint" if is_dropped else "request r0: http://a answers 400"
        ):
            await servers.complete(requests(1)[0], None, None)
        assert len(servers.alive) == (0 if is_dropped else 2)

    asyncio.run(scene())


@pytest.mark.parametrize("failure", [ssl.SSLError("bad record"), RuntimeError("anything")])
def test_whatever_ends_a_request_reaches_poll(failure: Exception) -> None:
    engine = stub_engine()

    async def complete(*_: object) -> Completion:
        raise failure

    engine._endpoints.complete = complete  # type: ignore[union-attr, method-assign]
    engine.submit(requests(1)[0])
    with pytest.raises(EngineError, match=r"bad record|anything"):
        for _ in range(50):
            engine.poll()
    engine.close()


@pytest.mark.slow
def test_an_aborted_requests_completion_is_not_that_of_its_successor() -> None:
    engine = stub_engine()

    async def complete(request: SampleRequest, *_: object) -> Completion:
        return Completion(request.request_id, (request.seed,), (0.0,), "length", None)

    engine._endpoints.complete = complete  # type: ignore[union-attr, method-assign]
    engine.submit(SampleRequest("x", (1, 2), seed=1, max_tokens=1))
    time.sleep(0.3)  # it has finished, nobody has asked
    engine.abort("x")
    engine.submit(SampleRequest("x", (1, 2), seed=2, max_tokens=1))
    found: list[Completion] = []
    while not found:
        found = engine.poll()
    assert [completion.token_ids for completion in found] == [(2,)]
    engine.close()


def stub_engine() -> ServerEngine:
    """A ServerEngine that has found its one server in order."""
    with pytest.MonkeyPatch.context() as patch:

        async def check(self: endpoints.Endpoints) -> None: ...

        patch.setattr(endpoints.Endpoints, "check", check)
        return ServerEngine(["http://127.0.0.1:1"], max_model_len=MAX_LEN, dtype=DTYPE)


def test_an_endpoint_that_is_not_there_is_named_with_the_command_that_starts_one() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(EngineError, match=rf"{url} does not answer.*--enable-lora"):
        ServerEngine([url], max_model_len=64, dtype=DTYPE)


def test_a_folder_for_the_servers_that_is_not_there_is_named() -> None:
    server = ["rollout.engine=server", "rollout.servers=['http://host']", "rollout.server_adapter_dir=/nowhere"]
    with pytest.raises(ConfigError, match="server_adapter_dir: no folder '/nowhere'"):
        check_paths(load_config(["configs/tiny_cpu.yaml"], [*server, "run.deterministic=false"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.engine=server"], "no endpoint is named"),
        (["rollout.engine=server", "rollout.servers=[host:8000]"], "not a base url"),
        (["rollout.engine=server", "rollout.servers=['http://a:1', 'http://b:80a0']"], "number 2 is not a base url"),
        (["rollout.engine=server", "rollout.servers='http://a:99999'"], "number 1 is not a base url"),
        (["rollout.engine=server", "rollout.servers=['http://a:1', 'http://a:1']"], "named twice"),
        (["rollout.engine=server", "rollout.servers=['http://user:key@host:8000']"], "API_KEY"),
        (["rollout.servers=['http://host:8000']"], "no effect"),
        (
            ["rollout.engine=server", "rollout.servers=['http://host']", "run.deterministic=true", "run.num_threads=1"],
            "rollout.engine: vllm",
        ),
    ],
)
def test_what_servers_cannot_be_is_said_at_once(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=overrides)
