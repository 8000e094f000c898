"""Merged checkpoints: the same log-probs as base + adapter after reloading, or no checkpoint at all."""

import json
import resource
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_folders import edited, with_nan
from byte_model import CHATML, byte_tokenizer, write_byte_model
from conftest import VLLM_DTYPE, VLLM_ROUNDING
from families import FAMILIES, targets_of, write_model
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from trapo_lite import cli
from trapo_lite.config import DataSection, ModelSection, load_config, validate
from trapo_lite.core.errors import ExportError
from trapo_lite.data.chat import stop_ids_of
from trapo_lite.data.tokens import end_of_text_id, load_tokenizer
from trapo_lite.exporting.merge import export_merged, load_float32_base, logprobs
from trapo_lite.exporting.report import compare

TEXT = "What is 13 + 5? Start at 13\n\nAdd 5, now 18\n\nSo \\boxed{18}"
Export = Callable[..., Path]


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("byte_model"))


@pytest.fixture(scope="module")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(base_dir: Path, *, scale: float, targets: str | list[str] = "all-linear") -> Path:
        """B is normal with this standard deviation."""
        torch.manual_seed(1)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=scale)
        folder = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(str(folder))
        return folder

    return make


@pytest.fixture(scope="module")
def adapter_dir(base_dir: Path, make_adapter: Callable[..., Path]) -> Path:
    return make_adapter(base_dir, scale=0.1)


@pytest.fixture
def export(base_dir: Path, adapter_dir: Path, tmp_path: Path) -> Export:
    def run(*, adapter_dir: Path = adapter_dir, model: dict | None = None, **options: object) -> Path:
        section = ModelSection(**{"name": str(base_dir), "dtype": "float32"} | (model or {}))
        options = {"dtype": "float32", "out": tmp_path / "merged", **options}
        keys = options.keys() & DataSection.model_fields.keys()
        data = DataSection(**{key: options.pop(key) for key in keys})  # type: ignore[arg-type]
        return export_merged(model=section, adapter_dir=adapter_dir, data=data, max_response_tokens=9, **options).out  # type: ignore[arg-type]

    return run


