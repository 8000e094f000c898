"""Adapters in folders: only plain LoRA that fits the base is taken; anything else is one clear error."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from adapter_folders import CONFIG, WEIGHTS, cut_short, edited, pickled, renamed, with_nan
from byte_model import write_byte_model
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trapo_lite.cli import train as train_cli
from trapo_lite.config import LoraSection, ModelSection
from trapo_lite.core.errors import ConfigError
from trapo_lite.model.adapter_config import AdapterError, own_config, read_config
from trapo_lite.model.base import model_config
from trapo_lite.model.policy import Policy
from trapo_lite.model.saved_adapter import check_fit, expected_shapes, read_tensors
from trapo_lite.run import files

NUM_TENSORS = 2 * 2 * 7  # A and B of q, k, v, o, gate, up and down in two layers


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("byte_model"))


@pytest.fixture(scope="module")
def adapter_dir(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a run leaves it, trained: B is not zero."""
    folder = tmp_path_factory.mktemp("adapter")
    policy = load(base_dir, LoraSection(r=4, alpha=8))
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    policy.adapter.save(folder)
    return folder


def load(base_dir: Path, lora: LoraSection) -> Policy:
    return Policy.load(ModelSection(name=str(base_dir), dtype="float32"), lora, device="cpu")


def start(base_dir: Path, adapter_dir: Path, **lora: object) -> Policy:
    return load(base_dir, LoraSection(**{"r": 4, "alpha": 8, "init_from": str(adapter_dir), **lora}))  # type: ignore


def refuse_to_load(*_args: object, **_options: object) -> None:
    raise AssertionError("a base was loaded before the mistake was found")


