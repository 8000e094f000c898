"""Handing an adapter over: merged where that is asked for and leaves the adapter what it is, and always probed."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from conftest import TINY_MAX_LEN, TINY_RANK, TINY_VOCAB
from safetensors.torch import load_file

from trapo_lite.config import LoraSection, ModelSection, load_config
from trapo_lite.core.errors import EngineError
from trapo_lite.engines.parity import text_sequences
from trapo_lite.engines.transformers.engine import TransformersEngine
from trapo_lite.model.policy import Policy
from trapo_lite.rollout.publisher import Publisher
from trapo_lite.tiny_world import BASE_DIR
from trapo_lite.training.inputs import read_inputs


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
    for parameter in policy.adapter.parameters:
        parameter.add_(0.02 * torch.randn_like(parameter))


@pytest.fixture
def make_publisher(policy: Policy, tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Publisher]:
    def make(share_left: float, **options) -> Publisher:
        engine = RoundingEngine(tiny_model_dir, share_left=share_left)
        sizes = {"vocab_size": TINY_VOCAB, "num_tokens": 512, "max_length": 300}
        text = [list(range(10, 90))]
        return Publisher(engine, policy, scratch=tmp_path / "scratch", text=text, **sizes, **options)

    return make


@pytest.mark.parametrize(
    ("mode", "is_merged"),
    [("never", False), ("in_place", True)],
)
def test_what_is_served_merged(make_publisher, policy, mode, is_merged) -> None:
    publisher = make_publisher(1.0, merge=mode)
    for version in (1, 2):
        result = publisher.publish(version)
        assert publisher.is_merged == publisher.engine.is_merged == is_merged
        assert result.kind == "applied" and result.mismatch < 1e-4
        assert publisher.merge_kept == 1.0 if is_merged else math.isnan(publisher.merge_kept)
        move(policy)


def test_an_update_lost_in_merging_stops_the_run_and_says_how_to_go_on(make_publisher) -> None:
    with pytest.raises(EngineError, match=r"samples from the bare base.*rollout.merge, set it to never"):
        make_publisher(0.1, merge="in_place").publish(1)


def test_a_doubled_adapter_stops_the_run_and_shows_in_the_projection(make_publisher) -> None:
    with pytest.raises(EngineError, match=r"samples from something else \(projection (1\.[89]|2\.[012])"):
        make_publisher(2.0, merge="in_place").publish(1)


def test_a_version_that_is_there_costs_nothing(make_publisher) -> None:
    publisher = make_publisher(1.0)
    first = publisher.publish(1)
    assert publisher.publish_seconds > 0 < publisher.probe_seconds
    assert publisher.publish(1) is first and publisher.publish_seconds == publisher.probe_seconds == 0.0


# --- the same base: the tiny world's, which has learned something, on the text it is trained on

Dtype = Literal["float32", "bfloat16"]
THETA_TWICE = {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}}


@pytest.fixture(scope="module")
def text() -> list[list[int]]:
    config = load_config(["configs/tiny_cpu.yaml"], ["rollout.engine=transformers"])
    return text_sequences(read_inputs(config).problems, num_tokens=512, max_length=200)


def other_base(folder: Path) -> Path:
    """The same sizes and another random state."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE_DIR)).save_pretrained(folder)
    return folder


def meet(
    tmp_path: Path, text: list[list[int]], *, dtype: Dtype, fault: str = "none", base_tolerance: float | None = None
) -> Publisher:
    """The trainer holds the tiny base; the engine holds it too, but for the fault."""
    policy = Policy.load(ModelSection(name=str(BASE_DIR), dtype=dtype), LoraSection(r=8, alpha=8), device="cpu")
    engine = TransformersEngine(
        str(other_base(tmp_path / "other") if fault == "base" else BASE_DIR),
        max_model_len=200,
        dtype=dtype,
        config_overrides=THETA_TWICE if fault == "theta" else {},
    )
    if fault == "norm":
        engine.model.model.layers[2].input_layernorm = torch.nn.Identity()
    return Publisher(
        engine,
        policy,
        scratch=tmp_path / "scratch",
        text=text,
        vocab_size=policy.model.config.vocab_size,
        num_tokens=512,
        max_length=200,
        base_tolerance=base_tolerance,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", ["base", "theta", "norm"])
def test_another_base_another_rope_or_a_missing_norm_is_noticed_before_any_adapter(tmp_path, text, dtype, fault):
    with pytest.raises(EngineError, match=r"do not hold the same base.*rollout\.base_tolerance"):
        meet(tmp_path, text, dtype=dtype, fault=fault)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_base_passes(tmp_path, text, dtype):
    assert meet(tmp_path, text, dtype=dtype).version is None


def test_the_tolerance_is_an_option(tmp_path, text):
    meet(tmp_path, text, dtype="bfloat16", fault="theta", base_tolerance=0.2)  # measured: 0.13 of the spread


def test_the_adapter_is_written_once_in_the_engines_type_where_the_engine_wants_it(tmp_path, text, monkeypatch):
    """The file has half the bytes in bfloat16, to which the engine rounds anyway."""
    wanted, given = tmp_path / "engine", []
    monkeypatch.setattr(
        TransformersEngine, "scratch", property(lambda self: wanted, lambda self, value: None), raising=False
    )
    publisher = meet(tmp_path, text, dtype="bfloat16")
    real = publisher.engine.publish

    def publish(folder: Path, version: int) -> None:
        given.append((folder, {t.dtype for t in load_file(folder / "adapter_model.safetensors").values()}))
        real(folder, version)

    monkeypatch.setattr(publisher.engine, "publish", publish)
    move(publisher.policy)
    assert publisher.publish(1).kind == "applied"
    assert given == [(wanted, {torch.bfloat16})]
    assert not wanted.exists() and not (tmp_path / "scratch").exists()
    assert {tensor.dtype for tensor in publisher.policy.adapter.state().values()} == {torch.float32}


def test_an_engine_that_ignores_an_adapter_is_found_however_small_its_effect(tmp_path, text, monkeypatch):
    """An adapter this small does no more than rounding in bfloat16; the engine rounds otherwise than the trainer."""
    exact = TransformersEngine.score

    def otherwise(engine: TransformersEngine, token_ids: Sequence[int]) -> list[float]:
        return [logprob + 0.02 * math.sin(1e6 * logprob) for logprob in exact(engine, token_ids)]

    monkeypatch.setattr(TransformersEngine, "score", otherwise)
    publisher, first = (meet(tmp_path, text, dtype="bfloat16") for _ in range(2))
    make_small(publisher.policy, 3e-5)
    assert publisher.publish(1).kind == "cannot_tell"
    monkeypatch.setattr(publisher.engine, "publish", lambda folder, version: None)
    make_small(publisher.policy, 1e-4)
    with pytest.raises(EngineError, match="still samples from the previous adapter"):
        publisher.publish(2)
    make_small(first.policy, 3e-5)
    monkeypatch.setattr(first.engine, "publish", lambda folder, version: None)
    with pytest.raises(EngineError, match="samples from the bare base"):
        first.publish(1)


@torch.no_grad()
def make_small(policy: Policy, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in policy.adapter.state().items():
        if "lora_B" in name:
            tensor.copy_(size * torch.randn(tensor.shape, generator=generator).sign())
