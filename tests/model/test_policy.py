"""The policy: one base, one adapter, the reference, and log-probs that are transformers' own."""

import importlib.util
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import random_rollouts, rollout, tiny_qwen2
from families import FAMILIES, write_model
from huggingface_hub import constants
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from trapo_lite.config import AlgorithmSection, LoraSection, ModelSection
from trapo_lite.core.algorithm import Algorithm, TokenLogprobs, count_normalizers, make_group, policy_loss
from trapo_lite.core.errors import ConfigError, ModelError
from trapo_lite.core.types import Group
from trapo_lite.model import policy as policy_module
from trapo_lite.model.base import check_weight_files, load_base, model_config
from trapo_lite.model.packable import require_packable
from trapo_lite.model.policy import Policy
from trapo_lite.model.positions import check_rope

LORA = LoraSection(r=2, alpha=4)
TRAPO = AlgorithmSection(entropy_weight=0.01, tis_cap=2.0).build()
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_qwen2().save_pretrained(folder)
    return folder


def load(folder: Path, lora: LoraSection = LORA, **section: object) -> Policy:
    torch.manual_seed(0)
    return Policy.load(ModelSection(name=str(folder), **{"dtype": "float32", **section}), lora, device="cpu")


def trained(policy: Policy, *, scale: float = 0.1) -> Policy:
    """The policy as if it had learnt something: no adapter tensor is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return policy


def plain_logprobs(folder: Path, token_ids: list[int], adapter: Path | None = None) -> list[float]:
    """transformers and peft, nothing of ours."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=torch.tensor([token_ids])).logits[0], dim=-1)
    return [logp[index, token].item() for index, token in enumerate(token_ids[1:])]


def group(seed: int = 0) -> Group:
    return make_group(TRAPO, random_rollouts(random.Random(seed)))


def gradient(policy: Policy, *groups: Group, algorithm: Algorithm = TRAPO) -> Tensor:
    batch = policy.prepare(groups)
    logprobs, entropy = policy.token_logprobs(batch, temperature=0.7)
    loss, _ = policy_loss(algorithm, TokenLogprobs(logprobs, entropy), batch, count_normalizers(algorithm, groups))
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, policy.adapter.parameters)])


# ----- the base, the adapter, the reference


@pytest.mark.slow
def test_score_is_transformers_own_with_the_adapter_applied(base_dir: Path, tmp_path: Path) -> None:
    policy = trained(load(base_dir))
    policy.adapter.save(tmp_path)
    expected = plain_logprobs(base_dir, TOKENS, tmp_path)
    assert policy.score(TOKENS) == pytest.approx(expected, abs=1e-5)
    assert policy.score(TOKENS) != pytest.approx(plain_logprobs(base_dir, TOKENS), abs=1e-2)


def test_a_fresh_adapter_changes_nothing(base_dir: Path) -> None:
    assert load(base_dir).score(TOKENS) == pytest.approx(plain_logprobs(base_dir, TOKENS), abs=1e-5)


@pytest.mark.slow
def test_the_reference_is_the_base_and_only_inside_its_block(base_dir: Path) -> None:
    policy = trained(load(base_dir))
    before = policy.score(TOKENS)
    with policy.reference():
        inside = policy.score(TOKENS)
    assert inside == pytest.approx(plain_logprobs(base_dir, TOKENS), abs=1e-5)
    assert policy.score(TOKENS) == before
    with pytest.raises(ZeroDivisionError), policy.reference():
        _ = 1 / 0
    assert policy.score(TOKENS) == before
    assert all(parameter.requires_grad for parameter in policy.adapter.parameters)


@pytest.mark.slow
def test_the_kl_term_is_zero_at_the_base_and_pulls_back_to_it(base_dir: Path) -> None:
    """k3 between policy and reference; with reward for nothing, its gradient is all there is."""
    algorithm = AlgorithmSection(kl_weight=1.0, prefix_loss="none").build()
    indifferent = make_group(algorithm, [rollout([1, 2], [], [3, 4, 5]), rollout([1, 2], [], [6, 7])])
    for policy, is_zero in ((load(base_dir), True), (trained(load(base_dir)), False)):
        batch = policy.prepare([indifferent])
        with torch.no_grad(), policy.reference():
            reference, _ = policy.token_logprobs(batch, temperature=0.7)
        logprobs, entropy = policy.token_logprobs(batch, temperature=0.7)
        normalizers = count_normalizers(algorithm, [indifferent])
        loss, _ = policy_loss(algorithm, TokenLogprobs(logprobs, entropy, reference), batch, normalizers)
        step = torch.autograd.grad(loss, policy.adapter.parameters)
        assert (loss.abs().item() < 1e-6) == is_zero
        assert all(grad.abs().max() < 1e-5 for grad in step) == is_zero


