"""Evaluation: numbers computed by hand with a scripted engine, and the job with real engines and the real verifier."""

import json
import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from adapter_folders import edited, with_nan
from byte_model import write_byte_model
from conftest import OFFICIAL_FILES
from scripted import STOP_ID, ScriptedEngine, ScriptedVerifier, decode, is_boundary
from transformers import GenerationConfig

from trapo_lite import cli
from trapo_lite.config import Config, load_config, validate
from trapo_lite.config.prompt_file import PROMPT_FILE, prompt_yaml
from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.core.micro_groups import MicroGroup
from trapo_lite.core.types import Problem
from trapo_lite.data.tokens import load_tokenizer
from trapo_lite.engines.base import SampleRequest
from trapo_lite.evaluation import REGISTRY
from trapo_lite.evaluation.answer_store import AnswerLog
from trapo_lite.evaluation.draws import evaluate_problems
from trapo_lite.evaluation.evaluate import _start_engines, evaluate
from trapo_lite.evaluation.problem_sets import read_sets
from trapo_lite.evaluation.registry import Benchmark
from trapo_lite.evaluation.results import Answer, EvalResult
from trapo_lite.evaluation.scores import bootstrap_interval
from trapo_lite.evaluation.target import EvalTarget, _name_of, target_from_arguments
from trapo_lite.exporting.merge import export_run
from trapo_lite.rollout.sampler import sample_groups
from trapo_lite.rollout.settings import SamplingSettings
from trapo_lite.tiny_world import BASE_DIR, DATA_DIR
from trapo_lite.tiny_world.tokenizer import PROMPT
from trapo_lite.training.trainer import train

SETTINGS = SamplingSettings(seed=5, max_response_tokens=4, stop_ids=(STOP_ID,))


def problems(num: int) -> list[Problem]:
    """Prompts (1,), (2,) ...; each has an expert trace that must not be used."""
    numbers = range(1, num + 1)
    return [Problem(f"p{n}", prompt_ids=(n,), answer=f"gold {n}", expert_ids=((7, STOP_ID),)) for n in numbers]


def evaluated(engine: ScriptedEngine, judge, *, num_problems: int, num_samples: int, seed: int = 5) -> EvalResult:
    settings = SamplingSettings(**{**vars(SETTINGS), "seed": seed})
    with ScriptedVerifier(judge) as verifier:
        return evaluate_problems(
            engine, verifier, problems(num_problems), num_samples=num_samples, settings=settings, decode=decode
        )


def test_every_number_by_hand():
    """Three problems, two samples each, answered in their order: completions by request, correct where they hold 9.

    p1: 9 .      9 9 9 9 (cut)      both correct         p2: 9 .      8 8 .      one of two
    p3: 8 .      8 8 8 8 (cut)      none
    """
    script = {
        (1, 0): (9, STOP_ID), (1, 1): (9, 9, 9, 9),
        (2, 0): (9, STOP_ID), (2, 1): (8, 8, STOP_ID),
        (3, 0): (8, STOP_ID), (3, 1): (8, 8, 8, 8),
    }  # fmt: skip

    def draw(request: SampleRequest) -> Sequence[int]:
        return script[request.token_ids[0], int(request.request_id.rsplit("/", 1)[1])]

    result = evaluated(ScriptedEngine(draw=draw), lambda text, gold: "9" in text, num_problems=3, num_samples=2)

    assert result.problem_accuracies == [1.0, 0.5, 0.0]
    assert result.accuracy == 0.5
    # 27 equally likely resamples of (1, 1/2, 0): the mean is 0 in one (3.7 %), 1 in one, so both percentiles are there
    assert result.interval_95 == (0.0, 1.0)
    assert result.verdicts == {"correct": 3, "wrong": 3}
    assert result.truncated_share == 2 / 6
    assert result.mean_tokens == (2 + 4 + 2 + 3 + 2 + 4) / 6
    assert result.no_answer_share == 0.0
    assert result.mean_reward == 3 / 6
    answers = [answer.to_row() for answer in result.answers]
    assert answers[1] == {
        "problem_id": "p1",
        "sample": 1,
        "completion": "9 9 9 9",
        "verdict": "correct",
        "answer": "9 9 9 9",
        "finish_reason": "length",
        "num_tokens": 4,
        "gold": "gold 1",
        "reward": 1.0,
    }
    assert [(a["problem_id"], a["sample"]) for a in answers] == [(f"p{i}", s) for i in (1, 2, 3) for s in (0, 1)]
    assert result.summary()["num_problems"] == 3 and result.summary()["num_samples"] == 2


