"""What can be trained in packed trees is decided before anything is loaded, of every architecture, by one message."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import TINY_SIZES, config_of, longrope
from families import FAMILIES
from tiny_runs import SFT
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trapo_lite.config import Config, ModelSection
from trapo_lite.core.errors import ConfigError, ModelError
from trapo_lite.engines.transformers.cache import grouped_attention
from trapo_lite.model.base import model_config, model_lines, with_one_rope
from trapo_lite.model.layout import check_model, require_rows
from trapo_lite.model.logprobs import LogitScale
from trapo_lite.model.packable import check_targets, logit_scale_of
from trapo_lite.model.shape import ModelShape, meta_model
from trapo_lite.model.tree_attention import TreeLayout, packed_tree_attention

FULL: dict[str, Any] = {"layer_types": ["full_attention"] * 2, "sliding_window": None}
ATTENTION_ONLY = ["q_proj", "k_proj", "v_proj", "o_proj"]


def checked(
    config: PreTrainedConfig,
    folder: Path,
    targets: str | list[str] = "all-linear",
    longest: int = 128,
    layout: str = "tree",
    **options: Any,
) -> int:
    """Check a model; return the longest sequence that it was checked for."""
    config.save_pretrained(folder)
    raw = {
        "model": {"name": str(folder), "layout": layout},
        "lora": {"target_modules": targets},
        "data": {"max_prompt_tokens": 28},
        "rollout": {"max_response_tokens": longest - 28},
        **options,
    }
    config = Config.model_validate(raw)
    config, _ = with_one_rope(config, max_model_len=config.max_model_len)
    check_model(config)
    return config.longest_sequence


# ----- every architecture


CANNOT_BE_CONFIGURED = {"musicgen", "musicgen_melody"}


@pytest.mark.long  # a minute
@pytest.mark.parametrize("start", range(4))
def test_no_architecture_of_transformers_ends_in_a_traceback(start: int, tmp_path: Path) -> None:
    accepted: dict[str, set[str]] = {"tree": set(), "auto": set()}
    for model_type in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)[start::4]:
        for options in ({**TINY_SIZES, **FULL}, TINY_SIZES, {}):
            try:
                config = CONFIG_MAPPING[model_type](**options)
                break
            except Exception:
                continue
        else:
            assert model_type in CANNOT_BE_CONFIGURED
            continue
        for layout, taken in accepted.items():
            try:
                checked(config, tmp_path / model_type, layout=layout)
                taken.add(model_type)
            except (ConfigError, ModelError) as error:
                assert str(error).startswith(("model.", "lora.", "data.")) and "; " in str(error), error
    known = {"llama", "qwen2", "qwen3", "mistral", "phi3", "olmo2", "smollm3", "granitemoe", "jetmoe", "gpt_neox"}
    wrong = {"stablelm", "nemotron", "bloom", "rwkv", "xlstm", "doge", "biogpt"}
    wrong |= {"bart", "gpt2", "falcon", "gptj"}
    mine = set(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)[start::4])
    assert known & mine <= accepted["tree"] <= accepted["auto"]
    assert not wrong & accepted["tree"], wrong & accepted["tree"]
    assert wrong & mine - {"gpt2"} <= accepted["auto"]  # GPT-2 has no linear layers, but its own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2}),
        ("mamba2", {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8}),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
        ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}),
        ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2}),
        ("xlstm", {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2}),
    ],
)
def test_a_configuration_need_not_name_positions_and_heads(model_type: str, options: dict, tmp_path: Path) -> None:
    config = CONFIG_MAPPING[model_type](vocab_size=64, **options)
    assert not all(hasattr(config, name) for name in ("max_position_embeddings", "num_attention_heads"))
    targets: str | list[str] = ["in_proj"] if "mamba" in model_type else "all-linear"
    assert checked(config, tmp_path, layout="auto", targets=targets) == 128


EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "options", "complaint"),
    [
        (
            "llama",
            {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
            "1 of its layers have a sliding window, but 0 tell attention of it",
        ),
        ("stablelm", {}, "StableLmForCausalLM: StableLmAttention is not given the tree's layout"),
        ("nemotron", {}, "NemotronAttention is not given the tree's layout"),
        ("doge", {**FULL}, "DogeAttention is given an attention_mask"),
        ("bert", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, r"bias|sees later tokens"),
        ("rwkv", {}, "takes no position_ids"),
        ("jamba", {}, "layers have no attention and no recurrence that packed trees reach"),
        ("kimi_linear", {}, "layers have no attention and no recurrence that packed trees reach"),
        ("bloom", {}, "BloomForCausalLM: its decoder takes no position_ids"),
        ("falcon", {}, "models of type falcon choose among attention classes of their own"),
        ("gpt2", None, "what GPT2LMHeadModel does to its logits cannot be found"),
        ("modernbert-decoder", {**FULL}, "ModernBertDecoderForCausalLM"),
        ("llama4_text", FULL, "Llama4ForCausalLM"),
        ("qwen3_vl", None, "is a multimodal model"),
        ("phi4_multimodal", {}, "is a multimodal model"),
    ],
)
def test_decoders_that_cannot_be_packed_are_refused_with_a_reason(
    model_type: str, options: dict | None, complaint: str, tmp_path: Path
) -> None:
    config = CONFIG_MAPPING[model_type]() if options is None else config_of(model_type, **options)
    with pytest.raises(ModelError, match=complaint):
        checked(config, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "options", "keys"),
    [
        ("qwen2", {"attention_dropout": 0.1}, "attention_dropout"),
        ("phimoe", {**EXPERTS, **FULL, "router_jitter_noise": 0.01}, "router_jitter_noise"),
        ("opt", {"ffn_dim": 48, "dropout": 0.1, "word_embed_proj_dim": 32}, "dropout"),
    ],
)
def test_random_numbers_in_the_forward_pass_are_turned_off_with_a_line(
    model_type: str, options: dict, keys: str, tmp_path: Path
) -> None:
    config_of(model_type, **options).save_pretrained(tmp_path)
    section = ModelSection(name=str(tmp_path))
    [line] = model_lines(section)
    assert f"{keys}: set to 0" in line
    assert getattr(model_config(section), keys) == 0.0
    assert model_lines(section.model_copy(update={"config_overrides": {keys: 0.0}})) == []
    config_of("llama").save_pretrained(tmp_path)
    assert model_lines(section) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {}),
        ("llama", {"head_dim": 16, "attention_bias": True}),
        ("qwen3", {"head_dim": 8}),
        ("phi3", {**FULL}),
        ("smollm3", {**FULL}),
        ("gemma3_text", {**FULL, "head_dim": 8}),
        ("gpt_neox", {}),
        ("diffllama", {}),
        ("qwen3_moe", {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}),
        ("granitemoe", {**EXPERTS, "logits_scaling": 1.0}),
        ("jetmoe", {**EXPERTS, "kv_channels": 8}),
    ],
)
def test_what_is_computed_right_is_let_through(model_type: str, options: dict, tmp_path: Path) -> None:
    targets = ATTENTION_ONLY if model_type == "qwen3_moe" else "all-linear"
    assert checked(config_of(model_type, **options), tmp_path, targets=targets) == 128


# ----- the arguments of attention


@pytest.mark.parametrize(
    "options",
    [
        {"position_bias": torch.zeros(1)},
        {"indices": torch.zeros(1)},
        {"dropout": 0.1},
        {"is_causal": False},
        {"an_argument_of_next_year": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_argument_that_would_be_ignored_is_refused_by_name(options: dict[str, object]) -> None:
    layout = TreeLayout(lambda q, k, v, scores: q)
    heads = torch.zeros(1, 4, 3, 8)
    [name] = options
    with pytest.raises(ModelError, match=f"Identity attends with {name}"):
        packed_tree_attention(
            torch.nn.Identity(), heads, heads, heads, None, scaling=1.0, tree_layout=layout, **options
        )
    if name != "is_causal":  # which SDPA takes
        with pytest.raises(ModelError, match=f"Identity attends with {name}"):
            grouped_attention(torch.nn.Identity(), heads[:, :, :1], heads, heads, None, scaling=1.0, **options)


def test_arguments_that_change_nothing_pass() -> None:
    layout = TreeLayout(lambda q, k, v, scores: q)
    heads = torch.randn(1, 4, 3, 8)
    harmless = {"s_aux": None, "dropout": 0.0, "is_causal": True, "use_cache": False, "output_attentions": False}
    harmless |= {"position_ids": torch.arange(3), "sliding_window": None, "cache_position": torch.arange(3)}
    found, _ = packed_tree_attention(
        torch.nn.Identity(), heads, heads, heads, None, scaling=1.0, tree_layout=layout, **harmless
    )
    assert torch.equal(found, heads.transpose(1, 2))


# ----- RoPE that depends on the length


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling", "type"])
def test_longrope_without_rollouts_is_packed_up_to_its_original_length(spelling: str, tmp_path: Path) -> None:
    rope = longrope(200)
    if spelling == "type":
        rope["type"] = rope.pop("rope_type")
    field = "rope_parameters" if spelling == "rope_parameters" else "rope_scaling"
    config = config_of("phi3", **FULL, original_max_position_embeddings=200, **{field: rope})
    assert checked(config, tmp_path, longest=200, algorithm=SFT) == 200
    with pytest.raises(ConfigError, match=r"201 tokens, but .* longrope, .* more than 200; lower them to that"):
        checked(config, tmp_path, longest=201, algorithm=SFT)
    assert checked(config, tmp_path, longest=201) == 201  # the engine has one RoPE for every length


def test_dynamic_rope_is_refused_where_it_would_act(tmp_path: Path) -> None:
    config = config_of("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    assert checked(config, tmp_path, longest=512) == 512
    with pytest.raises(ConfigError, match=r"513 tokens, but .* dynamic, .* more than 512"):
        checked(config, tmp_path, longest=513)


# ----- what PEFT adapts


MOE = {"head_dim": 32, "num_experts": 8, "moe_intermediate_size": 32, "num_experts_per_tok": 2}


def test_adapters_on_fused_experts_and_routers_are_counted() -> None:
    """Qwen3-MoE, hidden 64, 2 layers, r 4. What PEFT adapts: q, o: 64 x 128; k, v: 64 x 64; the router: 64 x 8 in and
    out, by 4; each of 8 experts: gate and up fused, 64 x 64, by rank 8, and down, 32 x 64, by 4.
    """
    config = config_of("qwen3_moe", hidden_size=64, intermediate_size=96, vocab_size=80, **MOE)
    attention = 2 * 4 * (64 + 128) + 2 * 4 * (64 + 64)
    router = 4 * (64 + 8)
    experts = 8 * (8 * (64 + 2 * 32) + 4 * (32 + 64))
    assert 2 * (attention + router + experts) == 28_224
    assert ModelShape.of(config, rank=4, targets="all-linear").adapter_parameters == 28_224
    assert ModelShape.of(config, rank=4, targets=ATTENTION_ONLY).adapter_parameters == 2 * attention


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "olmoe"])
def test_all_linear_on_fused_experts_is_refused_with_the_targets_to_take(model_type: str, tmp_path: Path) -> None:
    options = {"num_local_experts": 8} if model_type == "mixtral" else {**MOE, "head_dim": 8}
    config = config_of(model_type, **options, **FULL)
    with pytest.raises(ConfigError, match=r"mlp\.experts, mlp\.gate.*set it to \[k_proj, o_proj, q_proj, v_proj\]"):
        checked(config, tmp_path)
    assert checked(config, tmp_path, targets=ATTENTION_ONLY) == 128


def test_an_adapter_on_a_layer_that_is_never_called_is_refused() -> None:
    """Mamba multiplies by the weight of dt_proj itself."""
    config = config_of("mamba")
    with pytest.raises(ConfigError, match=r"weights of dt_proj without calling.*set it to \[in_proj, x_proj\]"):
        check_targets(require_rows(config), ["in_proj", "x_proj", "dt_proj"])
    check_targets(require_rows(config), ["in_proj", "x_proj"])


def test_counting_draws_no_random_numbers_and_changes_no_configuration() -> None:
    """A fresh adapter is a function of torch's seed, and the base keeps its attention."""
    config = config_of("llama", attn_implementation="packed_tree")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    ModelShape.of(config, rank=4, targets="all-linear")
    assert torch.equal(torch.rand(1), expected) and config._attn_implementation == "packed_tree"