def test_temperature_divides_the_logits(base_dir: Path) -> None:
    policy = trained(load(base_dir))
    batch = policy.prepare([make_group(TRAPO, [rollout(TOKENS[:4], [], TOKENS[4:])])])
    with torch.no_grad():
        found, entropy = policy.token_logprobs(batch, temperature=0.5)
        policy.model.config._attn_implementation = "eager"
        logits = policy.model(input_ids=torch.tensor([TOKENS])).logits[0, 3:-1]
    logp = torch.log_softmax(logits / 0.5, dim=-1)
    torch.testing.assert_close(found, logp.gather(1, torch.tensor(TOKENS[4:])[:, None]).squeeze(1))
    torch.testing.assert_close(entropy, -(logp.exp() * logp).sum(-1))


@pytest.mark.slow
def test_only_the_adapter_is_trained_in_float32_and_in_a_fixed_order(base_dir: Path) -> None:
    policy = load(base_dir)
    names = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name for name in names)
    assert len(policy.adapter.parameters) == len(names) == 2 * 7 * 2  # two layers of seven linear modules, A and B
    assert {parameter.dtype for parameter in policy.adapter.parameters} == {torch.float32}
    assert [p.shape for p in policy.adapter.parameters] == [p.shape for p in load(base_dir).adapter.parameters]
    assert not any("lm_head" in name or "embed" in name for name in names)


@pytest.mark.slow
def test_the_fresh_adapter_is_a_function_of_torchs_seed(base_dir: Path) -> None:
    one, same = load(base_dir), load(base_dir)
    assert all(torch.equal(a, b) for a, b in zip(one.adapter.parameters, same.adapter.parameters, strict=True))
    torch.manual_seed(1)
    other = Policy.load(ModelSection(name=str(base_dir), dtype="float32"), LORA, device="cpu")
    assert not torch.equal(one.adapter.parameters[0], other.adapter.parameters[0])


# ----- saving and loading the adapter


@pytest.mark.slow
def test_the_adapters_state_travels_bit_for_bit(base_dir: Path) -> None:
    policy, other = trained(load(base_dir)), load(base_dir)
    state = {name: tensor.clone() for name, tensor in policy.adapter.state().items()}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    other.adapter.load_state(state)
    assert all(torch.equal(a, b) for a, b in zip(policy.adapter.parameters, other.adapter.parameters, strict=True))
    assert other.score(TOKENS) == policy.score(TOKENS)


@pytest.mark.slow
def test_a_state_of_another_adapter_is_refused(base_dir: Path) -> None:
    policy = load(base_dir)
    state = dict(policy.adapter.state())
    before = {name: tensor.clone() for name, tensor in state.items()}
    first = sorted(state)[0]
    for wrong, complaint in (
        ({name: tensor for name, tensor in state.items() if name != first}, "1 of 28 tensors are missing"),
        ({**state, "base_model.model.more.weight": torch.zeros(2)}, "1 tensors have no place in the model"),
        (load(base_dir, LoraSection(r=3, alpha=4)).adapter.state(), "28 tensors have another shape"),
    ):
        with pytest.raises(ModelError, match=complaint):
            policy.adapter.load_state(wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.adapter.state().items())


# ----- kinds of base


@pytest.mark.slow
def test_tied_embeddings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=64, num_hidden_layers=2, tie_word_embeddings=True, initializer_range=0.2, **sizes)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    policy = trained(load(tmp_path))
    policy.adapter.save(tmp_path / "adapter")
    assert policy.score(TOKENS) == pytest.approx(plain_logprobs(tmp_path, TOKENS, tmp_path / "adapter"), abs=1e-5)


@pytest.mark.slow
def test_a_bf16_base_trains_float32_weights_under_autocast(base_dir: Path) -> None:
    exact, half = trained(load(base_dir)), trained(load(base_dir, dtype="bfloat16"))
    assert half.model.get_base_model().dtype == torch.bfloat16
    assert half.score(TOKENS) == pytest.approx(exact.score(TOKENS), abs=0.1)  # bf16 keeps 8 bits
    seen: set[torch.dtype] = set()
    for name, module in half.model.named_modules():
        if name.endswith(("lora_A.default", "lora_B.default")):
            module.register_forward_hook(lambda *call: seen.add(call[-1].dtype))
    expected, found = gradient(exact, group()), gradient(half, group())
    assert found.dtype == torch.float32
    assert seen == {torch.bfloat16}  # the adapter acts in bf16, as in the engine
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.98