def test_no_problem_is_null_and_not_zero():
    result = evaluated(ScriptedEngine(), lambda text, gold: True, num_problems=0, num_samples=2)
    assert math.isnan(result.accuracy) and result.summary()["accuracy"] is None
    json.dumps(result.summary(), allow_nan=False)


def test_the_interval_is_the_bootstraps():
    """400 problems, half of them solved: the mean of a resample is nearly normal with deviation 0.5 / sqrt(400)."""
    low, high = bootstrap_interval([0.0, 1.0] * 200, seed=1)
    half = 1.96 * 0.5 / math.sqrt(400)
    assert low == pytest.approx(0.5 - half, abs=0.004)  # means lie on a grid of 1/400; the percentile errs by 0.0007
    assert high == pytest.approx(0.5 + half, abs=0.004)
    assert bootstrap_interval([0.0, 1.0] * 200, seed=1) == (low, high)
    assert bootstrap_interval([0.25] * 30, seed=1) == (0.25, 0.25)


@pytest.mark.parametrize("is_solved", [False, True])
def test_the_interval_has_a_width_where_all_problems_ended_alike(is_solved: bool):
    """Wilson: the share p at which z = (p_hat - p) / sqrt(p (1 - p) / n) is 1.96; for p_hat 0 p = z^2 / (n + z^2)."""
    engine = ScriptedEngine(draw=lambda request: (9, STOP_ID))
    result = evaluated(engine, lambda text, gold: is_solved, num_problems=20, num_samples=1)
    edge = 1.96**2 / (20 + 1.96**2)
    expected = (1 - edge, 1.0) if is_solved else (0.0, edge)
    assert result.interval_95 == pytest.approx(expected, abs=1e-4)


def test_draws_are_independent_and_never_training_draws():
    engine = ScriptedEngine()
    result = evaluated(engine, lambda text, gold: False, num_problems=6, num_samples=8)
    eval_seeds = [request.seed for request in engine.requests]
    assert len(set(eval_seeds)) == 6 * 8
    assert len(result.answers) == 6 * 8
    assert all(len(request.token_ids) == 1 for request in engine.requests), "no answer may see an expert solution"

    training = ScriptedEngine()
    with ScriptedVerifier(lambda text, gold: False) as verifier:
        groups = [MicroGroup(8, 0.0, 0.0)]
        sampler = partial(
            sample_groups,
            training,
            verifier,
            micro_groups=groups,
            settings=SETTINGS,
            decode=decode,
            is_boundary=is_boundary,
        )
        for step in range(20):
            sampler(problems(6), step=step)
    assert not set(eval_seeds) & {request.seed for request in training.requests}

    again = ScriptedEngine()
    evaluated(again, lambda text, gold: False, num_problems=6, num_samples=8)
    assert sorted(request.seed for request in again.requests) == sorted(eval_seeds)


def spread(engine: ScriptedEngine) -> float:
    """Variance over 400 problems of their accuracy in 8 draws, each of which is right or wrong at even odds."""
    result = evaluated(engine, lambda text, gold: int(text.split()[0]) % 2 == 0, num_problems=400, num_samples=8)
    return statistics.variance(result.problem_accuracies)


