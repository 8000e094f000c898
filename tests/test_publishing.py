"""Handing an adapter over: merged where that is asked for and leaves the adapter what it is, and always probed."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY_MAX_LEN, TINY_RANK, TINY_VOCAB

from trapo_lite.config import LoraSection, ModelSection
from trapo_lite.engines.base import EngineError
from trapo_lite.engines.transformers import TransformersEngine
from trapo_lite.policy import Policy
from trapo_lite.publishing import Publisher


class RoundingEngine(TransformersEngine):
    """Merges by losing a part of the adapter's update: real log-probs of a policy that rounding has changed."""

    def __init__(self, model_dir: Path, *, share_left: float) -> None:
        super().__init__(str(model_dir), max_model_len=TINY_MAX_LEN)
        self.share_left, self.is_merged = share_left, False

    def publish(self, adapter_dir: Path, version: int) -> None:
        super().publish(adapter_dir, version)
        self.is_merged = False

    def merge(self) -> float:
        self._scale(self.share_left)
        self.is_merged = True
        return self.share_left

    def unmerge(self) -> None:
        if self.is_merged:
            self._scale(1 / self.share_left)
        self.is_merged = False

    @torch.no_grad()
    def _scale(self, factor: float) -> None:
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(factor)


@pytest.fixture
def policy(tiny_model_dir: Path) -> Policy:
    torch.manual_seed(0)
    section = LoraSection(r=TINY_RANK, alpha=12)
    policy = Policy.load(ModelSection(name=str(tiny_model_dir), dtype="float32"), section, device="cpu")
    move(policy)
    return policy


@torch.no_grad()
def move(policy: Policy) -> None:
    for parameter in policy.parameters:
        parameter.add_(0.02 * torch.randn_like(parameter))


@pytest.fixture
def make_publisher(policy: Policy, tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Publisher]:
    def make(share_left: float, **options) -> Publisher:
        engine = RoundingEngine(tiny_model_dir, share_left=share_left)
        sizes = {"vocab_size": TINY_VOCAB, "num_tokens": 512, "max_length": 300}
        return Publisher(engine, policy, scratch=tmp_path / "scratch", **sizes, **options)

    return make


@pytest.mark.parametrize(
    ("mode", "is_faster", "share_left", "is_merged"),
    [
        ("never", True, 1.0, False),
        ("in_place", False, 1.0, True),
        ("auto", True, 1.0, True),
        ("auto", False, 1.0, False),
        ("auto", True, 0.5, False),  # rounding would serve another policy
    ],
)
def test_what_is_served_merged(make_publisher, policy, mode, is_faster, share_left, is_merged) -> None:
    asked: list[int | None] = []

    def is_merging_faster() -> bool:
        asked.append(publisher.engine.version)
        return is_faster

    publisher = make_publisher(share_left, merge=mode, is_merging_faster=is_merging_faster)
    for version in (1, 2):
        result = publisher.publish(version)
        assert publisher.is_merged == publisher.engine.is_merged == is_merged
        assert result.kind == "applied" and result.mismatch < 1e-4
        was_tried = mode == "in_place" or (mode == "auto" and is_faster)
        assert publisher.merge_kept == share_left if was_tried else math.isnan(publisher.merge_kept)
        move(policy)
    assert asked == ([1, 2] if mode == "auto" else [])


def test_an_update_lost_in_merging_stops_the_run_and_says_how_to_go_on(make_publisher) -> None:
    with pytest.raises(EngineError, match=r"samples from the bare base.*rollout.merge, set it to never"):
        make_publisher(0.1, merge="in_place").publish(1)


def test_a_doubled_adapter_has_its_own_message_however_large_it_is(make_publisher, policy) -> None:
    for _ in range(20):
        move(policy)  # far from where twice the adapter has twice its effect
    before = [parameter.clone() for parameter in policy.parameters]
    with pytest.raises(EngineError, match=r"applies the adapter twice over"):
        make_publisher(2.0, merge="in_place").publish(1)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters, strict=True))


def test_a_version_that_is_there_costs_nothing(make_publisher) -> None:
    publisher = make_publisher(1.0)
    first = publisher.publish(1)
    assert publisher.publish_seconds > 0 < publisher.probe_seconds
    assert publisher.publish(1) is first and publisher.publish_seconds == publisher.probe_seconds == 0.0