@pytest.mark.slow
def test_a_run_starts_from_every_tensor_of_the_adapter(base_dir: Path, adapter_dir: Path) -> None:
    saved = load_file(adapter_dir / WEIGHTS)
    policy = start(base_dir, adapter_dir)
    assert len(saved) == NUM_TENSORS == len(policy.adapter.state())
    assert all(torch.equal(tensor, saved[name]) for name, tensor in policy.adapter.state().items())
    assert {id(p) for p in policy.adapter.parameters} == {
        id(p) for _, p in policy.model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_in_half_precision_is_a_start(base_dir: Path, adapter_dir: Path, tmp_path: Path, dtype) -> None:
    half = edited(adapter_dir, tmp_path / "half", tensors=lambda state: {n: t.to(dtype) for n, t in state.items()})
    state = start(base_dir, half).adapter.state()
    expected = {name: tensor.to(dtype).float() for name, tensor in load_file(adapter_dir / WEIGHTS).items()}
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        (renamed, r"28 of 28 tensors are missing \(base_model.*28 tensors have no place.*language_model"),
        (lambda state: {n: t for n, t in state.items() if ".layers.0." in n}, "14 of 28 tensors are missing"),
        (lambda state: {n: t for n, t in state.items() if "q_proj" in n or "v_proj" in n}, "adapts q_proj, v_proj"),
        (lambda state: {n: t[:, :-1].contiguous() for n, t in state.items()}, "28 tensors have another shape"),
        (
            lambda state: state | {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 64)},
            "1 tensors have no place in the model",
        ),
        (lambda state: state | {"base_model.model.lm_head.weight": torch.zeros(4, 4)}, "which is no LoRA weight"),
        (lambda state: {n: t.to(torch.int32) for n, t in state.items()}, "is of type I32; save it as float32"),
        (lambda state: {n: t.to(torch.float8_e4m3fn) for n, t in state.items()}, "is of type F8_E4M3"),
        (with_nan, "is not finite"),
        (lambda state: {}, "holds no tensors"),
    ],
    ids=["prefix", "layer", "q and v", "shape", "left over", "head", "int", "float8", "nan", "empty"],
)
def test_tensors_that_are_not_the_adapters_are_named(
    base_dir: Path, adapter_dir: Path, tmp_path: Path, tensors: Callable, complaint: str
) -> None:
    wrong = edited(adapter_dir, tmp_path / "wrong", tensors=tensors)
    with pytest.raises(AdapterError, match=complaint):
        start(base_dir, wrong)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / CONFIG).write_text("{"), "adapter_config.json is damaged: not JSON"),
        (lambda folder: (folder / CONFIG).write_text("[]"), "holds a list instead of an object"),
        (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe{}"), "adapter_config.json is damaged: not JSON"),
        (lambda folder: (folder / CONFIG).write_text("[" * 100_000), "adapter_config.json is damaged: not JSON"),
        (lambda folder: (folder / CONFIG).write_text("{}"), "has no peft_type"),
        (lambda folder: (folder / CONFIG).unlink(), "holds no adapter_config.json; give the folder"),
        (lambda folder: (folder / WEIGHTS).unlink(), "holds no adapter_model.safetensors"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "adapter_model.safetensors is damaged"),
        (lambda folder: shutil.rmtree(folder), "there is no such folder"),
    ],
    ids=["not json", "list", "not utf-8", "deep", "no fields", "no config", "no weights", "empty weights", "nothing"],
)
def test_a_damaged_folder_is_one_clear_error(
    base_dir: Path, adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable, complaint: str
) -> None:
    """Before the base is loaded."""
    damage(folder := edited(adapter_dir, tmp_path / "damaged"))
    monkeypatch.setattr("trapo_lite.model.policy.load_base", refuse_to_load)
    with pytest.raises(AdapterError, match=complaint):
        start(base_dir, folder)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"r": "absent"}, "has no r"),
        ({"lora_alpha": "absent"}, "has no lora_alpha"),
        ({"peft_type": "absent"}, "has no peft_type"),
        ({"r": "4"}, "r is '4'; it must be a whole number"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"r": 10**400}, "r is 1000"),
        ({"target_modules": 5}, "target_modules is 5; it must be a list of names"),
        ({"target_modules": [5]}, r"target_modules is \[5\]"),
        ({"rank_pattern": 5}, "rank_pattern is 5"),
        ({"rank_pattern": {"q_proj": "a"}}, "rank_pattern is"),
        ({"rank_pattern": {"q_proj": 10**400}}, "rank_pattern is"),
        ({"rank_pattern": {"q_proj": 8}}, "has rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "has alpha_pattern"),
        ({"rank_pattern": {"q": 8}, "alpha_pattern": {"q": 8}, "target_parameters": ["q"]}, "has rank_pattern"),
        ({"peft_type": "IA3"}, "peft_type: 'IA3'"),
        ({"task_type": "SEQ_CLS"}, "task_type: 'SEQ_CLS'"),
        ({"bias": "lora_only"}, "bias: 'lora_only'"),
        ({"use_rslora": True}, "use_rslora: True"),
        ({"use_dora": True}, "use_dora: True"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: 'pissa_niter_4'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"an_option_of_tomorrow": 2}, "an_option_of_tomorrow: 2"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_configuration_that_is_not_plain_lora_is_refused(
    adapter_dir: Path, tmp_path: Path, fields: dict, complaint: str
) -> None:
    wrong = edited(adapter_dir, tmp_path / "wrong", **fields)
    with pytest.raises(AdapterError, match=complaint):
        read_config(wrong, option="--adapter")


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"base_model_name_or_path": "elsewhere", "peft_version": "0.1", "revision": "main", "inference_mode": True},
        {"task_type": None, "auto_mapping": {"base_model_class": "Qwen2ForCausalLM"}, "init_lora_weights": "gaussian"},
        {"an_option_of_tomorrow": None, "rank_pattern": "absent", "use_dora": "absent", "lora_bias": "absent"},
        {"layer_replication": "absent", "loftq_config": {}, "modules_to_save": [], "lora_dropout": 0.0},
        {"lora_dropout": 0.05},
    ],
    ids=["origin", "other trainers", "other versions", "empty", "dropout"],
)
def test_a_plain_adapter_of_another_trainer_or_version_is_taken(
    base_dir: Path, adapter_dir: Path, tmp_path: Path, fields: dict
) -> None:
    start(base_dir, edited(adapter_dir, tmp_path / "plain", **fields))