def coin(seed: int) -> tuple[int, ...]:
    return (1 + int(torch.randint(2, (), generator=torch.Generator().manual_seed(seed))), STOP_ID)


@pytest.mark.slow
def test_eight_draws_have_the_variance_of_eight_draws():
    # p (1 - p) / 8; the estimate from 400 problems has a relative error of sqrt(2 / 400) = 7 %
    assert spread(ScriptedEngine(draw=lambda request: coin(request.seed))) == pytest.approx(0.25 / 8, rel=0.25)


@pytest.mark.slow
def test_the_variance_test_can_fail():
    """The official script gives all draws of a problem one seed: the variance of a single draw."""
    one_draw = spread(ScriptedEngine(draw=lambda request: coin(request.token_ids[0])))
    assert one_draw == pytest.approx(0.25, rel=0.25)


@pytest.fixture(scope="module")
def easy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve problems of the kind that the tiny base mostly solves."""
    lines = (DATA_DIR / "train.jsonl").read_text(encoding="utf-8").splitlines()
    easy = [line for line in lines if json.loads(line)["kind"] == "easy"][:12]
    file = tmp_path_factory.mktemp("data") / "easy.jsonl"
    file.write_text("\n".join(easy) + "\n", encoding="utf-8")
    return file


def tiny_config(tmp_path: Path, **run: object) -> Config:
    return validate(
        {
            "model": {"name": str(BASE_DIR), "dtype": "float32"},
            "lora": {"r": 4, "alpha": 8},
            "data": {"prompt_template": PROMPT, "expert_text": "full", "max_prompt_tokens": 64},
            "rollout": {"engine": "transformers", "max_response_tokens": 96},
            "eval": {"temperature": 1.0},
            "reward": {"num_workers": 1},
            "run": {"name": "run", "dir": str(tmp_path), "deterministic": True, "num_threads": 1, **run},
        }
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run whose adapter breaks the model: what it answers is not what the base answers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    folder = tmp_path / "run"
    get_peft_model(base, config).save_pretrained(str(folder / "adapter"))
    (folder / "config.yaml").write_text(tiny_config(tmp_path).to_yaml(), encoding="utf-8")
    return folder


def call_script(*arguments: object) -> None:
    cli.evaluate([str(argument) for argument in arguments])


def target_of(**arguments: object) -> EvalTarget:
    """Return the target that scripts/evaluate.py makes of these arguments and of the others' defaults."""
    options = dict.fromkeys(("run", "model", "adapter", "data", "num_samples", "out"))
    options |= {"base": False, "benchmarks": [], "registry": REGISTRY, "allow_part": False, "restart": False}
    return target_from_arguments(**{**options, "config": [], **arguments})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_and_its_base(run_dir: Path, easy_file: Path, capsys: pytest.CaptureFixture[str]):
    """Base, then adapter, through the door: the base solves easy problems, the random adapter none."""
    call_script("--run", run_dir, "--base", "--data", easy_file, "--num-samples", 2)
    printed = capsys.readouterr().out
    base = json.loads((run_dir / "eval" / "base" / "easy.json").read_text())
    answers = [json.loads(line) for line in (run_dir / "eval" / "base" / "easy.jsonl").read_text().splitlines()]
    # 0.948 on a thousand of them (tiny_world/base/accuracy.json): fewer than 16 of 24 has a chance under 1e-4
    assert base["accuracy"] >= 16 / 24
    assert base["accuracy"] == pytest.approx(sum(a["verdict"] == "correct" for a in answers) / 24)
    assert base["interval_95"][0] <= base["accuracy"] <= base["interval_95"][1]
    assert len(answers) == 24 and base["adapter"] is None
    assert base["environment"]["versions"]["torch"] == torch.__version__ and base["environment"]["package"]
    assert f"accuracy   {base['accuracy']:.3f}" in printed
    solved = next(answer for answer in answers if answer["verdict"] == "correct")
    assert f"\\boxed{{{solved['gold']}}}" in solved["completion"]

    call_script("--run", run_dir, "--data", easy_file, "eval.max_response_tokens=24")
    trained = json.loads((run_dir / "eval" / "adapter" / "easy.json").read_text())
    assert trained["accuracy"] < 0.5 and trained["adapter"] == str(run_dir / "adapter")
    assert trained["num_samples"] == 1 and trained["max_response_tokens"] == 24