@pytest.mark.slow
def test_inputs_of_adapters_stay_bfloat16_under_autocast(base_dir: Path) -> None:
    """No float32 copy of any of them; log-probs and gradient are, bit for bit, those with PEFT's copies."""
    from peft.tuners.lora import LoraLayer

    policy = trained(load(base_dir, dtype="bfloat16"))
    layers = [module for module in policy.model.modules() if isinstance(module, LoraLayer)]
    seen: set[torch.dtype] = set()
    for layer in layers:
        layer.lora_A["default"].register_forward_pre_hook(lambda _module, inputs: seen.add(inputs[0].dtype))
    results = []
    for is_cast in (False, True):
        if is_cast:  # as PEFT does it by itself
            assert seen == {torch.bfloat16}
            for layer in layers:
                layer.cast_input_dtype_enabled = True
        batch = policy.prepare([group()])
        logprobs, _ = policy.token_logprobs(batch, temperature=0.7)
        results.append((logprobs, gradient(policy, group())))
    assert len(layers) == 2 * 7 and torch.float32 in seen
    assert all(torch.equal(ours, pefts) for ours, pefts in zip(*results, strict=True))
    assert results[0][1].any()


@pytest.mark.slow
def test_a_batch_for_flex_attention_is_packed_once(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To one of a few lengths: the least of 1024, 1280, 1536, 1792, 2048, 2560, ... that holds it."""
    policy = load(base_dir)
    policy._uses_flex = True
    paddings: list[int] = []
    pack = policy_module.pack

    def watched(groups: list[Group], *, pad_to: int):
        paddings.append(pad_to)
        return pack(groups, pad_to=pad_to)

    monkeypatch.setattr(policy_module, "pack", watched)
    row = make_group(TRAPO, [rollout([1] * 100, [], [2] * 400)])
    for groups, length in (([], 1024), ([group()], 1024), ([row] * 3, 1536), ([row] * 5, 2560)):
        assert policy.prepare(groups).num_tokens == length
    assert paddings == [1024, 1024, 1536, 2560]


def test_a_base_goes_straight_to_a_gpu(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by way of the host's memory, where every rank would hold all of it; sharded, it is loaded there."""
    asked: list[object] = []

    class Loaded(Exception):
        pass

    def loading(_name: str, **options: object) -> None:
        asked.append(options.get("device_map"))
        raise Loaded

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loading)
    section = ModelSection(name=str(base_dir), dtype="bfloat16")
    for device, on_one_rank in (("cuda:1", False), ("cpu", True), ("cpu", False)):
        with pytest.raises(Loaded):
            load_base(section, device=device, attention="sdpa", on_one_rank=on_one_rank)
    assert asked == [{"": torch.device("cuda:1")}, None, None]


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.mark.slow
@needs_bitsandbytes
def test_an_nf4_base_trains_as_its_dequantised_weights_would(base_dir: Path, tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    policy = trained(load(base_dir, quantize="nf4"))
    plain = tiny_qwen2()
    num_quantised = 0
    for name, module in policy.model.get_base_model().named_modules():
        if name.endswith(".base_layer"):
            assert type(module).__name__ == "Linear4bit"
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name.removesuffix(".base_layer")).weight.data = weight
            num_quantised += 1
    assert num_quantised == 2 * 7  # every linear module of the decoder, not the head
    plain.save_pretrained(tmp_path)
    dequantised = trained(load(tmp_path))
    assert policy.score(TOKENS) == pytest.approx(dequantised.score(TOKENS), abs=1e-4)
    found, expected = gradient(policy, group()), gradient(dequantised, group())
    assert (found - expected).norm() / expected.norm() < 1e-3  # bitsandbytes' own matrix products
    assert not torch.allclose(expected, gradient(trained(load(base_dir)), group()), rtol=0.1)


@pytest.mark.slow
@needs_bitsandbytes
def test_an_nf4_base_in_bf16_trains_and_is_its_own_reference(base_dir: Path) -> None:
    policy = trained(load(base_dir, quantize="nf4", dtype="bfloat16"))
    found = gradient(policy, group())
    assert found.dtype == torch.float32 and found.isfinite().all() and found.any()
    with policy.reference():
        reference = policy.score(TOKENS)
    fresh = load(base_dir, quantize="nf4", dtype="bfloat16").score(TOKENS)
    assert reference == pytest.approx(fresh, abs=1e-6)
    assert policy.score(TOKENS) != pytest.approx(reference, abs=1e-2)