KINDS = {
    "pissa": (LoraConfig(init_lora_weights="pissa", target_modules="all-linear"), "init_lora_weights: 'pissa'"),
    "olora": (LoraConfig(init_lora_weights="olora", target_modules="all-linear"), "init_lora_weights: 'olora'"),
    "layers": (LoraConfig(layer_replication=[[0, 2], [1, 2]], target_modules="all-linear"), "layer_replication"),
    "tokens": (LoraConfig(trainable_token_indices=[5, 6], target_modules="all-linear"), "trainable_token_indices"),
    "bias": (LoraConfig(lora_bias=True, target_modules=["q_proj"]), "lora_bias"),
    "dora": (LoraConfig(use_dora=True, target_modules="all-linear"), "use_dora"),
    "saved": (LoraConfig(modules_to_save=["lm_head"], target_modules="all-linear"), "modules_to_save"),
    "adalora": (AdaLoraConfig(init_r=4, target_modules=["q_proj"], total_step=10), "peft_type: 'ADALORA'"),
    "ia3": (IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]), "peft_type: 'IA3'"),
    "loha": (LoHaConfig(r=4, alpha=8, target_modules=["q_proj"]), "peft_type: 'LOHA'"),
    "q and v": (LoraConfig(target_modules=["q_proj", "v_proj"]), "adapts q_proj, v_proj, expected are down_proj, "),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_other_kinds_as_peft_saves_them(base_dir: Path, tmp_path: Path, kind: str) -> None:
    config, complaint = KINDS[kind]
    config.task_type, config.r, config.lora_alpha = "CAUSAL_LM", 4, 8
    base = AutoModelForCausalLM.from_pretrained(base_dir)
    get_peft_model(base, config).save_pretrained(tmp_path / "other")  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match=complaint):
        start(base_dir, tmp_path / "other")


@pytest.mark.slow
def test_a_regular_expression_is_read_by_what_it_adapts(base_dir: Path, tmp_path: Path) -> None:
    """The names of the tensors say which layers it matched."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=r".*\.(q|v)_proj")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir), config)
    model.save_pretrained(str(tmp_path))
    assert isinstance(json.loads((tmp_path / CONFIG).read_text())["target_modules"], str)
    for targets in (["q_proj"], ["q_proj", "k_proj", "v_proj"]):
        with pytest.raises(ConfigError, match=r"lora.target_modules: .* has \['q_proj', 'v_proj'\]; set it to that"):
            start(base_dir, tmp_path, target_modules=targets)
    assert len(start(base_dir, tmp_path, target_modules=["v_proj", "q_proj"]).adapter.parameters) == 2 * 2 * 2


@pytest.mark.parametrize("targets", ["(", "a{1,99999999999}", "(" * 5000 + ")" * 5000, "nothing", ["model"]], ids=len)
def test_targets_that_adapt_nothing_are_one_clear_error(base_dir: Path, adapter_dir: Path, tmp_path: Path, targets):
    wrong = read_config(edited(adapter_dir, tmp_path / "wrong", target_modules=targets), option="--adapter")
    with pytest.raises(AdapterError, match="does not fit the base"):
        check_fit(wrong, model_config(ModelSection(name=str(base_dir))))


def test_weights_in_a_pickle_and_weights_cut_short(base_dir: Path, adapter_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"a pickle \(adapter_model.bin\), which may run any code.*save_pretrained"):
        start(base_dir, pickled(adapter_dir, tmp_path / "pickled"))
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is damaged"):
        start(base_dir, cut_short(adapter_dir, tmp_path / "short"))


@pytest.mark.slow
def test_a_dry_run_reads_configuration_and_names(base_dir: Path, adapter_dir: Path, tmp_path: Path, capsys) -> None:
    """Without weights: the model's folder need not even hold them."""
    bare = shutil.copytree(base_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("model.safetensors"))
    command = ["--config", "configs/tiny_cpu.yaml", "--dry-run", f"model.name={bare}", "lora.r=4", "lora.alpha=8"]

    def dry_run(folder: Path, *overrides: str) -> str:
        with pytest.raises(SystemExit) as end:
            train_cli([*command, f"lora.init_from={folder}", *overrides])
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "tensors have no place in the model" in dry_run(edited(adapter_dir, tmp_path / "names", tensors=renamed))
    assert "use_rslora: True" in dry_run(edited(adapter_dir, tmp_path / "kind", use_rslora=True))
    assert "is damaged" in dry_run(cut_short(adapter_dir, tmp_path / "short"))
    assert "set it to that" in dry_run(adapter_dir, "lora.target_modules=[q_proj]")
    lengths = ["data.max_prompt_tokens=256", "rollout.max_response_tokens=512"]  # in bytes
    train_cli([*command, f"lora.init_from={adapter_dir}", "rollout.engine=transformers", *lengths])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["qwen3_moe", "laguna"])