def test_a_part_says_so(tmp_path: Path, easy_file: Path):
    """The first problems of a file, a file with a row that was dropped, some of a benchmark."""
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text(easy_file.read_text() + "{\n")
    made = {"made": Benchmark(title="Made", source=str(easy_file), num_problems=20)}

    def read(benchmarks: dict[str, Benchmark], **settings: dict) -> tuple[bool, str]:
        raw = tiny_config(tmp_path).model_dump(mode="json", exclude_unset=True)
        config = validate({**raw, **{name: {**raw.get(name, {}), **keys} for name, keys in settings.items()}})
        tokenizer = load_tokenizer(str(BASE_DIR))
        [one] = read_sets(config, benchmarks, tokenizer, num_samples=None, num_problems=None, allow_part=True)
        return one.is_part, one.title

    assert read({}, eval={"data": str(easy_file)}) == (False, str(easy_file))
    assert read({}, eval={"data": str(easy_file), "num_problems": 4}) == (True, f"{easy_file}, 4 of 12 problems")
    assert read({}, eval={"data": str(damaged)}, data={"on_bad_row": "skip"}) == (True, f"{damaged}, 12 of 13 problems")
    assert read(made) == (True, "Made, 12 of 20 problems")


def test_a_file_is_the_same_under_another_spelling_of_its_path(
    tmp_path: Path, easy_file: Path, monkeypatch: pytest.MonkeyPatch
):
    """The answers of an evaluation are kept for equal problems, and refused for others in a file of the same name."""
    (tmp_path / "link").mkdir()
    link, other = tmp_path / "link/easy.jsonl", tmp_path / "easy.jsonl"
    link.symlink_to(easy_file)
    other.write_text("".join(easy_file.read_text().splitlines(keepends=True)[1:]))
    monkeypatch.chdir(easy_file.parent)

    def answers_to(file: str | Path) -> AnswerLog:
        raw = tiny_config(tmp_path).model_dump(mode="json", exclude_unset=True)
        config, tokenizer = validate(raw | {"eval": {"data": str(file)}}), load_tokenizer(str(BASE_DIR))
        [one] = read_sets(config, {}, tokenizer, num_samples=None, num_problems=None, allow_part=False)
        ids, described = [problem.id for problem in one.problems], {**one.described(), "seed": 0}
        return AnswerLog(tmp_path, "out", described=described, noted=one.noted(), problem_ids=ids, num_samples=1)

    log = answers_to(easy_file)
    for index in range(12):
        log.append([Answer(f"easy-{index}", 0, "It is 8.", "wrong", "7", "stop", 4, "8")])
    assert log.is_complete
    for spelling in (easy_file.name, link, f"../{easy_file.parent.name}/easy.jsonl"):
        assert answers_to(spelling).is_complete
    log.finish(seed=0)
    assert json.loads((tmp_path / "out.json").read_text())["data"] == str(easy_file)
    for spelling in (easy_file.name, link):
        assert answers_to(spelling).is_complete
    with pytest.raises(ConfigError, match="holds answers to other problems than those given now; choose another --out"):
        answers_to(other)


