"""What can be trained in packed trees is decided before anything is loaded, of every architecture, by one message."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trapo_lite.config import Config, ModelSection
from trapo_lite.core.errors import ConfigError, ModelError
from trapo_lite.engines.transformers.cache import grouped_attention
from trapo_lite.model.base import model_config
from trapo_lite.model.packable import check_model
from trapo_lite.model.shape import ModelShape, meta_model
from trapo_lite.model.tree_attention import TreeLayout, packed_tree_attention

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FULL: dict[str, Any] = {"layer_types": ["full_attention"] * 2, "sliding_window": None}
ATTENTION_ONLY = ["q_proj", "k_proj", "v_proj", "o_proj"]


def config_of(model_type: str, **options: Any) -> PreTrainedConfig:
    return CONFIG_MAPPING[model_type](**{**SIZES, **options})


def checked(config: PreTrainedConfig, folder: Path, targets: str | list[str] = "all-linear", longest: int = 128) -> int:
    config.save_pretrained(folder)
    return check_model(
        Config.model_validate(
            {
                "model": {"name": str(folder)},
                "lora": {"target_modules": targets},
                "data": {"max_prompt_tokens": 28},
                "rollout": {"max_response_tokens": longest - 28},
            }
        )
    )


# ----- every architecture


CANNOT_BE_CONFIGURED = {"musicgen", "musicgen_melody"}


@pytest.mark.long  # a minute
@pytest.mark.parametrize("start", range(4))
def test_no_architecture_of_transformers_ends_in_a_traceback(start: int, tmp_path: Path) -> None:
    accepted = set()
    for model_type in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)[start::4]:
        for options in ({**SIZES, **FULL}, SIZES, {}):
            try:
                config = CONFIG_MAPPING[model_type](**options)
                break
            except Exception:
                continue
        else:
            assert model_type in CANNOT_BE_CONFIGURED
            continue
        try:
            checked(config, tmp_path / model_type)
            accepted.add(model_type)
        except (ConfigError, ModelError) as error:
            assert str(error).startswith(("model.", "lora.", "data.")) and "; " in str(error), error
    known = {"llama", "qwen2", "qwen3", "mistral", "phi3", "olmo2", "smollm3", "granitemoe", "jetmoe", "gpt_neox"}
    wrong = {"stablelm", "nemotron", "opt", "bloom", "rwkv", "xlstm", "doge", "biogpt"}
    wrong |= {"bart", "gpt2", "falcon", "gptj"}
    assert known & set(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)[start::4]) <= accepted
    assert not wrong & accepted


EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "options", "complaint"),
    [
        ("gpt_oss", {**FULL, **EXPERTS, "head_dim": 8}, r"GptOssForCausalLM: GptOssAttention attends with s_aux"),
        ("granite_swa", {**FULL, "logits_scaling": 1.0}, r"GraniteSWAForCausalLM: .* s_aux"),
        ("stablelm", {}, "StableLmForCausalLM: StableLmAttention is not given the tree's layout"),
        ("nemotron", {}, "NemotronAttention is not given the tree's layout"),
        ("doge", {**FULL}, "DogeAttention is given an attention_mask"),
        ("bert", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, r"bias|sees later tokens"),
        ("rwkv", {}, "takes no position_ids"),
        ("zamba2", FULL, "2 of its 2 layers have no attention that packed trees reach"),
        ("bloom", {}, r"BloomForCausalLM: its decoder takes no position_ids|no intermediate_size"),
        ("falcon", {}, r"models of type falcon choose among attention classes of their own|no intermediate_size"),
        ("gpt2", None, "gpt2 has no intermediate_size"),
        ("modernbert-decoder", {**FULL}, "ModernBertDecoderForCausalLM"),
        ("llama4_text", FULL, "Llama4ForCausalLM"),
        ("gemma3", None, "is a multimodal model"),
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
def test_random_numbers_in_the_forward_pass_are_refused(
    model_type: str, options: dict, keys: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, ModelError), match=f"{keys}.*: a shared token has one mask|no intermediate_size"):
        checked(config_of(model_type, **options), tmp_path, targets=ATTENTION_ONLY)


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
        {"s_aux": torch.zeros(4)},
        {"softcap": 30.0},
        {"position_bias": torch.zeros(1)},
        {"indices": torch.zeros(1)},
        {"sliding_window": 8},
        {"dropout": 0.1},
        {"is_causal": False},
        {"an_argument_of_next_year": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_argument_that_would_be_ignored_is_refused_by_name(options: dict[str, object]) -> None:
    layout = TreeLayout(lambda q, k, v, scaling: q)
    heads = torch.zeros(1, 4, 3, 8)
    [name] = options
    with pytest.raises(ModelError, match=f"Identity attends with {name}"):
        packed_tree_attention(
            torch.nn.Identity(), heads, heads, heads, None, scaling=1.0, tree_layout=layout, **options
        )
    if name not in ("sliding_window", "is_causal"):  # which the engine's masks hold
        with pytest.raises(ModelError, match=f"Identity attends with {name}"):
            grouped_attention(torch.nn.Identity(), heads[:, :, :1], heads, heads, None, scaling=1.0, **options)


def test_arguments_that_change_nothing_pass() -> None:
    layout = TreeLayout(lambda q, k, v, scaling: q)
    heads = torch.randn(1, 4, 3, 8)
    harmless = {"s_aux": None, "dropout": 0.0, "is_causal": True, "use_cache": False, "output_attentions": False}
    harmless |= {"position_ids": torch.arange(3), "sliding_window": None, "cache_position": torch.arange(3)}
    found, _ = packed_tree_attention(
        torch.nn.Identity(), heads, heads, heads, None, scaling=1.0, tree_layout=layout, **harmless
    )
    assert torch.equal(found, heads.transpose(1, 2))


# ----- RoPE that depends on the length


def longrope(original: int) -> dict[str, Any]:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    return {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": original, **factors}


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling", "type"])
def test_longrope_is_refused_past_its_original_length_only(spelling: str, tmp_path: Path) -> None:
    rope = longrope(200)
    if spelling == "type":
        rope["type"] = rope.pop("rope_type")
    field = "rope_parameters" if spelling == "rope_parameters" else "rope_scaling"
    config = config_of("phi3", **FULL, original_max_position_embeddings=200, **{field: rope})
    assert checked(config, tmp_path, longest=200) == 200
    with pytest.raises(ConfigError, match=r"201 tokens, but .* longrope, .* more than 200; lower them to that"):
        checked(config, tmp_path, longest=201)


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
