"""The data job: its report, cleaned rows that load to the same problems, one problem shown, clear errors."""

import io
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from byte_model import byte_tokenizer
from rich.console import Console

from trapo_lite.cli import exit_on_user_error
from trapo_lite.config import AlgorithmSection, Config, load_config
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.micro_groups import MicroGroup
from trapo_lite.core.types import Problem
from trapo_lite.curation.inspection import show_problem
from trapo_lite.curation.prepare import prepare
from trapo_lite.data.loading import load_problems
from trapo_lite.data.tokens import load_tokenizer

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_data.py"
ROWS = [
    {"id": "a", "problem": "1 + 1 [b]?", "answer": "2", "solutions": ["<think>one\n\none</think>\nIt is \\boxed{2}."]},
    {"question": "Half of 48?", "answer": "48/2 = <<48/2=24>>24\n#### 24"},
    {
        "data_source": "made",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 6 * 7? "}],
        "reward_model": {"ground_truth": "42"},
        "extra_info": {"index": 5, "answer_list": ["<think></think>42", "é 42", "x" * 300]},
    },
    {"id": "no answer", "problem": "?"},
]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("byte_tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def overrides(tokenizer_dir, tmp_path) -> list[str]:
    file = tmp_path / "made.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return [
        f"model.name={tokenizer_dir}",
        f"data.train={file}",
        "data.on_bad_row=skip",
        "rollout.max_response_tokens=100",
    ]


def printed(overrides: list[str], **options) -> str:
    console = Console(file=io.StringIO(), width=80)
    prepare(load_config(overrides=overrides), console, **options)
    return console.file.getvalue()


def test_a_set_without_solutions_gives_a_warning_if_the_algorithm_needs_them(overrides, tmp_path):
    (tmp_path / "made.jsonl").write_text('{"problem": "1?", "answer": "1"}\n')
    warning = "warning: no row has a usable expert solution, which the algorithm needs; name their column in"
    assert warning in printed(overrides)
    assert warning not in printed([*overrides, "algorithm.schedule=[{num_rollouts: 8}]", "algorithm.prefix_loss=none"])


def test_the_report_compares_both_readings_of_the_experts(overrides):
    """ "one\\n\\none" is 8 tokens with EOS, "é 42" 6: é is two bytes, the blank line one token. GSM8K's is longer."""
    text = printed(overrides)
    assert "made.jsonl: 3 problems of 4 rows" in text
    assert "trace tokens   min 6, median 8," in text
    assert "rows dropped   no gold answer 1" in text
    assert "traces dropped empty 1, over 100 tokens 1" in text
    assert "with data.expert_text: full there are 4 traces" in text


@pytest.mark.slow
def test_verifying_counts_experts_whose_answer_stands_after_the_thought(overrides):
    text = printed(overrides, verify=True)
    assert "expert traces that do not verify: 1 of 3 (33.3%)" in text
    assert "full there are 4 traces, median 18 tokens, 0 of 4 do not verify" in text
    assert text.count("warning: ") == 1 and "thought cuts off the boxed answer of 1 of 3 expert traces" in text


