"""Load every family with a quantised base, and run the check of its layout that each training run begins with."""

import random
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from builders import random_rollouts
from families import FAMILIES, TREE, targets_of, write_model
from family_results import check_result

from trapo_lite.config import AlgorithmSection, LoraSection, ModelSection
from trapo_lite.core.algorithm import make_group
from trapo_lite.core.errors import ModelError
from trapo_lite.model.policy import Policy
from trapo_lite.training.packing_check import check_packing, check_rows

TRAPO = AlgorithmSection().build()


def start_policy(folder: Path) -> Policy:
    section = ModelSection(name=str(folder), quantize="nf4", dtype="bfloat16")
    lora = LoraSection(r=4, alpha=8, target_modules=targets_of(folder))
    policy = Policy.load(section, lora, device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.adapter.parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def check_layout(name: str, folder: Path) -> None:
    """Raise ModelError if the family is not trained on a quantised base."""
    policy = start_policy(write_model(FAMILIES[name], folder))
    assert any(isinstance(module, Linear4bit) for module in policy.model.modules())
    groups = [make_group(TRAPO, random_rollouts(random.Random(seed))) for seed in range(3)]
    if name in TREE:
        assert policy.layout == "tree"
        report = check_packing(policy, TRAPO, groups, temperature=0.7, longest=100)
        assert report is not None and report.longest == 100
    else:
        assert policy.layout == "rows"
        assert check_rows(policy, TRAPO, groups, temperature=0.7)


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantised_base_passes_the_check_of_its_layout(name: str, tmp_path: Path) -> None:
    try:
        check_layout(name, tmp_path)
    except ModelError as error:
        check_result(name, "nf4", "no", why=str(error).rpartition("; ")[0].replace(str(tmp_path), "FOLDER"))
    else:
        check_result(name, "nf4", "yes")


def test_a_base_of_which_nothing_is_quantised_is_refused(tmp_path: Path) -> None:
    """Falcon's linear layers are of a class of its own."""
    folder = write_model(FAMILIES["falcon"], tmp_path)
    with pytest.raises(ModelError, match=r"model.quantize: .*no layer of .*FalconForCausalLM.*set it to none"):
        start_policy(folder)


def test_a_class_that_reads_a_packed_weight_fails_at_the_check(tmp_path: Path) -> None:
    """Mamba multiplies by the weight of dt_proj itself."""
    policy = start_policy(write_model(FAMILIES["mamba, Mamba"], tmp_path))
    with pytest.raises(ModelError, match=r"MambaForCausalLM fails in its forward pass .*or model.quantize: none"):
        check_rows(policy, TRAPO, [make_group(TRAPO, random_rollouts(random.Random(0)))], temperature=0.7)