def test_sets_of_problems_are_read_with_a_look_at_the_template(tmp_path: Path, easy_file: Path):
    """Unknown tags stop it; what differs from the tokenizer's chat template is said once for all sets."""
    tokenizer = load_tokenizer(str(BASE_DIR))
    tokenizer.chat_template = "{{ messages[0].content }}<|im_end|>"
    made = {name: Benchmark(title=name, source=str(easy_file), num_problems=[12]) for name in ("one", "two")}

    def read(template: str, benchmarks: dict[str, Benchmark]) -> list[str]:
        raw = tiny_config(tmp_path).model_dump(mode="json", exclude_unset=True)
        raw["data"]["prompt_template"], raw["eval"]["data"] = template, str(easy_file)
        config = validate(raw)
        sets = read_sets(config, benchmarks, tokenizer, num_samples=None, num_problems=None, allow_part=False)
        return [line for one in sets for line in one.report]

    for benchmarks in (made, {}):
        assert not any("warning: " in line for line in read("{problem}<|im_end|>", benchmarks))
        warning, prompt = (line for line in read(PROMPT, benchmarks) if "warning: " in line or "first prompt" in line)
        assert warning.endswith('chat template, which would be "{problem}<|im_end|>"')
        assert "tokens: '<|im_start|>' 1, 'user\\n' " in prompt
        with pytest.raises(DataError, match=r"data\.prompt_template: '<\|user\|>': not known to the tokenizer"):
            read("<|user|>{problem}", benchmarks)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_answers_and_another_seed_others(tmp_path: Path, capsys: pytest.CaptureFixture):
    config_file, data = tmp_path / "config.yaml", str(DATA_DIR / "dev.jsonl")
    config_file.write_text(tiny_config(tmp_path).to_yaml(), encoding="utf-8")

    def answers(seed: int, *, restart: bool = True) -> str:
        target = target_of(
            model=str(BASE_DIR),
            data=data,
            num_samples=2,
            out=tmp_path / "out",
            restart=restart,
            config=[str(config_file)],
            overrides=["eval.num_problems=4", "eval.max_response_tokens=32", f"run.seed={seed}"],
        )
        assert len(evaluate(target)["dev"].answers) == 8
        return (target.out / "dev.jsonl").read_text()

    first = answers(seed=0)
    read = "holds all answers already: they are read, not sampled again"
    assert answers(seed=0) == first and read not in capsys.readouterr().out
    assert answers(seed=0, restart=False) == first and read in capsys.readouterr().out
    assert answers(seed=1) != first


