"""The commands are listed, each has a page, and messages name the command as it was called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trapo_lite.__main__ import COMMANDS, main
from trapo_lite.cli import ArgumentParser, exit_when_interrupted, train
from trapo_lite.config.shipped import CONFIGS, config_names
from trapo_lite.run.calling import command

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("given", "suggested"),
    [
        (["--dryrun"], "unrecognized arguments: --dryrun; did you mean --dry-run?"),
        (["--rstart", "optim.lr=1"], "unrecognized arguments: --rstart; did you mean --restart?"),
        (["--rollout.engine", "vllm"], "unrecognized arguments: --rollout.engine; write rollout.engine=vllm\n"),
        (["--rollout.engine=vllm"], "unrecognized arguments: --rollout.engine=vllm; write rollout.engine=vllm\n"),
        (["--quiet"], "unrecognized arguments: --quiet\n"),
        (["--restar"], "unrecognized arguments: --restar; did you mean --restart?"),  # a beginning is no option
    ],
)
def test_an_unknown_option_names_the_nearest(given: list[str], suggested: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        train(["--config", "any.yaml", *given])
    assert end.value.code == 2
    assert suggested in capsys.readouterr().err


def test_an_option_of_several_sections_names_evals_first_in_evaluate(capsys: pytest.CaptureFixture) -> None:
    required = {"evaluate": ["--model", "any"], "train": ["--config", "any.yaml"]}
    for name, nearest in (("evaluate", "eval.max_response_tokens"), ("train", "rollout.max_response_tokens")):
        with pytest.raises(SystemExit):
            main([name, *required[name], "--max-response-tokens", "9"])
        assert f"did you mean {nearest}=... or " in capsys.readouterr().err


def test_a_file_without_its_option_is_told_where_it_goes(capsys: pytest.CaptureFixture) -> None:
    for arguments, message in (
        (["train", "llama.yaml"], "are required: --config; did you mean --config llama.yaml?"),
        (["train", "--dry-run"], "are required: --config; `trapo-lite configs` lists those that come with it"),
        (["export", "--run", "runs/a", "train.max_steps=3"], "train.max_steps=3: has no effect, because nothing is"),
        (
            ["evaluate", "--model", "m", "--data", "a.jsonl", "b.jsonl"],
            "--data: takes one file, found also 'b.jsonl'; ",
        ),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_a_command_without_its_run_names_the_newest_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for expected in ("there is none in runs/ here", "the newest here are runs/new, runs/old"):
        for name in ("export", "evaluate"):
            with pytest.raises(SystemExit):
                main([name])
            assert expected in capsys.readouterr().err
        for age, run in enumerate(("new", "old")):
            (tmp_path / "runs" / run).mkdir(parents=True, exist_ok=True)
            (tmp_path / "runs" / run / "config.yaml").touch()
            os.utime(tmp_path / "runs" / run, (1e9 - age, 1e9 - age))


def test_other_mistakes_are_told_as_argparse_tells_them(capsys: pytest.CaptureFixture) -> None:
    parser = ArgumentParser(prog="p")
    parser.add_argument("--seed", type=int, required=True)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "p: error: the following arguments are required: --seed" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_commands_are_listed_each_on_a_line(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    for name, (_, purpose) in COMMANDS.items():
        assert [line.split(maxsplit=1)[1] for line in lines if line.startswith(f"  {name} ")] == [purpose]
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trian", "did you mean train?"),
        ("Evaluate", "did you mean evaluate?"),
        ("prepare_data.py", "did you mean prepare?"),
        ("zzz", "known are quickstart, doctor, "),
    ],
)
def test_an_unknown_command_names_the_nearest(name: str, hint: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--config", "any.yaml"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"trapo-lite: error: {name!r} is no command; {hint}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: trapo-lite {name} [-h]")
    assert f"examples:\n  trapo-lite {name}" in page


def test_a_mistake_names_the_command_as_it_was_called(capsys: pytest.CaptureFixture) -> None:
    for call, prog in ((lambda: main(["train"]), "trapo-lite train"), (lambda: train([]), "train.py")):
        with pytest.raises(SystemExit):
            call()
        assert f"\n{prog}: error: the following arguments are required: --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("called", "next_command"),
    [
        ("/usr/bin/trapo-lite", "trapo-lite prepare"),
        ("my_own.py", "trapo-lite prepare"),
        (str(ROOT / "trapo_lite/__main__.py"), "python -m trapo_lite prepare"),
        ("scripts/train.py", "python scripts/prepare_data.py"),
        (str(ROOT / "scripts/quickstart.py"), f"python {ROOT}/scripts/prepare_data.py"),
        ("elsewhere/scripts/train.py", "trapo-lite prepare"),
    ],
)
def test_messages_name_the_next_command_in_the_form_of_this_one(
    called: str, next_command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [called])
    assert command("prepare") == next_command


@pytest.mark.slow
def test_the_list_and_the_doctors_page_need_no_package() -> None:
    for arguments in ([], ["doctor", "--help"]):
        bare = [sys.executable, "-E", "-s", "-S", "-m", "trapo_lite", *arguments]
        done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.startswith("usage: python -m trapo_lite"), done.stderr
    bare = [sys.executable, "-E", "-s", "-S", "-m", "trapo_lite", "train"]
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "lacks the package" in done.stderr and done.stderr.count("\n") == 1


def test_shipped_configurations_are_listed_with_what_they_are_for(capsys: pytest.CaptureFixture) -> None:
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == config_names()
    (tiny,) = (line for line in lines if line.startswith("tiny_cpu.yaml "))
    assert "  The tiny world on two CPU cores" in tiny and "#" not in tiny


def test_a_configuration_is_copied_and_nothing_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for arguments, written in (
        (["algorithm/sft.yaml"], "sft.yaml"),
        (["configs/algorithm/sft.yaml", "other.yaml"], "other.yaml"),
        (["algorithm/sft.yaml", "folder"], "folder/sft.yaml"),
    ):
        main(["configs", "copy", *arguments])
        assert capsys.readouterr().out == f"wrote {written}\n"
        assert (tmp_path / written).read_bytes() == (CONFIGS / "algorithm/sft.yaml").read_bytes()
    (tmp_path / "other.yaml").write_text("mine")
    for arguments, message in (
        (["algorithm/sft.yaml", "other.yaml"], "error: other.yaml: exists already; give another name"),
        (["algorithm/sft.yaml", "missing/sft.yaml"], "error: missing/sft.yaml: No such file or directory; give a file"),
        (["tiny_gpu.yaml"], "error: tiny_gpu.yaml: is no shipped configuration; did you mean 'tiny_cpu.yaml'"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["configs", "copy", *arguments])
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith(message)
    assert (tmp_path / "other.yaml").read_text() == "mine"


def test_a_command_says_that_it_took_a_shipped_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    train(["--config", "tiny_cpu.yaml", "--dry-run", "rollout.engine=transformers"])
    printed = capsys.readouterr()
    assert printed.err == f"--config tiny_cpu.yaml: taken from {CONFIGS / 'tiny_cpu.yaml'}\n"
    assert "micro-group 1: 4 rollouts" in printed.out
    main(["configs", "copy", "tiny_cpu.yaml"])
    train(["--config", "tiny_cpu.yaml", "--dry-run", "rollout.engine=transformers"])
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny_cpu.yaml"]


INTERRUPTED = """
import os, signal, sys
from trapo_lite.__main__ import main