def test_adapters_of_experts_are_read_as_they_were_written(model_type: str, tmp_path: Path) -> None:
    """PEFT names experts anew when it loads them: some tensors of Laguna then stay as they were."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": 80, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 16}
    sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**sizes)).save_pretrained(tmp_path / "base")
    first = load(tmp_path / "base", LoraSection(r=4, alpha=8))
    with torch.no_grad():
        for parameter in first.adapter.parameters:
            parameter.add_(1.0)
    first.adapter.save(tmp_path / "adapter")
    assert set(first.adapter.state()) == set(peft.get_peft_model_state_dict(first.model, save_embedding_layers=False))

    resumed = load(tmp_path / "base", LoraSection(r=4, alpha=8))
    resumed.adapter.load_state(load_file(tmp_path / "adapter" / WEIGHTS))
    started = start(tmp_path / "base", tmp_path / "adapter")
    for policy in (resumed, started):
        for (name, found), expected in zip(policy.model.named_parameters(), first.model.parameters(), strict=True):
            assert torch.equal(found, expected), name
    adapter = read_config(tmp_path / "adapter", option="--adapter")
    check_fit(adapter, model_config(ModelSection(name=str(tmp_path / "base"))))


def test_shapes_are_those_of_the_real_model(base_dir: Path, adapter_dir: Path) -> None:
    """Computed from config.json alone; the weights on disk came from the model itself."""
    base = model_config(ModelSection(name=str(base_dir)))
    saved = {name: tuple(tensor.shape) for name, tensor in load_file(adapter_dir / WEIGHTS).items()}
    assert expected_shapes(base, own_config(LoraSection(r=4, alpha=8))) == saved
    wrong = LoraSection(r=4, alpha=8, target_modules=["nothing"])
    with pytest.raises(AdapterError, match="does not fit the base"):
        check_fit(read_config(adapter_dir, option="--adapter"), base, wanted=own_config(wrong))


def test_reading_leaves_the_saved_type(adapter_dir: Path, tmp_path: Path) -> None:
    half = edited(adapter_dir, tmp_path / "half", tensors=lambda state: {n: t.bfloat16() for n, t in state.items()})
    tensors = read_tensors(read_config(half, option="--adapter"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_what_a_run_saves_can_be_read_by_others(base_dir: Path, tmp_path: Path, monkeypatch) -> None:
    """Permissions of any new file, and the base by a name that holds from anywhere."""
    monkeypatch.chdir(base_dir.parent)
    policy = load(Path(base_dir.name), LoraSection(r=4, alpha=8))
    policy.adapter.save(tmp_path / "adapter")
    (plain := tmp_path / "plain").touch()
    assert (tmp_path / "adapter" / WEIGHTS).stat().st_mode == plain.stat().st_mode
    fields = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert fields["base_model_name_or_path"] == str(base_dir)


def test_a_disk_that_is_full_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has an error of its own for it."""

    def full(*_args: object, **_options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left") as found:
        files.save_tensors({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    assert found.value.errno == errno.ENOSPC