@pytest.mark.slow
def test_a_base_whose_chat_template_ends_turns_with_another_token_than_its_files_name(
    tmp_path: Path, easy_file: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both end an answer, so there is nothing to ask. Tokenizer and generation_config.json name <|endoftext|>."""
    model = write_byte_model(tmp_path / "base")
    tokenizer = load_tokenizer(str(model))
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(model)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id).save_pretrained(model)
    raw = tiny_config(tmp_path).model_dump(mode="json", exclude_unset=True)
    raw |= {"model": {"name": str(model)}, "data": {"prompt_template": "chat"}, "eval": {"data": str(easy_file)}}

    class Started(Exception):
        pass

    def start(*_args: object, **_options: object) -> None:
        raise Started

    monkeypatch.setattr("trapo_lite.evaluation.evaluate.start_engine", start)
    with pytest.raises(Started):
        evaluate(EvalTarget(validate(raw), adapter_dir=None, out=tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "nowhere: holds no config.yaml"),
        (["--run", "{run}/adapter"], "there are {run}; give DIR/NAME of a run, and --adapter {run}/adapter for this"),
        (["--run", "{run}"], "eval.data: there is nothing to evaluate on"),
        (["--run", "{run}", "--data", "nowhere.jsonl"], "--data nowhere.jsonl: no such file"),
        (["--run", "{run}", "--adapter", "{run}/eval"], "holds no adapter_config.json"),
        (["--run", "{run}", "--adapter", "{run}/adapter", "--base"], "choose one"),
        (["--model", "{run}/nowhere", "--data", "{data}"], "model.name"),
        (["--model", str(BASE_DIR), "--base"], "give --run instead"),
        (["--run", "{run}", "--data", "{data}", "--num-samples", "0"], "--num-samples: found 0"),
        (["--run", "{run}", "--data", "{data}", "eval.max_response_tokens=600"], "positions for 512; lower it to 4"),
        (["--run", "{run}", "--data", "{data}", "--out", "{data}/x"], "--out"),
        (["--run", "{run}", "--data", "{data}", "--out", "{data}"], "is a file; give a folder"),
        (["--regrade", "{run}", "--num-samples", "4"], "so --num-samples has no effect"),
        (["--regrade", "{run}", "--partial"], "so --partial has no effect"),
        (["--regrade", "{run}", "eval.temperature=1"], "so eval.temperature=1 has no effect"),
        (["--regrade", "{run}", "--config", "A.yaml"], "so --config has no effect"),
        (["--run", "{run}", "--data", "{data}", "--partial"], "--partial: is about benchmarks; name some with"),
        (["--run", "{run}", "--data", "{data}", "--registry", "{data}"], "--registry: is about benchmarks"),
        (["--run", "{run}", "--data", "{data}", "eval.data=x"], "--data: eval.data is given as well"),
        (["--model", str(BASE_DIR), "--data", "{data}", "model.name=x"], "--model: model.name is given as well"),
    ],
)
def test_mistakes_end_in_one_message(
    run_dir: Path, easy_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    with pytest.raises(SystemExit) as exit_info:
        call_script(*(argument.format(run=run_dir, data=easy_file) for argument in arguments))
    assert exit_info.value.code == 2
    assert message.format(run=run_dir) in capsys.readouterr().err


@pytest.mark.slow
def test_an_adapter_that_is_not_the_bases_is_refused_before_anything_is_loaded(
    run_dir: Path, easy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """tests/model/test_saved_adapter.py has every other kind."""
    wrong = edited(run_dir / "adapter", tmp_path / "wrong", tensors=with_nan)

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.setattr("trapo_lite.evaluation.evaluate.start_engine", refuse)
    with pytest.raises(SystemExit):
        call_script("--run", run_dir, "--adapter", wrong, "--data", easy_file)
    assert "is not finite" in capsys.readouterr().err


@pytest.mark.slow
def test_vllm_is_not_started_for_an_adapter_of_another_rank(
    run_dir: Path, easy_file: Path, capsys: pytest.CaptureFixture[str]
):
    other = ["lora.r=8", "rollout.engine=vllm"]
    with pytest.raises(SystemExit):
        call_script("--run", run_dir, "--data", easy_file, *other)
    assert "lora.r: 8, but the adapter" in capsys.readouterr().err


@pytest.mark.long
def test_a_merged_checkpoint_by_itself_answers_as_base_and_adapter_do(tmp_path: Path, easy_file: Path):
    """SFT that ends answers with <|im_end|>, where the base says <|endoftext|>; then the real evaluation of both."""
    raw = tiny_config(tmp_path).model_dump(mode="json", exclude_unset=True)
    raw["data"] |= {"eos_token": "<|im_end|>", "train": str(DATA_DIR / "train.jsonl")}
    raw["algorithm"] = {
        "name": "sft",
        "schedule": [{"num_rollouts": 1, "prefix_ratio": 1.0, "help_below": None}],
        "prefix_loss": "nll",
        "normalizer": "tokens",
    }
    raw |= {"lora": {"r": 16, "alpha": 16}, "optim": {"lr": 3e-3}, "train": {"max_steps": 15}}
    raw["rollout"]["num_problems"] = 8
    config = validate(raw)
    run = train(config)
    merged = export_run(run).out

    def answers(**target: object) -> list[dict]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        result = evaluate(EvalTarget(**{"out": out, **target}))  # type: ignore[arg-type]
        return [answer.to_row() for answer in result["easy"].answers]

    evaluation = {**raw, "eval": {"temperature": 1.0, "data": str(easy_file)}}
    unmerged = answers(config=validate(evaluation), adapter_dir=run / "adapter")
    own_end = {key: value for key, value in raw["data"].items() if key != "eos_token"}
    by_itself = {**evaluation, "data": own_end, "model": {"name": str(merged), "dtype": "float32"}}
    assert answers(config=validate(by_itself), adapter_dir=None) == unmerged
    settings = tmp_path / "settings.yaml"  # of everything but prompts and their ends
    settings.write_text(yaml.safe_dump({key: part for key, part in evaluation.items() if key not in ("data", "model")}))
    alone = target_of(model=str(merged), config=[str(settings)], overrides=["model.dtype=float32"]).config
    assert answers(config=alone, adapter_dir=None) == unmerged
    ended = [row for row in unmerged if row["finish_reason"] == "stop"]
    assert len(ended) >= 9, "the run did not learn to end its answers, so that this test says nothing"


OWN = {
    "prompt_template": "chat",
    "instruction": " Box it.",
    "template_options": {"enable_thinking": False},
    "eos_token": "<|im_end|>",
}


@pytest.mark.parametrize(
    ("overrides", "expected", "line"),
    [
        ([], OWN, "prompt: as in training, by "),
        (["data.instruction=''"], OWN | {"instruction": ""}, "warning: data: the prompts differ"),
        (
            ["data.prompt_template='Q: {problem}'"],
            {"prompt_template": "Q: {problem}"},
            "warning: data: the prompts differ",
        ),
    ],
    ids=["its own", "one key", "another form"],
)
def test_a_checkpoint_brings_its_prompts(tmp_path: Path, overrides: list[str], expected: dict, line: str):
    """A given data.prompt_template replaces them all, another key only that one."""
    data = validate({"data": OWN | {"max_prompt_tokens": 7}}).data
    (tmp_path / PROMPT_FILE).write_text(prompt_yaml(data, max_response_tokens=9), encoding="utf-8")
    target = target_of(model=str(tmp_path), overrides=overrides)
    assert target.config.data == validate({"data": expected}).data
    is_its_own_form = expected.get("prompt_template") == OWN.get("prompt_template")
    assert target.config.rollout.max_response_tokens == (9 if is_its_own_form else 8192)
    assert target.origin_line.startswith(line)


def test_a_configuration_file_replaces_them_too(tmp_path: Path):
    (tmp_path / PROMPT_FILE).write_text(
        prompt_yaml(validate({"data": OWN}).data, max_response_tokens=9), encoding="utf-8"
    )
    file = tmp_path / "given.yaml"
    file.write_text("data: {prompt_template: 'Q: {problem}', max_prompt_tokens: 9}\nlora: {r: 4}\n")
    with_file = target_of(model=str(tmp_path), config=[str(file)], overrides=[])
    assert with_file.config.data == validate({"data": {"prompt_template": "Q: {problem}", "max_prompt_tokens": 9}}).data
    assert with_file.origin_line.startswith("warning: ") and with_file.config.lora.r == 4


def test_a_prompt_that_is_written_out_is_kept_too(tmp_path: Path):
    data = validate(
        {"data": {"prompt_template": "<|im_start|>\n{problem}", "system": "row", "stop_tokens": ["\n\n"]}}
    ).data
    (tmp_path / PROMPT_FILE).write_text(prompt_yaml(data, max_response_tokens=9), encoding="utf-8")
    assert target_of(model=str(tmp_path), overrides=[]).config.data == data


def test_a_model_without_prompts_of_its_own_takes_the_default_and_says_so(tmp_path: Path):
    target = target_of(model=str(tmp_path), overrides=[])
    assert target.config.data == validate({}).data
    assert (
        f"the default of data.prompt_template, Qwen2.5's chat form, because {tmp_path} holds no" in target.origin_line
    )
    assert target_of(model=str(tmp_path), overrides=["data.prompt_template=chat"]).origin_line == ""


@pytest.mark.parametrize(
    "content", ["data: {train: x.jsonl}", "reward: {num_workers: 9}", "data: 5", "rollout: {engine: server}"]
)
def test_the_prompt_file_of_a_model_sets_nothing_else(tmp_path: Path, content: str):
    (tmp_path / PROMPT_FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"trapo_lite\.yaml may set eos_token, .* of data, .* only; export .* again"):
        target_of(model=str(tmp_path), overrides=[])


def test_results_of_two_merged_folders_do_not_meet(tmp_path: Path):
    """By default; a hub id gives its last part."""
    (tmp_path / "first" / "merged").mkdir(parents=True)
    assert _name_of(str(tmp_path / "first" / "merged")) == "first-merged"
    assert _name_of("/") == ""  # never a path that leaves ./eval
    assert _name_of("owner/name") == "name"


OFFICIAL = OFFICIAL_FILES | {"math500": "math500_test.jsonl"}


@pytest.mark.long
def test_every_official_file_runs_through_the_harness(
    shared_benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Two problems of each, through the door, overrides behind the names included; then the second file of a set."""
    config = tmp_path / "config.yaml"
    config.write_text(tiny_config(tmp_path).to_yaml(), encoding="utf-8")
    named = [f"{name}={shared_benchmarks / file}" for name, file in OFFICIAL.items()]
    overrides = [
        "eval.num_problems=2",
        "eval.max_response_tokens=8",
        "model.config_overrides={max_position_embeddings: 16384}",
    ]
    script = ["--model", BASE_DIR, "--config", config, "--out", tmp_path / "out", "--partial", "--num-samples", 2]
    call_script(*script, "--benchmarks", *named, *overrides)
    assert "trapo-lite compare" in capsys.readouterr().out
    for name in OFFICIAL:
        summary = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert (summary["num_problems"], summary["num_samples"]) == (2, 2) and "2 of " in summary["benchmark"]
        assert len((tmp_path / "out" / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")) == 5
    left_over = {file.name for file in shared_benchmarks.iterdir()} - set(OFFICIAL.values())
    assert left_over == {"valid.math.parquet"}
    script[script.index("--out") + 1] = tmp_path / "math"
    call_script(*script, "--benchmarks", f"math500={shared_benchmarks / 'valid.math.parquet'}", *overrides)
    assert json.loads((tmp_path / "math" / "math500.json").read_text())["benchmark"] == "MATH-500, 2 of 500 problems"


@pytest.mark.slow
def test_the_configuration_does_not_cut_benchmarks(run_dir: Path):
    """Its eval.num_problems is for the set that training looks at; on the command line it is meant."""
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("num_problems: null", "num_problems: 3"))
    assert "num_problems: 3" in config.read_text()

    def target(*overrides: str) -> EvalTarget:
        return target_of(run=run_dir, benchmarks=["gsm8k"], overrides=overrides)

    assert target().config.rollout.gpu_memory_fraction == 0.9  # no trainer shares the card
    assert target("rollout.gpu_memory_fraction=0.3").config.rollout.gpu_memory_fraction == 0.3
    assert target().num_problems is None and target("eval.num_problems=2").num_problems == 2


def test_an_evaluation_starts_an_engine_on_every_visible_card(monkeypatch, tmp_path):
    started = []

    def start(config, *, log_path, device_index, num_engines=1, **options):
        started.append((log_path.name, device_index, num_engines))
        return ScriptedEngine()

    monkeypatch.setattr("trapo_lite.evaluation.evaluate.start_engine", start)
    for count in (0, 1, 3):
        monkeypatch.setattr("torch.cuda.is_available", lambda found=count: found > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda found=count: found)
        _start_engines(load_config(["configs/8xA100_lora.yaml"]), max_model_len=64, folder=tmp_path, say=print)
    assert started[:2] == [("engine.log", None, 1), ("engine.log", 0, 1)]
    assert sorted(started[2:]) == [(f"engine-{card}.log", card, 3) for card in range(3)]