class InterruptsTheImport:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                signal.sigtimedwait([], 0.01)  # the handler runs before the next instruction
            except BaseException as error:
                raise ImportError("a library hides the interrupt") from error

sys.meta_path.insert(0, InterruptsTheImport())
main({arguments!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["doctor", "--config", "tiny_cpu.yaml"], "trapo_lite.config"),
        (["plan", "--config", "tiny_cpu.yaml"], "trapo_lite.planning.report"),
        (["train", "--config", "tiny_cpu.yaml"], "trapo_lite.training.trainer"),
        (["train", "--config", "tiny_cpu.yaml", "--dry-run"], "trapo_lite.data.template"),
        (["prepare", "--config", "tiny_cpu.yaml"], "trapo_lite.curation.prepare"),
        (["compare", "none"], "trapo_lite.evaluation.compare"),
        (["evaluate", "--model", "none"], "trapo_lite.evaluation.target"),
    ],
    ids=lambda value: value[0] + ("-dry" if "--dry-run" in value else "") if isinstance(value, list) else None,
)
def test_an_interrupt_during_imports_ends_with_one_line(arguments: list[str], module: str, tmp_path: Path) -> None:
    program = INTERRUPTED.format(arguments=arguments, module=module)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("--config tiny_cpu.yaml: taken from")]
    assert (done.returncode, lines) == (130, ["stopped by SIGINT"])


def test_an_interrupted_command_speaks_of_resuming_only_if_it_can(capsys: pytest.CaptureFixture) -> None:
    for can_resume, line in (
        (False, "stopped by SIGINT\n"),
        (True, "stopped by SIGINT; run the same command again to resume\n"),
    ):
        with pytest.raises(SystemExit) as end, exit_when_interrupted(lambda can_resume=can_resume: can_resume):
            raise KeyboardInterrupt
        assert (end.value.code, capsys.readouterr().err) == (130, line)


def test_a_script_ends_at_once_too() -> None:
    program = "import needs_setup, os, signal; os.kill(os.getpid(), signal.SIGINT); input()"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT\n")
