"""The plan's arithmetic against what is really allocated, and what it advises."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import config_of, rollout
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GraniteMoeHybridConfig,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5TextConfig,
)

from trapo_lite import cli
from trapo_lite.config import AlgorithmSection, Config, LoraSection, ModelSection, load_config, validate
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.types import Group
from trapo_lite.model.base import load_base, model_config, model_shape
from trapo_lite.model.logprobs import CHUNK_ELEMENTS
from trapo_lite.model.policy import Policy
from trapo_lite.model.shape import ModelShape
from trapo_lite.planning.memory import (
    RECURRENT_LAYER,
    layer_bytes,
    plan_memory,
    remedies,
    require_fits,
    shortcoming,
    tokens_at_once,
)
from trapo_lite.planning.report import memory_report, parse_memory
from trapo_lite.planning.time import plan_time
from trapo_lite.run.gpus import GIB, GPUS

pytestmark = pytest.mark.slow

QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def model_7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape alone: there are no weights."""
    folder = tmp_path_factory.mktemp("qwen-7b")
    (folder / "config.json").write_text(json.dumps(QWEN_7B))
    return folder


def config_for(model: Path, name: str, *overrides: str) -> Config:
    return load_config([Path("configs") / name], [f"model.name={model}", *overrides])


# ----- against what is really allocated


def qwen2(num_layers: int, **sizes: int) -> PreTrainedConfig:
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2} | sizes
    return Qwen2Config(**shape, num_hidden_layers=num_layers, vocab_size=128)


