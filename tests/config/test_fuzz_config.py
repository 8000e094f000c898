"""Configurations and overrides that nobody would write: one clear error, or a configuration within its bounds."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import damaged, numbers, outcome, plain_data, texts
from hypothesis import example, given
from hypothesis import strategies as st

from trapo_lite import cli
from trapo_lite.config import Config, load_config, validate

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs/algorithm").glob("*.yaml")])
TINY = ROOT / "configs/tiny_cpu.yaml"


def whole(low: int, high: float = math.inf) -> Callable[[Any], bool]:
    """Is it a whole number within bounds? A text that spells one is."""

    def is_allowed(value: Any) -> bool:
        number = as_number(value)
        return number is not None and number == math.floor(number) and low <= number <= high

    return is_allowed


def real(is_within: Callable[[float], bool]) -> Callable[[Any], bool]:
    def is_allowed(value: Any) -> bool:
        number = as_number(value)
        return number is not None and is_within(number)

    return is_allowed


def as_number(value: Any) -> float | None:
    """The finite number that a value is or spells; truth values are none."""
    try:
        number = None if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except (ValueError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) else None


def one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in names


def columns(value: Any) -> bool:
    """None, or names of columns: `solutions` has a list of them."""
    if not isinstance(value, dict):
        return value is None
    names = [name for key, name in value.items() if key != "solutions" and name is not None]
    is_known = value.keys() <= {"problem", "answer", "solutions", "id"}
    return is_known and all(isinstance(name, str) and name for name in names + (value.get("solutions") or []))


def filters(value: Any) -> bool:
    """Lists of texts and finite numbers by column; None only as one end of a range."""
    if not isinstance(value, dict):
        return False
    for allowed in value.values():
        numbers = [item for item in allowed if as_number(item) is not None and not isinstance(item, str)]
        others = [item for item in allowed if not isinstance(item, str | bool) and item not in numbers]
        if not allowed or (others and not (others == [None] and len(numbers) == 1 and len(allowed) == 2)):
            return False
        if len(numbers) == len(allowed) == 2 and numbers[0] > numbers[1]:
            return False
    return True


def truth(value: Any) -> bool:
    return isinstance(value, bool) or str(value).lower() in (
        "0",
        "1",
        "0.0",
        "1.0",
        *["yes", "no", "on", "off", "true", "false", "y", "n", "t", "f"],
    )


# What each key may be, written down by hand from its description: what is not allowed here must never be taken.
ALLOWED: dict[str, Callable[[Any], bool]] = {
    "model.quantize": one_of("none", "nf4"),
    "model.dtype": one_of("float32", "bfloat16"),
    "model.gradient_checkpointing": truth,
    "lora.r": whole(1, 512),
    "lora.alpha": real(lambda x: x > 0),
    "data.answer_from": one_of("column", "box"),
    "data.columns": columns,
    "data.filter": filters,
    "data.expert_text": one_of("thought", "full", "opened"),
    "data.max_prompt_tokens": whole(1),
    "data.on_bad_row": one_of("error", "skip"),
    "rollout.engine": one_of("vllm", "transformers"),  # and server, with more
    "rollout.num_problems": whole(1),
    "rollout.max_response_tokens": whole(1),
    "rollout.temperature": real(lambda x: x >= 0.01),
    "rollout.top_p": real(lambda x: 0 < x <= 1),
    "rollout.top_k": whole(0),
    "rollout.gpu_memory_fraction": real(lambda x: 0 < x < 1),
    "rollout.probe_tokens": whole(512),
    "reward.num_workers": whole(1),
    "reward.deadline_seconds": real(lambda x: x > 0),
    "reward.memory_mb": whole(256),
    "algorithm.entropy_weight": real(lambda x: x >= 0),
    "optim.lr": real(lambda x: x > 0),
    "optim.weight_decay": real(lambda x: x >= 0),
    "optim.scheduler": one_of("constant", "cosine", "linear"),
    "optim.warmup_steps": whole(0),
    "optim.updates_per_batch": whole(1),
    "train.max_steps": whole(1),
    "train.tokens_per_batch": whole(1),
    "train.save_every": whole(1),
    "train.keep_checkpoints": whole(1),
    "eval.every": whole(0),
    "eval.num_samples": whole(1),
    "run.seed": whole(0, 2**31 - 1),
    "run.deterministic": truth,
}
KEYS = [f"{section}.{key}" for section, field in Config.model_fields.items() for key in field.annotation.model_fields]


def require_sound(config: Config | str) -> None:
    """If it was taken: every number is within its bounds, and the file a run would keep gives the same again."""
    if isinstance(config, str):
        return
    resolved = config.model_dump(mode="json")
    for key, is_allowed in ALLOWED.items():
        section, _, name = key.partition(".")
        if key != "rollout.engine":
            assert is_allowed(resolved[section][name]), (key, resolved[section][name])
    assert validate(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.slow
@given(st.sampled_from(FILES).flatmap(lambda file: damaged(file.read_bytes())))
@example(b"1: {r: 8}")
@example(b"lora: {1: 8}")
@example(b"~: {r: 8}")
@example(b"[1, 2]: {r: 8}")
@example(b"run: {name: 2001-99-99}")
@example(b"lora: {r: " + b"9" * 5000 + b"}")
@example(b"lora: " + b"[" * 3000)
@example(b"lora: {r: 8}\noptim: {lr: 0.1}\nlora: {alpha: 4}")
@example(b"lora: {r: 8, r: 16}")
@example(b"\xff\xfe")
@example(b"lora: &a {r: 8, alpha: *a}")
@example(b"train: {max_steps: 1:30}")
def test_files_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_bytes(content)
    require_sound(outcome(lambda: load_config([file])))


def test_what_is_named_twice_is_refused(tmp_path: Path) -> None:
    """YAML readers keep the last and say nothing: the first `lora:` would be lost."""
    file = tmp_path / "twice.yaml"
    for content, name in (("lora: {r: 8}\noptim: {lr: 0.1}\nlora: {alpha: 4}", "lora"), ("lora: {r: 8, r: 16}", "r")):
        file.write_text(content)
        message = outcome(lambda: load_config([file]))
        assert isinstance(message, str) and f"'{name}' is given twice" in message


def test_references_that_grow_are_refused(tmp_path: Path) -> None:
    """A few hundred bytes that stand for 10^9 values."""
    lines = ["x0: &x0 [lol]"] + [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 10)]
    for section in ("model: {config_overrides: *x9}", "lora: {target_modules: *x9}", "data: *x9", "optim: {lr: *x9}"):
        file = tmp_path / "grows.yaml"
        file.write_text("\n".join([*lines, section]))
        assert isinstance(outcome(lambda file=file: load_config([file]), seconds=5, mebibytes=512), str)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from([*KEYS, "lora", "1.r", ".", "optim.Lr"]), plain_data(), min_size=1, max_size=3))
@example({"run.name": "a/../b"})
@example({"model.config_overrides": {"rope_parameters": math.nan}})
@example({"optim.lr": 10**400})
@example({"algorithm.schedule": [{"num_rollouts": 10**400}]})
@example({"run.name": "a\n"})
@example({"data.columns": {"problem": "\ud800"}})
@example({"data.filter": {"level": [3, 4, 5], "rate": [0.1, None], "source": "amc", "is_good": True, "x": "\ud800"}})
@example({"data.filter": {"level": [3, 4, 5], "rate": [0.1, None], "source": "amc", "is_good": True, "y": "1e5"}})
@example({"data.filter": {"rate": [math.inf, 1]}})
@example({"data.filter": {"rate": [10**400, 1]}})
@example({"data.filter": {"rate": [True, 1]}})
@example({"data.filter": {"rate": [None, None]}})
@example({"data.filter": {1: [[1]]}})
@example({"data.columns": {"problem": 1, "solutions": [2]}})
@example({"data.columns": {"problem": "1e5", "solutions": "2001-01-01"}})
@example({"data.columns": {"solutions": {"a": "b"}}})
def test_files_of_made_up_values(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    raw: dict[str, Any] = {}
    for key, value in values.items():
        section, dot, name = key.partition(".")
        before = raw.get(section)
        raw[section] = (before if isinstance(before, dict) else {}) | {name: value} if dot else value
    file = tmp_path_factory.getbasetemp() / "made-up.yaml"
    file.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    require_sound(outcome(lambda: load_config([TINY, file])))


@given(
    st.sampled_from(sorted(ALLOWED)),
    st.one_of(numbers(), texts(), st.booleans(), st.none(), st.lists(st.integers(), max_size=2)),
)
@example("train.max_steps", True)
@example("train.max_steps", 1.5)
@example("train.max_steps", "0x10")
@example("run.seed", 2**31)
@example("optim.lr", math.inf)
@example("optim.lr", 10**400)
@example("optim.lr", 1e-320)
@example("lora.r", "1_000")
def test_a_value_out_of_bounds_is_never_taken(key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    found = outcome(lambda: validate({section: {name: value}}))
    if ALLOWED[key](value):
        if isinstance(found, Config):
            taken = getattr(getattr(found, section), name)
            number = as_number(value)
            is_same = taken == value or str(taken) == str(value) or (number is not None and float(taken) == number)
            assert isinstance(value, str) or is_same, (value, taken)
    elif not (key == "rollout.engine" and value == "server"):
        assert isinstance(found, str) and name in found, (key, value)


@pytest.mark.slow
@given(
    st.one_of(texts(60), st.builds("{}={}".format, st.sampled_from(KEYS), st.one_of(texts(60), plain_data().map(repr))))
)
@example("optim.lr=2001-99-99")
@example("optim.lr=" + "9" * 5000)
@example("lora.r=" + "[" * 3000)
@example("run.name=\udce9")
@example("lora.target_modules=[a, *b]")
@example("data.prompt_template='Q: {problem}'")
@example("optim.betas={a: 1, a: 2}")
@example("data.train=")
@example("=")
def test_overrides_of_any_text(text: str) -> None:
    require_sound(outcome(lambda: load_config([TINY], [text])))


SMALL = [
    "model.name",
    "model.config_overrides",
    "model.quantize",
    "model.dtype",
    "lora.target_modules",
    "lora.init_from",
]


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from([*SMALL, *KEYS]), st.one_of(texts(20), plain_data()), max_size=2))
@example({"model.name": "a\0b"})
@example({"data.train": "a\0b.jsonl"})
@example({"data.train": "~nobody/x.jsonl"})
@example({"lora.init_from": "a\0b"})
@example({"model.name": "x" * 5000})
@example({"data.train": "x" * 5000 + ".jsonl"})
@example({"run.dir": "\0"})
@example({"rollout.server_adapter_dir": "\0", "rollout.engine": "server", "rollout.servers": ["http://a:1"]})
@example({"model.config_overrides": {"max_position_embeddings": "many"}})
@example({"model.config_overrides": {"num_attention_heads": 0}})
@example({"model.config_overrides": {"hidden_size": None}})
@example({"train.tokens_per_batch": 10**400})
def test_a_dry_run_with_made_up_values(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: None, values: dict[str, Any]
) -> None:
    """Paths, model and plan as well, which a configuration alone does not ask about."""
    raw: dict[str, Any] = {"rollout": {"engine": "transformers"}}  # vLLM would take seconds each time
    for key, value in values.items():
        section, _, name = key.partition(".")
        raw.setdefault(section, {})[name] = value
    file = tmp_path_factory.getbasetemp() / "dry.yaml"
    file.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    outcome(lambda: cli.train(["--config", str(TINY), "--config", str(file), "--dry-run"]))


@pytest.fixture(scope="module")
def monkeypatch_module():
    """In the folder that the shipped configurations' paths are relative to, and away from any hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("HF_HUB_OFFLINE", "1")
        cli.train(["--config", str(TINY), "--dry-run", "rollout.engine=transformers"])  # the libraries are loaded now
        yield
