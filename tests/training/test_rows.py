"""Rollouts as rows: the same step as by packed trees, and what is checked in the first step."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import config_of, longrope, random_rollouts, tiny_qwen2, trained_policy
from tiny_runs import SFT, data_file, make_config, model_dir
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from trapo_lite.config import AlgorithmSection, LoraSection, validate
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.batching import cut
from trapo_lite.core.errors import ConfigError, ModelError, PackingError
from trapo_lite.core.types import Group, Mean
from trapo_lite.model import tree_attention
from trapo_lite.model.layout import check_model
from trapo_lite.model.policy import Policy
from trapo_lite.run.processes import Ranks
from trapo_lite.training.packing_check import check_rows
from trapo_lite.training.trainer import train
from trapo_lite.training.update import Updater

TRAPO = AlgorithmSection(entropy_weight=0.01, kl_weight=0.01, tis_cap=2.0).build()


def some_groups() -> list[Group]:
    return [make_group(TRAPO, random_rollouts(random.Random(i), problem_id=str(i))) for i in range(3)]


def update(policy: Policy, layout: str = "auto", **train: Any) -> tuple[dict[str, Any], torch.Tensor, list[str]]:
    """Make one step; return its metrics, the weights after it, and the lines for the user."""
    lines: list[str] = []
    config = validate(
        {
            "model": {"layout": layout},
            "optim": {"lr": 1e-2, "name": "sgd", "updates_per_batch": 2},
            "train": {"max_steps": 10, "tokens_per_batch": 10_000, **train},
            "data": {"max_prompt_tokens": 20},
            "rollout": {"max_response_tokens": 60},
        }
    )
    metrics = Updater(config, policy, lambda step: TRAPO, Ranks(), announce=lines.append).update(0, some_groups())
    weights = torch.cat([parameter.detach().flatten() for parameter in policy.adapter.parameters])
    return metrics, weights, lines


def test_a_step_by_rows_is_the_step_by_trees() -> None:
    by_tree, tree_weights, [tree_line] = update(trained_policy(rank=4))
    by_rows, row_weights, [row_line] = update(trained_policy(rank=4, layout="rows"))
    torch.testing.assert_close(row_weights, tree_weights, rtol=0, atol=1e-6)
    assert by_tree.keys() == by_rows.keys()
    assert by_tree["train/batches"] == 1 and by_rows["train/batches"] == 24
    for name, value in by_tree.items():
        if name.partition("/")[0] in ("loss", "mismatch", "optim"):
            values = [(v.total / v.count if isinstance(v, Mean) else v) for v in (value, by_rows[name])]
            assert math.isclose(*values, rel_tol=1e-3, abs_tol=1e-6), name
    assert tree_line.startswith("packing check: ") and row_line.startswith("row check: ")


def plainly_causal(batch: object) -> tree_attention.TreeLayout:
    return tree_attention.TreeLayout(
        lambda q, k, v, scores: scaled_dot_product_attention(q, k, v, is_causal=True, scale=scores.scaling)
    )


def test_a_tree_that_computes_something_else_is_left_for_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected, _ = update(trained_policy(rank=4, layout="rows"))
    monkeypatch.setattr(tree_attention, "chain_layout", plainly_causal)
    _, weights, lines = update(trained_policy(rank=4))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
    assert lines[0].startswith("layout: rows, because packing check: 8 rollouts") and lines[1].startswith("row check")
    with pytest.raises(PackingError, match="gradients differ"):
        update(trained_policy(rank=4), layout="tree")


@pytest.mark.slow
def test_a_resumed_run_stays_with_rows(make_config, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Also where nothing is checked again, although the tree would pass now."""
    with monkeypatch.context() as patch:
        patch.setattr(tree_attention, "chain_layout", plainly_causal)
        folder = train(make_config(train={"max_steps": 1}))
    assert "layout: rows, because packing check: " in capsys.readouterr().out
    [checkpoint] = (folder / "checkpoints").glob("step-*")
    assert json.loads((checkpoint / "state.json").read_text())["layout"] == "rows"
    train(make_config(train={"max_steps": 2, "check_packing": False}))
    said = capsys.readouterr().out
    assert "layout: rows, as before: " in said and "row check: " in said


def test_a_head_that_does_more_than_a_factor_is_noticed() -> None:
    """Its input is changed, which the check of factor and softcap cannot see."""
    policy = trained_policy(rank=4, layout="rows")
    policy.model.get_base_model().lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5,))
    batch = policy.prepare([some_groups()[0].subset([0])])
    before = policy.token_logprobs(batch, temperature=1.0)[0]
    line = check_rows(policy, TRAPO, some_groups(), temperature=1.0)
    assert line is not None and "more than a factor and a softcap" in line
    after = policy.token_logprobs(batch, temperature=1.0)[0]
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, policy.row_logprobs(batch, temperature=1.0)[0])


@pytest.mark.slow
def test_each_row_has_the_longrope_of_its_own_length(tmp_path: Path) -> None:
    """An engine would give all sequences the same one (tests/engines/test_longrope.py); here there is none."""
    options = {"sliding_window": None, "original_max_position_embeddings": 24, "rope_parameters": longrope(24)}
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config_of("phi3", initializer_range=0.3, **options), dtype=torch.float32)
    base.save_pretrained(tmp_path)
    settings = {"model": {"name": str(tmp_path), "dtype": "float32"}, "lora": {"target_modules": ["o_proj"]}}
    limits = {"data": {"max_prompt_tokens": 20}, "rollout": {"max_response_tokens": 60}}
    config = validate(settings | limits | {"algorithm": SFT})
    layout = check_model(config)
    assert layout.name == "rows"
    lines: list[str] = []
    policy = Policy.load(config.model, config.lora, device="cpu", layout=layout, notify=lines.append)
    assert policy.layout == "rows" and "longrope" in lines[0]
    group = some_groups()[0]
    lengths = [len(member.prompt_ids + member.response_ids) for member in group.rollouts]
    assert min(lengths) < 24 < max(lengths)
    for member, part in enumerate(cut([group], budget=1)):
        batch = policy.prepare([part])
        ids = batch.input_ids
        with torch.no_grad():
            logp = base(input_ids=ids[None], use_cache=False).logits[0].log_softmax(dim=-1)
        expected = logp[batch.parent[batch.trained], ids[batch.trained]]
        found = policy.token_logprobs(batch, temperature=1.0)[0]
        torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-4, msg=str(member))


@pytest.mark.slow
def test_a_model_that_sees_later_tokens_is_refused() -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config_of("bert", initializer_range=0.5), dtype=torch.float32)
    lora = LoraSection(r=4, alpha=8, target_modules=["query"])
    policy = Policy(base, lora, attention="sdpa", gradient_checkpointing=False, layout="rows")
    with pytest.raises(ModelError, match="BertLMHeadModel lets a token see later ones"):
        check_rows(policy, TRAPO, some_groups(), temperature=1.0)


@pytest.mark.slow
def test_layers_that_no_gradient_reaches_are_named() -> None:
    """Jamba's Mamba layers read the weight of dt_proj, past its adapter."""
    options = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8}
    base = AutoModelForCausalLM.from_config(config_of("jamba", use_mamba_kernels=False, **options), dtype=torch.float32)
    lora = LoraSection(r=4, alpha=8, target_modules=["dt_proj", "q_proj"])
    policy = Policy(base, lora, attention="sdpa", gradient_checkpointing=False, layout="rows")
    _, _, lines = update(policy)
    assert any("warning: lora.target_modules: no gradient reaches dt_proj: " in line for line in lines), lines