@pytest.mark.slow
def test_checkpointed_activations_give_the_same_gradient(base_dir: Path) -> None:
    plain, checkpointed = (trained(load(base_dir, gradient_checkpointing=on)) for on in (False, True))
    torch.testing.assert_close(gradient(checkpointed, group()), gradient(plain, group()))


@pytest.mark.slow
def test_checkpointing_is_on_when_asked_for(base_dir: Path) -> None:
    """The decoder layers run twice: forward, and again in backward."""
    calls: list[bool] = []
    for on in (False, True):
        policy = load(base_dir, gradient_checkpointing=on)
        layer = policy.model.get_base_model().model.layers[0]
        layer.mlp.register_forward_pre_hook(lambda *_, on=on: calls.append(on))
        gradient(policy, group())
    assert calls == [False, True, True]


@pytest.mark.slow
def test_config_overrides_act(base_dir: Path) -> None:
    """rope_theta acts only inside rope_parameters; the base's is 10000."""
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 40.0}}
    base, changed = load(base_dir), load(base_dir, config_overrides=rope)
    frequencies = changed.model.get_base_model().model.rotary_emb.inv_freq
    head_size = 8
    torch.testing.assert_close(frequencies, 40.0 ** -(torch.arange(0, head_size, 2) / head_size))
    assert changed.score(TOKENS) != pytest.approx(base.score(TOKENS), abs=1e-3)


# ----- what it refuses


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"rope_theta": 40000}, "rope_parameters: {rope_type: default, rope_theta: 40000}"),
        ({"max_position_embedings": 16384}, "max_position_embedings: .* has no such field"),
    ],
)
def test_wrong_overrides_are_refused(base_dir: Path, overrides: dict, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        model_config(ModelSection(name=str(base_dir), config_overrides=overrides))


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


def test_an_output_layer_with_a_bias_takes_rows(tmp_path: Path) -> None:
    PhiForCausalLM(PhiConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its output layer has a bias"):
        load(tmp_path, layout="tree")
    assert load(tmp_path).layout == "rows"


def test_a_sliding_window_that_is_off_is_no_reason_to_refuse(tmp_path: Path) -> None:
    for config in (MistralConfig(**SIZES, sliding_window=None), Qwen2Config(**SIZES, sliding_window=8)):
        config.save_pretrained(tmp_path)
        assert model_config(ModelSection(name=str(tmp_path))).vocab_size == 64


def test_a_model_of_the_hub_that_cannot_be_had_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"^model\.name: cannot read 'no/such': [^\n]*[^.\n]; give a model folder or hub id$"
    ):
        model_config(ModelSection(name="no/such"))


def test_a_missing_model_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.name: cannot read .*nothing-here"):
        model_config(ModelSection(name=str(tmp_path / "nothing-here")))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000])
def test_a_damaged_model_folder_is_one_clear_error(base_dir: Path, tmp_path: Path, name: str, content: str) -> None:
    shutil.copytree(base_dir, tmp_path / "base")
    (tmp_path / "base" / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"model.name: .*{name} is damaged"):
        model_config(ModelSection(name=str(tmp_path / "base")))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "it holds no weights"),
        (lambda file: file.write_bytes(file.read_bytes()[:700]), "is damaged"),  # within the header
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is damaged"),
    ],
    ids=["missing", "header", "cut"],
)
def test_missing_or_damaged_weights_are_an_error_before_an_engine_starts(
    base_dir: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(base_dir, tmp_path / "base")
    check_weight_files(str(tmp_path / "base"))
    damage(tmp_path / "base" / "model.safetensors")
    with pytest.raises(ModelError, match=rf"model.name: .*{message}"):
        check_weight_files(str(tmp_path / "base"))


@pytest.mark.parametrize(
    ("overrides", "weight"),
    [
        ({"num_hidden_layers": 3}, r"transformers cannot load .* \(IndexError"),  # it has two layer_types
        (
            {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
            r"lack 12 weights, .*layers\.2\.input_layernorm",
        ),
        ({"intermediate_size": 40}, r"lack 6 weights, .*layers\.0\.mlp\.down_proj"),
    ],
    ids=["layer_types", "missing", "shape"],
)
def test_weights_that_the_files_lack_are_not_drawn_at_random(base_dir: Path, overrides: dict, weight: str) -> None:
    """A third layer: q, k, v with biases, o, gate, up, down and two norms. A narrower MLP: three matrices a layer."""
    section = ModelSection(name=str(base_dir), dtype="float32", config_overrides=overrides)
    with pytest.raises(ModelError, match=weight):
        load_base(section, device="cpu", attention="sdpa")


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": "abc"}, {"num_attention_heads": 0}, {"hidden_act": "nope"}, {"dtype": "float99"}],
    ids=lambda change: next(iter(change)),
)
def test_a_config_that_describes_no_model_is_one_clear_error(base_dir: Path, tmp_path: Path, change: dict) -> None:
    shutil.copytree(base_dir, tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=r"model\.name: "):
        require_packable(model_config(ModelSection(name=str(tmp_path / "base"))))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"r": 3}, "lora.r: 2, but the adapter .* has 3"),
        ({"lora_alpha": 9}, "lora.alpha: 4.0, but the adapter .* has 9"),
    ],
)
def test_an_adapter_of_another_rank_or_alpha_is_no_start(
    base_dir: Path, tmp_path: Path, change: dict, complaint: str
) -> None:
    load(base_dir).adapter.save(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError, match=complaint):
        load(base_dir, LoraSection(r=2, alpha=4, init_from=str(tmp_path)))