@pytest.mark.slow
def test_a_name_that_peft_takes_for_one_of_fused_experts_is_refused(tmp_path: Path) -> None:
    options = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    options |= {"n_routed_experts": 4, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    options |= {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "num_key_value_heads": 4}
    config = config_of("deepseek_v3", **options)
    with pytest.raises((ConfigError, ModelError), match=r"lora\.target_modules"):
        checked(config, tmp_path, targets=["gate_proj", "up_proj", "down_proj"])
    assert checked(config, tmp_path, targets=["q_b_proj", "kv_b_proj", "o_proj"]) == 128


@pytest.mark.slow
def test_a_configuration_that_no_class_takes_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 31, "num_attention_heads": 4}')
    with pytest.raises(ModelError, match=r"model\.name"):
        check_model(Config.model_validate({"model": {"name": str(tmp_path)}}))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match=r"model\.name"):
        meta_model(model_config(ModelSection(name=str(tmp_path))))


THETA = {"config_overrides": {"rope_parameters": {"rope_type": "default", "rope_theta": 40000.0}}}


def check_family(name: str, folder: Path, **model: Any) -> None:
    family = FAMILIES[name]
    config = config_of(family.model_type, num_hidden_layers=4, **family.options)
    checked(config, folder, targets=["q_proj", "v_proj"], model={"name": str(folder), **model})