def text_logprobs(model: object) -> torch.Tensor:
    return logprobs(model, [byte_tokenizer().encode(TEXT)])


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_the_checkpoint_reloads_as_the_policy(
    export: Export, base_dir: Path, adapter_dir: Path, tmp_path: Path, quantize: str
):
    model = {"quantize": quantize, "dtype": "bfloat16" if quantize == "nf4" else "float32"}
    out = export(model=model)

    base = load_float32_base(ModelSection(name=str(base_dir), **model))  # type: ignore[arg-type]
    before = text_logprobs(base)
    expected = text_logprobs(PeftModel.from_pretrained(base, str(adapter_dir)).eval())
    found = text_logprobs(AutoModelForCausalLM.from_pretrained(out))
    assert (expected - before).abs().mean() > 0.01, "the adapter does too little to be tested"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # sums in another order
    assert AutoTokenizer.from_pretrained(out).encode(TEXT) == byte_tokenizer().encode(TEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "r = 4, alpha = 8" in card and "mean |error|" in card
    assert ("de-quantised NF4" in card) == (quantize == "nf4")
    record = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    assert record["exported"]["versions"]["torch"] == torch.__version__ and record["trained"] == []
    assert f"files {record['exported']['package']}" in card and f"torch {torch.__version__}" in card
    assert not hasattr(AutoConfig.from_pretrained(out), "quantization_config")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt-oss, windows and sinks", "bamba, Mamba-2", "bloom, ALiBi", "mamba2, Mamba-2"])
def test_every_kind_of_class_reloads_as_the_policy(
    family: str, export: Export, make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
):
    """gpt-oss and Bloom have no SDPA, Bamba has recurrent layers, Bloom and Mamba-2 have no limit on positions."""
    base_dir = write_model(FAMILIES[family], tmp_path_factory.mktemp("family"))
    byte_tokenizer().save_pretrained(base_dir)
    adapter_dir = make_adapter(base_dir, scale=0.1, targets=targets_of(base_dir))
    out = export(model={"name": str(base_dir)}, adapter_dir=adapter_dir)

    ids = torch.randint(64, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(base_dir).eval()
        before = base(input_ids=ids).logits
        expected = PeftModel.from_pretrained(base, str(adapter_dir)).eval()(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(out).eval()(input_ids=ids).logits
    assert (expected - before).abs().mean() > 0.01, "the adapter does too little to be tested"
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)  # sums in another order


@pytest.mark.slow
def test_an_nf4_adapter_is_not_merged_into_the_original_weights(export: Export, base_dir: Path):
    """What must fail: the checkpoint of an nf4 run taken for one of the unquantised base."""
    quantized = AutoModelForCausalLM.from_pretrained(export(model={"quantize": "nf4", "dtype": "bfloat16"}))
    original = AutoModelForCausalLM.from_pretrained(export(out=base_dir.parent / "original", overwrite=True))
    difference = text_logprobs(quantized) - text_logprobs(original)
    assert difference.abs().max() > 1e-3


@pytest.mark.slow
def test_bfloat16_is_rounded_once(export: Export, base_dir: Path, adapter_dir: Path):
    out = export(dtype="bfloat16")

    base = AutoModelForCausalLM.from_pretrained(base_dir)
    merged = PeftModel.from_pretrained(base, str(adapter_dir)).merge_and_unload()
    saved = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    for name, tensor in merged.state_dict().items():
        assert torch.equal(saved[name], tensor.to(torch.bfloat16)), name
    assert AutoConfig.from_pretrained(out).dtype == torch.bfloat16
    (weights,) = out.glob("*.safetensors")
    assert weights.stat().st_mode == (out / "config.json").stat().st_mode and not any(out.glob("*.bin"))


@pytest.mark.slow
def test_a_checkpoint_by_itself_stops_where_training_stopped(export: Export):
    """Tokenizer and config.json name one token, generation_config.json all that end; the text is read as before."""
    out = export(eos_token="<|im_end|>")
    tokenizer = load_tokenizer(str(out))
    end_id = byte_tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token == "<|im_end|>"
    found = [end_of_text_id(tokenizer), tokenizer.eos_token_id, AutoConfig.from_pretrained(out).eos_token_id]
    own_id = byte_tokenizer().eos_token_id
    assert found == [end_id] * 3 and GenerationConfig.from_pretrained(out).eos_token_id == [end_id, own_id]
    text = "<|im_start|>user\n\n" + TEXT + "<|im_end|><|endoftext|>"
    assert tokenizer.encode(text) == byte_tokenizer().encode(text) and len(tokenizer) == len(byte_tokenizer())


@pytest.mark.slow
def test_a_checkpoint_by_itself_makes_the_prompts_of_training(export: Export, base_dir: Path, tmp_path: Path):
    """Without options of a caller, its chat template does what training told the base's to do; the card says all."""
    chat_dir = tmp_path / "base"
    shutil.copytree(base_dir, chat_dir)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(chat_dir)
    options = {"enable_thinking": False}
    out = export(
        model={"name": str(chat_dir)}, prompt_template="chat", instruction=" Box it.", template_options=options
    )
    messages = [{"role": "user", "content": "1 + 1? Box it."}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    assert load_tokenizer(str(out)).apply_chat_template(messages, add_generation_prompt=True) == expected
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True) != expected
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| answers end with | `<\\|im_end\\|>`, `<\\|endoftext\\|>` |" in card
    assert load_config([out / "trapo_lite.yaml"]).data == DataSection(
        prompt_template="chat", instruction=" Box it.", template_options=options
    )
    assert "enable_thinking=False" in card and '"chat_template_kwargs": {"enable_thinking": false}' in card
    assert "takes these values of `enable_thinking` as defaults" in card and "problem + ' Box it.'" in card


@pytest.mark.slow
def test_a_plain_token_that_ends_answers_stays_plain(export: Export, tmp_path: Path):
    """Only config.json and generation_config.json name it: a special token would be cut out of every text."""
    out = export(eos_token="\n\n")
    tokenizer = load_tokenizer(str(out))
    assert len(tokenizer) == len(byte_tokenizer()) and tokenizer.encode(TEXT) == byte_tokenizer().encode(TEXT)
    end_id = end_of_text_id(byte_tokenizer(), "\n\n")
    assert AutoConfig.from_pretrained(out).eos_token_id == end_id
    assert GenerationConfig.from_pretrained(out).eos_token_id == [end_id, byte_tokenizer().eos_token_id]
    section = DataSection()
    assert set(stop_ids_of(section, tokenizer, model=str(out))) == {end_id, byte_tokenizer().eos_token_id}


@pytest.mark.slow
def test_generation_ends_where_training_said_and_overrides_are_in_the_config(export: Export):
    rope = {"rope_type": "default", "rope_theta": 40000.0}
    out = export(model={"config_overrides": {"rope_parameters": rope}}, eos_token="<|im_end|>")

    end_id = byte_tokenizer().convert_tokens_to_ids("<|im_end|>")
    generation, config = GenerationConfig.from_pretrained(out), AutoConfig.from_pretrained(out)
    assert generation.eos_token_id[0] == config.eos_token_id == end_id
    assert generation.do_sample and generation.temperature in (None, 1.0) and generation.top_p in (None, 1.0)
    assert config.rope_parameters["rope_theta"] == 40000.0
    head_dim = config.hidden_size // config.num_attention_heads
    frequencies = AutoModelForCausalLM.from_pretrained(out).model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 40000.0 ** -(torch.arange(0, head_dim, 2) / head_dim))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "tamper",
    [lambda delta: 2 * delta, lambda delta: 0 * delta, lambda delta: 0.5 * delta, lambda delta: -delta],
    ids=["doubled", "not applied", "halved", "sign"],
)
def test_a_wrong_merge_is_refused(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamper: Callable, dtype: str
):
    correct = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: tamper(correct(self, adapter)))
    with pytest.raises(ExportError, match="refused, the merged checkpoint is not the trained policy"):
        export(dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_one_wrong_layer_is_refused(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Most of the effect is there, so only the error can tell."""
    correct, seen = Linear.get_delta_weight, []

    def forget_the_first(self: Linear, adapter: str) -> torch.Tensor:
        seen.append(self)
        return correct(self, adapter) * (self is not seen[0])

    monkeypatch.setattr(Linear, "get_delta_weight", forget_the_first)
    with pytest.raises(ExportError, match="refused"):
        export()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_adapter_lost_in_bfloat16_is_refused(
    base_dir: Path, make_adapter: Callable[..., Path], export: Export, tmp_path: Path
):
    """A base in bfloat16 and an update below half of its last place: rounding gives the base back."""
    rounded = tmp_path / "base"
    shutil.copytree(base_dir, rounded)
    AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.bfloat16).save_pretrained(rounded)
    faint = make_adapter(rounded, scale=1e-5)
    with pytest.raises(ExportError, match=r"times the adapter's effect.*--dtype float32"):
        export(model={"name": str(rounded)}, adapter_dir=faint, dtype="bfloat16")
    export(model={"name": str(rounded)}, adapter_dir=faint, dtype="float32")


@pytest.mark.slow
def test_an_untrained_adapter_exports_as_the_base(export: Export, base_dir: Path, make_adapter: Callable[..., Path]):
    out = export(adapter_dir=make_adapter(base_dir, scale=0.0))
    expected = AutoModelForCausalLM.from_pretrained(base_dir)
    torch.testing.assert_close(text_logprobs(AutoModelForCausalLM.from_pretrained(out)), text_logprobs(expected))


def test_survival_is_the_projection_or_unknown():
    """base 0, policy d: what is kept of d when the checkpoint is c d + noise orthogonal to it."""
    effect = torch.tensor([1.0, -1.0, 0.0, 0.0] * 256, dtype=torch.float64)
    noise = torch.tensor([0.0, 0.0, 1.0, -1.0] * 256, dtype=torch.float64)

    def survival(saved: torch.Tensor) -> float | None:
        base = torch.zeros_like(effect)
        return compare(saved, effect, base, out=Path(), dtype="bfloat16", rounding_noise=1.0).survival

    assert survival(0.25 * effect) == 0.25
    assert survival(effect + noise) == 1.0
    # four standard errors of |noise| / |effect| / sqrt(1024) = 1/32 each fit into 0.2 up to a ratio of 1.6
    assert survival(effect + 1.59 * noise) is not None and survival(effect + 1.61 * noise) is None


@pytest.mark.slow
def test_an_existing_folder_is_kept_unless_told_otherwise(export: Export, tmp_path: Path):
    out = export()
    with pytest.raises(ExportError, match=r"exists already.*--overwrite"):
        export(dtype="bfloat16")
    assert AutoConfig.from_pretrained(out).dtype == torch.float32
    export(dtype="bfloat16", overwrite=True)
    assert AutoConfig.from_pretrained(out).dtype == torch.bfloat16
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]

    (notes := tmp_path / "notes").mkdir()
    (notes / "precious.txt").write_text("mine")
    with pytest.raises(ExportError, match="not a model folder"):
        export(out=notes, overwrite=True)
    assert (notes / "precious.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_refused_overwrite_leaves_the_old_checkpoint(export: Export, monkeypatch: pytest.MonkeyPatch):
    out = export()
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: torch.zeros_like(self.base_layer.weight))
    with pytest.raises(ExportError, match="refused"):
        export(overwrite=True)
    assert AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.slow
def test_adapters_that_cannot_be_used(
    export: Export, adapter_dir: Path, make_adapter: Callable[..., Path], tmp_path: Path
):
    """tests/model/test_saved_adapter.py has every other kind."""
    other = write_byte_model(tmp_path / "other", hidden_size=128)
    for wrong, complaint in (
        (tmp_path / "nowhere", "holds no adapter_config.json; give the folder"),
        (make_adapter(other, scale=0.1), "does not fit the base"),
        (edited(adapter_dir, tmp_path / "nan", tensors=with_nan), "is not finite"),
    ):
        with pytest.raises(ExportError, match=complaint):
            export(adapter_dir=wrong)
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_found_before_writing(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**20, 2**20 - 1000, 1000))
    with pytest.raises(ExportError, match="MiB are free"):
        export()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(export: Export, tmp_path: Path):
    """The kernel refuses files over 100 kB, in the middle of writing the weights."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ExportError, match=r"cannot be written.*make room"):
            export()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_dir(base_dir: Path, adapter_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(adapter_dir, folder / "adapter")
    config = validate({"model": {"name": str(base_dir), "dtype": "bfloat16"}, "run": {"name": "run"}})
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return folder


@pytest.mark.long
def test_the_door(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    start = {"after_step": 0, "package": "1a", "commit": None, "clean": None, "versions": {"torch": "2.12.0"}}
    (run_dir / "environment.json").write_text(json.dumps([start]))
    cli.export(["--run", str(run_dir), "data.eos_token=<|im_end|>"])
    assert f"{run_dir / 'merged'}: merged checkpoint in bfloat16" in capsys.readouterr().out
    assert json.loads((run_dir / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((run_dir / "merged" / "environment.json").read_text())["trained"] == [start]
    out = run_dir / "elsewhere"
    cli.export(["--run", str(run_dir), "--adapter", str(run_dir / "adapter"), "--out", str(out), "--dtype", "float32"])
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "nowhere: holds no config.yaml"),
        (["--run", "{run}", "--out", "{run}"], "exists already and is no checkpoint; choose another folder\n"),
        (["--run", "{run}", "--adapter", "nowhere"], "nowhere: holds no adapter_config.json"),
        (["--run", "{run}", "model.nmae=x"], "did you mean 'name'"),
        (["--run", "{run}", "model.quantize=nf4"], "trained on a base with quantize none"),
        (["--run", "{run}", "data.eos_token=unheard"], "data.eos_token"),
    ],
)
def test_mistakes_end_in_one_message(
    run_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    with pytest.raises(SystemExit) as exit_info:
        cli.export([argument.format(run=run_dir) for argument in arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not (run_dir / "merged").exists()


@pytest.mark.long
def test_vllm_serves_the_checkpoint(export: Export, tmp_path: Path):
    from trapo_lite.engines.vllm.engine import VLLMEngine
    from trapo_lite.engines.vllm.options import VLLMOptions

    out = export(dtype="bfloat16")
    reloaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.randint(256, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    options = VLLMOptions(model_path=str(out), max_model_len=640, lora_rank=8, dtype=VLLM_DTYPE, kv_cache_gib=0.01)
    engine = VLLMEngine(options, log_path=tmp_path / "vllm.log", start_limit_s=300.0)
    try:
        found = torch.tensor(engine.score(ids), dtype=torch.float64)
    finally:
        engine.close()
    torch.testing.assert_close(found, logprobs(reloaded, [ids]), atol=VLLM_ROUNDING, rtol=0)  # two implementations