@pytest.mark.parametrize("original", [24, 512])
def test_a_row_too_long_for_the_frequencies_of_the_others_is_not_packed(original: int) -> None:
    """Llama with longrope: past its original length all rows of a batch would be turned by other frequencies."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = LlamaConfig(
        **sizes,
        num_attention_heads=4,
        max_position_embeddings=512,
        rope_parameters={**rope, "original_max_position_embeddings": original},
    )
    policy = Policy(LlamaForCausalLM(config), LORA, attention="sdpa", gradient_checkpointing=False)
    policy.prepare([Group((rollout([1] * 12, [], [2] * 12),), (1.0,), (0.0,))])
    longer = Group((rollout([1] * 12, [], [2] * 13),), (1.0,), (0.0,))
    if original == 24:
        with pytest.raises(ConfigError, match=r"25 tokens, but .* longrope, .* more than 24"):
            policy.prepare([longer])
    else:
        policy.prepare([longer])


def test_flex_attention_is_refused_on_the_cpu(base_dir: Path) -> None:
    with pytest.raises(ConfigError, match="FlexAttention has no backward pass on the CPU"):
        load(base_dir, attention="flex")


@pytest.mark.slow
def test_log_probs_are_log_probs(base_dir: Path) -> None:
    """Over the whole vocabulary they sum to one: every token as the only continuation of one prompt."""
    policy = trained(load(base_dir))
    every = [rollout([1, 2, 3], [], [token], slot=token) for token in range(64)]
    batch = policy.prepare([make_group(TRAPO, every)])
    with torch.no_grad():
        logprobs, entropy = policy.token_logprobs(batch, temperature=0.9)
    assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert entropy.unique().numel() == 1 or (entropy.max() - entropy.min()) < 1e-5
    assert 0 < entropy[0] < math.log(64)


def test_rope_overrides_must_reach_the_rotary_embeddings(base_dir: Path) -> None:
    section = ModelSection(
        name=str(base_dir),
        dtype="float32",
        config_overrides={"rope_parameters": {"rope_type": "default", "rope_theta": 40000.0}},
    )
    base = load_base(section, device="cpu", attention="sdpa")
    check_rope(base, section)
    unchanged = load_base(section.model_copy(update={"config_overrides": {}}), device="cpu", attention="sdpa")
    with pytest.raises(ModelError, match=r"theta 40000\.0 did not reach"):
        check_rope(unchanged, section)


@pytest.mark.slow
def test_rope_overrides_must_reach_every_layer_that_has_its_own(tmp_path: Path) -> None:
    base = write_model(FAMILIES["recurrent gemma, RG-LRU"], tmp_path / "model")
    rope = {"rope_type": "default", "rope_theta": 40000.0}
    section = ModelSection(name=str(base), dtype="float32", config_overrides={"rope_parameters": rope})
    check_rope(load_base(section, device="cpu", attention=None), section)
    unchanged = load_base(section.model_copy(update={"config_overrides": {}}), device="cpu", attention=None)
    with pytest.raises(ModelError, match=r"theta 40000\.0 did not reach"):
        check_rope(unchanged, section)