@pytest.mark.parametrize("name", ["gemma3, windows", "olmo3, windows", "gemma4, windows and shared keys"])
def test_rope_of_all_layers_for_a_class_with_rope_of_each_type_names_its_form(name: str, tmp_path: Path) -> None:
    form = r"{sliding_attention: {rope_type: \.\.\., rope_theta: \.\.\.}, full_attention: {[^{}]*}}"
    message = rf"rope_parameters: models of type {name[:5]}.* without full_attention; write rope_parameters: {form}$"
    with pytest.raises(ModelError, match=message):
        check_family(name, tmp_path, **THETA)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["granite 4 h without experts, Mamba-2", "zamba2, Mamba-2"])
def test_rope_overrides_of_a_model_without_rope_are_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.config_overrides\.rope_parameters: would have no effect.*; remove"):
        check_family(name, tmp_path, **THETA)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recurrent gemma, RG-LRU", "lfm2 with experts, short convolutions"])
def test_rope_is_found_under_any_name(name: str, tmp_path: Path) -> None:
    check_family(name, tmp_path, **THETA)


# ----- what a class does to its logits


@pytest.mark.parametrize(
    ("model_type", "options", "expected"),
    [
        ("llama", {"final_logit_softcapping": 30.0}, LogitScale()),  # the class does not read it
        ("granite", {"logits_scaling": 8.0}, LogitScale(1 / 8)),
        ("hyperclovax", {"logits_scaling": 8.0}, LogitScale(8.0)),
        ("cohere", {"logit_scale": 0.25}, LogitScale(0.25)),
        ("gemma2", {"final_logit_softcapping": 30.0, "head_dim": 8}, LogitScale(1.0, 30.0)),
    ],
)
def test_the_factor_and_the_cap_of_logits_are_read_from_the_class(
    model_type: str, options: dict[str, Any], expected: LogitScale
) -> None:
    model = meta_model(config_of(model_type, **options))
    found = logit_scale_of(model)
    assert found.factor == pytest.approx(expected.factor, rel=1e-5)
    assert found.softcap == (None if expected.softcap is None else pytest.approx(expected.softcap, rel=1e-5))
    head = model.get_output_embeddings()
    assert head is not None and "forward" not in vars(head) and "forward" not in vars(model.get_decoder())
    hook = vars(head)["forward"] = lambda *_: None
    logit_scale_of(model)
    assert vars(head)["forward"] is hook


def test_logits_that_are_changed_in_another_way_are_refused() -> None:
    model = meta_model(config_of("llama"))
    forward = type(model).forward

    def squared(self, *args: Any, **options: Any) -> Any:
        output = forward(self, *args, **options)
        output.logits = output.logits**2
        return output

    type(model).forward = squared  # type: ignore[method-assign]
    try:
        with pytest.raises(ModelError, match="LlamaForCausalLM does more to its logits than a factor and a softcap"):
            logit_scale_of(model)
    finally:
        type(model).forward = forward  # type: ignore[method-assign]