@pytest.mark.slow
def test_answers_of_other_problems_are_a_warning(overrides, tmp_path):
    rows = [{"problem": str(i), "answer": str(i + 1), "solution": f"\\boxed{{{i}}}"} for i in range(4)]
    (tmp_path / "shifted.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = printed([*overrides, f"data.train={tmp_path / 'shifted.jsonl'}"], verify=True)
    assert "warning: most expert traces do not verify" in text


@pytest.mark.parametrize("settings", [[], ["data.expert_text=full"], ["data.system=row"]])
def test_cleaned_rows_load_to_the_same_problems(overrides, tmp_path, settings):
    out = tmp_path / "clean.jsonl"
    printed([*overrides, *settings], out=str(out))
    config = load_config(overrides=[*overrides, *settings])
    tokenizer = load_tokenizer(config.model.name)
    before = load_problems(config.data, tokenizer, max_response_tokens=100)
    after = load_problems(config.data, tokenizer, max_response_tokens=100, files=str(out))
    assert after.problems == before.problems
    assert after.report.fingerprint == before.report.fingerprint
    assert (after.report.rows_dropped, after.report.traces_dropped) == ({}, {})
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [set(row) - {"system"} for row in rows] == [{"id", "problem", "answer", "solutions", "source"}] * 3


def section_of(group: MicroGroup) -> dict:
    fields = asdict(group)
    for key in ("drawn_from", "help_probability", "prefix_weight"):  # of a step or a problem, not of the schedule
        del fields[key]
    return fields


def test_a_problem_is_shown_with_the_end_of_every_prefix(tokenizer_dir):
    """Trace: 0123456789 and EOS. 11 * 0.2 = 2, 11 * 0.5 = 5 tokens; a missing trace 1 falls back to trace 0."""
    tokenizer = load_tokenizer(tokenizer_dir)
    ids = tuple(tokenizer("0123456789<|endoftext|>")["input_ids"])
    problem = Problem("p", tuple(tokenizer("[b]?")["input_ids"]), "9", (ids,))
    groups = (MicroGroup(4, 0.0, 0.0), MicroGroup(2, 0.2, 0.5, trace=None), MicroGroup(1, 0.5, None, trace=1))
    console = Console(file=io.StringIO(), width=80)
    algorithm = AlgorithmSection(schedule=[section_of(group) for group in groups])
    show_problem(console, problem, Config(algorithm=algorithm), tokenizer, stop_ids=[0])
    text = console.file.getvalue()
    assert "[b]?" in text
    assert "micro-group 1: 4 rollouts, no prefix" in text and "an answer ends at '" in text
    assert "micro-group 2: 2 rollouts, ratio 0.2 of a trace at random if the mean reward is below 0.5" in text
    assert "micro-group 3: 1 rollout, ratio 0.5 of its trace always" in text
    assert "01<<2234<<356789<|endoftext|>" in text
    legend = "in the traces below, <<2 stands where a prefix of micro-group 2 ends; it is no part of them"
    assert text.splitlines().count(legend) == 1
    assert text.count("own tokens: policy_gradient") == 3
    assert text.count("prefix: trust_region (alpha 0.1) x 1") == 2
    show_problem(
        console,
        problem,
        Config(algorithm=algorithm.model_copy(update={"entropy_weight": 0.01, "kl_weight": 0.2})),
        tokenizer,
        stop_ids=[0],
    )
    more = console.file.getvalue().removeprefix(text)
    assert more.count("prefix: trust_region (alpha 0.1) x 1, entropy x 0.01; own tokens: policy_gradient, ") == 2
    unguided = Console(file=io.StringIO(), width=80)
    show_problem(
        unguided,
        problem,
        Config(algorithm=AlgorithmSection(schedule=[section_of(groups[0])], prefix_loss="none")),
        tokenizer,
        stop_ids=[0],
    )
    assert "<<" not in unguided.file.getvalue()
    assert more.count("own tokens: policy_gradient, entropy x 0.01, KL to the base x 0.2") == 3


def test_both_stages_of_a_run_are_shown(tokenizer_dir) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    ids = tuple(tokenizer("0123456789<|endoftext|>")["input_ids"])
    console = Console(file=io.StringIO(), width=80)
    config = load_config(["algorithm/sft_then_rl.yaml"])
    show_problem(console, Problem("p", ids[:2], "9", (ids,)), config, tokenizer, stop_ids=[0])
    text = console.file.getvalue()
    assert "stage 1, micro-group 1: 1 rollout, ratio 1 of its trace always" in text and "prefix: nll x 1" in text
    assert "stage 2, micro-group 2: 8 rollouts, no prefix" in text and "own tokens: policy_gradient" in text


def test_the_prompts_that_show_an_expert_solution_are_printed(overrides):
    """The teacher's, with the whole solution, and the policy's, with the beginning of it."""
    settings = [*overrides, "data.prompt_template='<{problem}>'"]

    def of(block: str, *more: str) -> str:
        file = io.StringIO()
        config = load_config([f"algorithm/{block}.yaml"], [*settings, *more])
        prepare(config, inspect="a", console=Console(file=file, width=80))
        return file.getvalue()

    teacher = of("opsd", "algorithm.teacher.instruction=' Solution: {solution}!'")
    assert re.search(r"the teacher's prompt, \d+ tokens\n<1 \+ 1 \[b\]\? Solution: one\n\none!>\n", teacher)
    shown = of("pope", "algorithm.prefix_instruction=' Begun: {prefix}!'")
    assert re.search(
        r"the prompt with the last of these prefixes, \d+ tokens\n<1 \+ 1 \[b\]\? Begun: one\n\n!>\n", shown
    )
    assert "teacher" not in shown


@pytest.mark.parametrize("key", ["a", "0"])
def test_a_problem_is_found_by_id_or_index(overrides, key):
    text = printed([*overrides, "algorithm.schedule=reference_code"], inspect=key)
    assert "problem a, answer 2" in text
    # Eight tokens: o n e, blank line, o n e, EOS. int(8 * 0.25) = 2, and the blank line at 3 < 8 * 0.55 is kept.
    assert re.search(r"micro-group 2: .*\n    4 of the 8 tokens of trace 0\n", text)
    assert re.search(r"micro-group 4: .*\n    8 of the 8 tokens of trace 0\n", text)
    assert text.count("1 + 1 [b]?") == 1


def test_every_token_of_a_long_prompt_is_shown(overrides):
    prompt = "a" * 20 + "b" * 20 + "c" * 20
    text = printed([*overrides, f"data.prompt_template='{prompt}{{problem}}'"], inspect="a")
    tokenizer = byte_tokenizer()
    ids = tokenizer(prompt + "1 + 1 [b]?")["input_ids"]
    assert ", ".join(f"{tokenizer.decode([token])!r} {token}" for token in ids) in text


def test_an_expert_text_that_does_not_fit_the_prompt_is_refused_as_in_training(overrides):
    opened = ["data.prompt_template='{problem}<think>'", "data.expert_text=full"]
    with pytest.raises(ConfigError, match=r"made\.jsonl line 1 .*; set data\.expert_text: opened"):
        printed([*overrides, *opened])


def test_errors_are_one_message_and_exit_code_2(overrides, tmp_path, capsys):
    def fails(*more: str, **options) -> str:
        with pytest.raises(SystemExit) as ended, exit_on_user_error():
            prepare(load_config(overrides=[*overrides, *more]), **options)
        assert ended.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    assert "did you mean 'train'" in fails("data.trian=x")
    message = fails("data.train=absent.parquet")
    assert message.startswith("error: data absent.parquet: no such file") and message.count("\n") == 1
    assert "made.jsonl line 4: answer: found none" in fails("data.on_bad_row=error")
    assert "data.eos_token: '<|end|>' is 7 tokens" in fails("data.eos_token=<|end|>")
    assert "holds no tokenizer that transformers can read" in fails(f"model.name={tmp_path}")
    assert "data.prompt_template: '<|user|>': not known to the tok" in fails("data.prompt_template=<|user|>{problem}")
    assert "an index from 0 to 2" in fails(inspect="3")
    assert "then give data.train=b.jsonl" in fails(out="b.jsonl", inspect="0")
    assert "--restart: are about the set that is written" in fails(restart=True)
    assert "there is no folder" in fails(out=str(tmp_path / "absent" / "clean.jsonl"))
    assert "also read by data.train" in fails(out=str(tmp_path / "made.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "done.jsonl").write_text("{}\n")
    assert "is in the way" in fails(out=str(tmp_path / "folder.jsonl"))
    assert "is there already; choose another name, or give --restart" in fails(out=str(tmp_path / "done.jsonl"))
    assert "ends in .jsonl" in fails(out=str(tmp_path / "clean.parquet"))


@pytest.mark.long
def test_the_script_itself(overrides, tmp_path):
    config = tmp_path / "made.yaml"
    config.write_text("data:\n  expert_text: full\n")
    command = [sys.executable, str(SCRIPT), overrides[0], "--config", str(config), *overrides[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "expert traces  4 (full)" in done.stdout