def kept_bytes(config: PreTrainedConfig, num_tokens: int, *, dtype: torch.dtype, rank: int) -> int:
    """Return the bytes that autograd keeps of one row's forward pass, the model's own weights left out."""
    base = AutoModelForCausalLM.from_config(config, attn_implementation="packed_tree").to(dtype)
    policy = Policy(base, LoraSection(r=rank, alpha=8), attention="sdpa", gradient_checkpointing=False)
    algorithm = AlgorithmSection().build()
    batch = policy.prepare([make_group(algorithm, [rollout([1], [], [2] * (num_tokens - 1), reward=1.0)])])
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = policy._hidden_rows(batch, torch.arange(num_tokens))
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del hidden
    return total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"hidden_size": 512},
        {"intermediate_size": 2048},
        {"num_key_value_heads": 4},
        {"rank": 64},
        {"head_dim": 128},
    ],
    ids=str,
)
def test_what_a_layer_keeps_is_what_autograd_keeps(dtype: torch.dtype, sizes: dict[str, int]) -> None:
    sizes = dict(sizes)
    rank = sizes.pop("rank", 8)
    one, three = (
        kept_bytes(qwen2(layers, **sizes), 200, dtype=dtype, rank=rank)
        - kept_bytes(qwen2(layers, **sizes), 100, dtype=dtype, rank=rank)
        for layers in (1, 3)
    )
    found = (three - one) / 2 / 100
    hidden, heads = sizes.get("hidden_size", 256), 4
    shape = model_shape_of(
        hidden_size=hidden,
        mlp_width=sizes.get("intermediate_size", 1024),
        attention_width=heads * sizes.get("head_dim", hidden // heads),
        kv_width=sizes.get("num_key_value_heads", 2) * sizes.get("head_dim", hidden // heads),
    )
    width = torch.finfo(dtype).bits // 8
    expected = layer_bytes(shape, rank=rank, width=width, is_grouped=True)
    assert found == pytest.approx(expected, rel=0.02)


def gated_delta_net(num_layers: int) -> PreTrainedConfig:
    """Return a configuration with a quarter of Qwen3.5-4B's widths."""
    return Qwen3_5TextConfig(
        hidden_size=640,
        intermediate_size=2304,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        linear_num_key_heads=4,
        linear_num_value_heads=8,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        num_hidden_layers=num_layers,
        layer_types=["full_attention"] + ["linear_attention"] * (num_layers - 1),
        vocab_size=128,
    )


def mamba2(num_layers: int) -> PreTrainedConfig:
    """Return a configuration with a quarter of the widths of Granite 4 Micro H."""
    return GraniteMoeHybridConfig(
        hidden_size=512,
        intermediate_size=2048,
        shared_intermediate_size=2048,
        num_local_experts=0,
        num_attention_heads=8,
        num_key_value_heads=2,
        mamba_n_heads=16,
        mamba_d_head=64,
        mamba_d_state=128,
        mamba_n_groups=1,
        num_hidden_layers=num_layers,
        layer_types=["full_attention"] + ["linear_attention"] * (num_layers - 1),
        vocab_size=128,
    )


@pytest.mark.parametrize("config_of_layers", [gated_delta_net, mamba2])
def test_a_recurrent_layer_keeps_no_more_than_is_planned(
    config_of_layers: Callable[[int], PreTrainedConfig],
) -> None:
    two, three = (
        kept_bytes(config_of_layers(layers), 512, dtype=torch.bfloat16, rank=32)
        - kept_bytes(config_of_layers(layers), 256, dtype=torch.bfloat16, rank=32)
        for layers in (2, 3)
    )
    shape = ModelShape.of(config_of_layers(3), rank=32, targets="all-linear")
    assert shape.num_recurrent == 2
    share = (three - two) / 256 / layer_bytes(shape, rank=32, width=2, is_grouped=True)
    assert 0.8 * RECURRENT_LAYER < share <= RECURRENT_LAYER


def model_shape_of(**sizes: int) -> ModelShape:
    names = ("num_layers", "vocab_size", "lora_width")
    counts = ("linear_parameters", "other_parameters", "adapter_parameters")
    return ModelShape(**dict.fromkeys(names + counts, 1), **sizes)


def test_a_base_in_nf4_takes_what_is_planned(tmp_path: Path) -> None:
    config = Qwen2Config(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    for quantize in ("none", "nf4"):
        section = ModelSection(name=str(tmp_path), quantize=quantize, dtype="bfloat16")
        base = load_base(section, device="cpu", attention="sdpa")
        found = sum(tensor.untyped_storage().nbytes() for tensor in all_tensors(base))
        overrides = [f"model.quantize={quantize}", "model.dtype=bfloat16", f"model.name={tmp_path}"]
        resolved = load_config([Path("configs/tiny_cpu.yaml")], overrides)
        planned = plan_memory(resolved, model_shape(resolved), gpu_memory=24 * GIB).base
        assert found == pytest.approx(planned, rel=0.02), quantize


def all_tensors(base: torch.nn.Module) -> list[Tensor]:
    """Parameters, and of quantised ones the scales too; tied weights once."""
    tensors = {parameter.data_ptr(): parameter.data for parameter in base.parameters()}
    for parameter in base.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            for tensor in (state.absmax, state.state2.absmax):
                tensors[tensor.data_ptr()] = tensor
    return list(tensors.values())


def test_adapter_and_optimizer_are_counted_exactly() -> None:
    config = load_config([Path("configs/tiny_cpu.yaml")])
    shape = model_shape(config)
    policy = Policy.load(config.model, config.lora, device="cpu")
    assert shape.adapter_parameters == sum(parameter.numel() for parameter in policy.adapter.parameters)
    base = policy.model.get_base_model()
    others = sum(p.numel() for name, p in base.named_parameters() if "lora" not in name)
    assert shape.parameters == others


# ----- against an update without numbers


@pytest.mark.parametrize(
    ("num_layers", "num_tokens"),
    [(3, 32_768), pytest.param(28, 32_768, marks=pytest.mark.long)],
)
def test_forward_and_backward_take_what_is_planned(tmp_path: Path, num_layers: int, num_tokens: int) -> None:
    """The 7B shape under fake tensors, which have sizes and no numbers: the peak of what operations make."""
    from simulated_memory import update_peak

    sizes = QWEN_7B | {"num_hidden_layers": num_layers, "max_position_embeddings": 2 * num_tokens}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    config = config_for(tmp_path, "8xA100_lora.yaml", f"train.tokens_per_batch={num_tokens}")
    plan = plan_memory(config, model_shape(config), gpu_memory=80 * GIB)
    peak = update_peak(model_config(config.model), config.lora, num_tokens=num_tokens, chunk=CHUNK_ELEMENTS["cuda"])
    assert plan.passing == pytest.approx(peak, rel=0.05)


# ----- what the engine takes


def test_the_engine_has_slots_for_two_adapters_of_the_rank_that_it_rounds_up_to(model_7b: Path) -> None:
    def engine(*overrides: str) -> float:
        config = config_for(model_7b, "8xA100_lora.yaml", *overrides)
        return plan_memory(config, model_shape(config), gpu_memory=80 * GIB).engine_weights

    # inputs and outputs of q, k, v, o, gate, up, down in 28 layers
    width = 28 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    assert engine("lora.r=256") - engine("lora.r=64") == 2 * width * 192 * 2
    assert engine("lora.r=65") == engine("lora.r=128")
    assert engine("lora.target_modules=[q_proj]") == engine()  # vLLM makes room on all of them


def test_the_engines_nf4_has_a_float32_for_64_weights(model_7b: Path) -> None:
    plain, nf4 = (
        plan_memory(config, model_shape(config), gpu_memory=80 * GIB)
        for config in (config_for(model_7b, "1x24GB_qlora.yaml", f"model.quantize={kind}") for kind in ("none", "nf4"))
    )
    linear = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert plain.engine_weights - nf4.engine_weights == pytest.approx(linear * (2 - 0.5 - 4 / 64))
    assert plain.base - nf4.base == pytest.approx(linear * (2 - 0.5 - 1 / 64 - 4 / 64 / 256))


# ----- what it says


def test_the_shipped_configurations_fit_the_cards_they_are_named_after(model_7b: Path) -> None:
    cards = (("1x24GB_qlora.yaml", ("RTX 4090", "RTX 3090", "A10G", "L4")), ("8xA100_lora.yaml", ("A100",)))
    for name, gpu in ((name, gpu) for name, gpus in cards for gpu in gpus):
        config = config_for(model_7b, name)
        assert shortcoming(config, model_shape(config), gpu_memory=GPUS[gpu].memory) is None, (name, gpu)


@pytest.mark.parametrize(
    ("name", "memory", "overrides"),
    [
        ("8xA100_lora.yaml", 48, []),
        ("8xA100_lora.yaml", 24, []),
        ("1x24GB_qlora.yaml", 24, ["model.gradient_checkpointing=false"]),
        ("1x24GB_qlora.yaml", 24, ["rollout.colocate=false", "rollout.gpu_memory_fraction=0.6"]),
    ],
)
def test_the_advice_makes_it_fit_and_nothing_of_it_is_idle(
    model_7b: Path, name: str, memory: int, overrides: list[str]
) -> None:
    config = config_for(model_7b, name, *overrides)
    shape, size = model_shape(config), memory * GIB
    assert shortcoming(config, shape, gpu_memory=size) is not None
    advice = remedies(config, shape, gpu_memory=size)
    assert advice
    assert shortcoming(config_for(model_7b, name, *overrides, *advice), shape, gpu_memory=size) is None
    for left_out in advice:
        others = [option for option in advice if option != left_out]
        assert shortcoming(config_for(model_7b, name, *overrides, *others), shape, gpu_memory=size) is not None
    with pytest.raises(ConfigError, match=r"does not fit the GPU.*change .*train\.check_memory=false"):
        require_fits(config, shape, gpu_memory=size)


def test_what_nothing_helps_says_so(model_7b: Path) -> None:
    config = config_for(model_7b, "8xA100_lora.yaml")
    assert remedies(config, model_shape(config), gpu_memory=4 * GIB) == []
    report = memory_report(config, gpu_name=None, gpu_memory=4 * GIB, num_gpus=1)
    assert report.problem and "smaller model, larger GPUs or more of them" in report.cure


@pytest.mark.long
def test_more_of_everything_takes_more(model_7b: Path) -> None:
    def peak(*overrides: str) -> float:
        config = config_for(model_7b, "8xA100_lora.yaml", *overrides)
        return plan_memory(config, model_shape(config), gpu_memory=80 * GIB).during_update

    plain = peak()
    assert peak("model.gradient_checkpointing=false") > plain > peak("train.tokens_per_batch=16384")
    assert plain > peak("optim.name=adamw_8bit") and plain > peak("model.quantize=nf4")
    assert plain > peak("model.offload_activations=true") and plain < peak("rollout.colocate=false")


def test_a_sharded_base_takes_its_share_and_what_is_gathered(model_7b: Path) -> None:
    config = config_for(model_7b, "8xA100_lora.yaml", "rollout.engine=server", "rollout.servers=[http://host:8000]")
    shape = model_shape(config)
    whole = plan_memory(config, shape, gpu_memory=24 * GIB)
    quarter = plan_memory(config, shape, gpu_memory=24 * GIB, num_shards=4)
    assert quarter.base == whole.base / 4 and whole.gathered == 0
    embedding, layer = 152064 * 3584, (shape.parameters - 2 * 152064 * 3584) / 28
    assert quarter.gathered == pytest.approx(2 * (2 * embedding + 2 * layer), rel=1e-3)
    assert whole.during_update - quarter.during_update == pytest.approx(0.75 * whole.base - quarter.gathered)
    assert shortcoming(config, shape, gpu_memory=whole.during_update - GIB) is not None
    assert shortcoming(config, shape, gpu_memory=whole.during_update - GIB, num_shards=4) is None


def test_times_follow_the_roofline(model_7b: Path) -> None:
    config = config_for(model_7b, "8xA100_lora.yaml")
    shape = model_shape(config)
    slow, fast = (plan_time(config, shape, GPUS[name], num_gpus=8) for name in ("A100", "H100"))
    assert slow.update / fast.update == pytest.approx(989 / 312) and slow.rollouts > fast.rollouts
    rows = config_for(model_7b, "8xA100_lora.yaml", "model.layout=rows")
    tree, alone = (plan_time(each, shape, GPUS["A100"], num_gpus=8).num_tokens for each in (config, rows))
    prompts = config.rollout.num_problems * config.data.max_prompt_tokens
    assert alone - tree == prompts * (config.algorithm.group_size - 1)
    sft = load_config(
        [Path("configs/8xA100_lora.yaml"), Path("configs/algorithm/sft.yaml")], [f"model.name={model_7b}"]
    )
    assert plan_time(sft, shape, GPUS["A100"], num_gpus=8).rollouts == 0.0


@pytest.mark.long
def test_the_door(model_7b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "configs/1x24GB_qlora.yaml", f"model.name={model_7b}"]
    cli.plan([*arguments, "--gpu-memory", "24GB"])
    said = capsys.readouterr().out
    assert "KV cache" in said and said.rstrip().endswith("fits")
    step, hours = (
        re.search(pattern, said) for pattern in (r"at most (\d+) s of \D* (\d+) s", r"500 steps\) .* (\d+) hours?,")
    )
    assert step and hours and int(hours[1]) == pytest.approx(500 * (int(step[1]) + int(step[2])) / 3600, abs=1)
    for wrong, message in ((["--gpu-memory", "much"], "write 24GB"), (["--gpu", "A10O"], "known are H100 PCIe")):
        with pytest.raises(SystemExit):
            cli.plan([*arguments, *wrong])
        assert message in capsys.readouterr().err
    assert parse_memory("80") == 80 * GIB
    cli.plan([*arguments, "--gpu", "3090"])
    assert "1 x RTX 3090, 23.5 GiB;" in capsys.readouterr().out
    cli.plan([*arguments, "--gpu-memory", "24GB"])  # the least card that has as much printed on it, for the times
    assert "1 x A10G, 24.0 GiB (assumed" in capsys.readouterr().out


# ----- what the plan must not forget


def test_a_rollout_longer_than_a_batch_is_held_whole(model_7b: Path) -> None:
    """Batches are cut between rollouts only, so fewer tokens a batch than a rollout has change nothing."""
    config = config_for(model_7b, "1x24GB_qlora.yaml")
    one, other = (
        plan_memory(
            config_for(model_7b, "1x24GB_qlora.yaml", f"train.tokens_per_batch={n}"),
            model_shape(config),
            gpu_memory=24 * GIB,
        )
        for n in (64, config.longest_sequence)
    )
    assert one.passing == other.passing > 0


def test_every_engine_on_the_card_is_counted(model_7b: Path) -> None:
    shape = model_shape(config_for(model_7b, "8xA100_lora.yaml"))

    def engine(*overrides: str) -> float:
        sft = [str(Path("configs/algorithm/sft.yaml"))]
        config = load_config(["configs/8xA100_lora.yaml", *sft], [f"model.name={model_7b}", *overrides])
        return plan_memory(config, shape, gpu_memory=80 * GIB).engine_weights

    assert engine() == 0.0
    evaluated = ("eval.every=5", f"eval.data={__file__}")
    base = plan_memory(config_for(model_7b, "8xA100_lora.yaml"), shape, gpu_memory=80 * GIB).base
    assert engine(*evaluated) > base
    assert engine(*evaluated, "rollout.engine=transformers") == base


def test_remedies_go_past_options_that_would_starve_the_engine(model_7b: Path) -> None:
    """At 20 GiB a smaller share for the engine leaves its cache no room; offloading and 8-bit states do it."""
    config = config_for(model_7b, "1x24GB_qlora.yaml")
    found = remedies(config, model_shape(config), gpu_memory=20 * GIB)
    assert found and not any("gpu_memory_fraction" in option for option in found)


@pytest.mark.long
def test_a_base_for_several_cards_is_sent_to_several_cards(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64}
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B | sizes | {"num_key_value_heads": 8}))
    report = memory_report(config_for(tmp_path, "8xA100_lora.yaml"), gpu_name="a100", gpu_memory=None, num_gpus=8)
    assert report.problem and "its copy of the base takes" in report.problem
    assert "--sharded" in report.cure and "rollout.engine=server" in report.cure


@pytest.mark.parametrize(
    ("has_card", "reason"),
    [(True, "no card is named; name yours by --gpu"), (False, "there is no card here; name that of the run by --gpu")],
)
def test_a_tiny_model_takes_megabytes_on_a_card_that_is_said_to_be_assumed(
    has_card: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_card)
    config = load_config(["configs/tiny_cpu.yaml"])
    head, base, *others = memory_report(config, gpu_name=None, gpu_memory=None, num_gpus=1).lines
    assert head == f"each of 1 x RTX 4090, 23.5 GiB (assumed, because {reason}); estimates:"
    num = model_shape(config).parameters
    assert base.split() == ["base", f"{4 * num / 2**20:.2f}", "MiB", f"{num / 1e6:.2f}", "million", "parameters"]
    text = "\n".join(others)
    assert " 0.00 " not in text and " 0.0 " not in text and " 0 " not in text, text
    tokens = config.rollout.num_problems * (
        config.data.max_prompt_tokens + config.algorithm.group_size * config.rollout.max_response_tokens
    )
    assert f"({tokens:,} tokens in all of them together, prompts included)" in text
    step = plan_time(config, model_shape(config), GPUS["RTX 4090"], num_gpus=1)
    assert 40 * (step.rollouts + step.update) < 120
    assert re.search(r"the run \(40 steps\) takes at most \d+ seconds?,", text)


@pytest.mark.parametrize(("model_type", "num_tokens"), [("llama", 1024), ("stablelm", 80)])
def test_a_model_that_takes_rows_is_planned_for_one_rollout_at_a_time(
    model_type: str, num_tokens: int, tmp_path: Path
) -> None:
    config_of(model_type).save_pretrained(tmp_path)
    raw = {
        "model": {"name": str(tmp_path)},
        "data": {"max_prompt_tokens": 20},
        "rollout": {"max_response_tokens": 60},
        "train": {"tokens_per_batch": 1000},
    }
    lines = memory_report(validate(raw), gpu_name=None, gpu_memory=None, num_gpus=1).lines
    assert any(line.endswith(f"of {num_tokens} tokens a forward pass") for line in lines), lines


# ----- the head


def test_the_whole_logits_of_a_row_take_what_is_planned(tmp_path: Path) -> None:
    """A head with a bias is not computed in chunks of rows; its logits outweigh all else here."""
    from simulated_memory import Bytes

    PhiConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=30_000,
        max_position_embeddings=256,
    ).save_pretrained(tmp_path)
    config = load_config([Path("configs/tiny_cpu.yaml")], [f"model.name={tmp_path}", "model.layout=rows"])
    shape = model_shape(config)
    assert shape.has_head_bias and not model_shape(load_config([Path("configs/tiny_cpu.yaml")])).has_head_bias
    planned = plan_memory(config, shape, gpu_memory=24 * GIB).head / tokens_at_once(config)
    model = PhiForCausalLM(model_config(config.model))
    policy = Policy(model, config.lora, attention="sdpa", gradient_checkpointing=False, layout="rows")
    row = rollout([1], [], range(2, 202))
    batch = policy.prepare([Group((row,), (1.0,), (1.0,))])
    with Bytes(all_tensors(model)) as counted:
        chosen, _ = policy.token_logprobs(batch, temperature=1.0)
        chosen.sum().backward()
    assert counted.peak / 200 == pytest.approx(planned, rel=0.1)
