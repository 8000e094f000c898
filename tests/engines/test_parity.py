"""The parity verdict on made-up log-probs, and the checksum on made-up adapters. Real engines: test_engines.py."""

import json

import pytest
import torch
from safetensors.torch import save_file

from trapo_lite.core.errors import EngineError
from trapo_lite.core.types import Problem
from trapo_lite.engines import parity
from trapo_lite.model.logprobs import probe_sequences

NOISE = 1e-3
NUM_TOKENS = 512


def randn(seed: int) -> torch.Tensor:
    return torch.randn(NUM_TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BASE = randn(0) - 3.0
EFFECT = 0.1 * randn(1)
LATEST_STEP = 0.01 * randn(2)
TRAINER, PREVIOUS = BASE + EFFECT, BASE + EFFECT - LATEST_STEP
DOUBLED = BASE + 2 * EFFECT + 0.1 * randn(7)  # twice the adapter is not twice its effect


def judge(engine: torch.Tensor, **changes) -> parity.ParityResult:
    known = {"base": BASE, "trainer": TRAINER, "previous": PREVIOUS, "noise": NOISE} | changes
    return parity.verdict(engine=engine + NOISE * randn(3), **known)


# --- the verdict


@pytest.mark.parametrize(
    ("engine", "kind", "projection"),
    [
        (TRAINER, "applied", 1.0),
        (BASE, "no_op", 0.0),
        (PREVIOUS, "stale", 1.0),
        (DOUBLED, "wrong", 2.0),
        (BASE + 2 * EFFECT, "wrong", 2.0),
        (BASE - EFFECT, "wrong", -1.0),
        (BASE + 0.1 * randn(5), "wrong", 0.0),
        (BASE + EFFECT + 0.1 * randn(6), "wrong", 1.0),
        (BASE * torch.nan, "wrong", torch.nan),
    ],
)
def test_each_fault_has_its_name(engine, kind, projection):
    result = judge(engine)
    assert result.kind == kind, result
    assert result.projection == pytest.approx(projection, abs=0.15, nan_ok=True)
    assert (result.noise, result.num_tokens) == (NOISE, NUM_TOKENS)
    assert result.effect == pytest.approx(0.1, rel=0.1)


def rounding(seed: int) -> torch.Tensor:
    """Return what another order of roundings does to log-probs: as much as the noise, and different each time."""
    return NOISE / 2**0.5 * randn(seed)


def small_step(*, engine: torch.Tensor, **changes) -> parity.ParityResult:
    """Judge an adapter whose true effect is a fifth of the noise, as after the first steps of a run in bfloat16.

    Each scoring has a rounding of its own, as measured with SmolLM2-135M-Instruct (docs/RESULTS.md, parity).
    """
    known = {
        "base": BASE + rounding(10),
        "trainer": BASE + 0.2 * NOISE * randn(1) + rounding(11),
        "previous": BASE + 0.1 * NOISE * randn(1) + rounding(12),
        "engine_base": BASE + rounding(13),
        "engine_previous": BASE + 0.1 * NOISE * randn(1) + rounding(14),
    }
    return parity.verdict(engine=engine, noise=NOISE, **known | changes)


@pytest.mark.parametrize("seed", range(20, 40))
def test_an_effect_below_the_rounding_of_the_model_is_no_reason_to_stop(seed):
    """The trainer's own rounding is in `trainer - base`: on a card such a first step was called a no-op."""
    right = BASE + 0.2 * NOISE * randn(1) + rounding(seed)
    assert small_step(engine=right).kind == "cannot_tell"
    assert small_step(engine=right, previous=None, engine_previous=None).kind == "cannot_tell"
    assert small_step(engine=right, engine_base=None, engine_previous=None).kind == "cannot_tell"


def test_an_engine_that_gives_the_same_numbers_to_the_last_bit_does_not_use_the_adapter():
    base, previous = BASE + rounding(13), BASE + 0.1 * NOISE * randn(1) + rounding(14)
    assert small_step(engine=base).kind == "no_op"
    assert small_step(engine=previous).kind == "stale"
    nearly = previous.clone()
    nearly[7] = torch.nextafter(nearly[7], torch.zeros(()).double())
    assert small_step(engine=nearly).kind == "cannot_tell"


def test_where_the_trainer_has_not_moved_the_engine_need_not():
    """B = 0 at step 0, or a version whose update was nil."""
    same = BASE + rounding(13)
    assert small_step(engine=same, trainer=BASE + rounding(10), previous=None).kind == "cannot_tell"
    previous = BASE + 0.1 * NOISE * randn(1) + rounding(14)
    assert small_step(engine=previous, trainer=BASE + 0.1 * NOISE * randn(1) + rounding(12)).kind == "cannot_tell"


def test_an_engine_far_from_everything_is_wrong_however_small_the_effect():
    assert small_step(engine=BASE + 0.1 * randn(5)).kind == "wrong"


def test_versions_nearer_than_the_noise_are_not_told_apart():
    previous = TRAINER - 2 * NOISE * randn(2)
    for engine in (TRAINER, previous):
        result = judge(engine, previous=previous)
        assert result.kind == "applied"


def test_rounding_of_the_adapter_in_the_engine_counts_as_noise_for_staleness():
    engine = TRAINER + LATEST_STEP.roll(1) - 0.2 * LATEST_STEP  # a bit nearer to the version before
    assert judge(engine, previous=TRAINER - LATEST_STEP / 4, noise=1e-6).kind == "applied"


def test_after_the_first_publish_serving_the_base_is_a_no_op():
    assert judge(BASE, previous=BASE).kind == "no_op"
    assert judge(TRAINER, previous=BASE).kind == "applied"
    assert judge(TRAINER, previous=None).kind == "applied"


def test_without_an_effect_there_is_no_verdict():
    """B = 0 at step 0: base, no-op and applied are one and the same."""
    assert judge(BASE, trainer=BASE, previous=None).kind == "cannot_tell"
    assert judge(BASE, trainer=BASE + 0.1 * NOISE * randn(1), previous=None).kind == "cannot_tell"
    assert judge(BASE, trainer=BASE + 3 * NOISE * randn(1), previous=None).kind == "cannot_tell"
    assert judge(BASE, trainer=BASE + 5 * NOISE * randn(1), previous=None).kind == "no_op"


def test_a_verdict_needs_512_tokens():
    with pytest.raises(ValueError, match="at least 512"):
        parity.verdict(engine=BASE[:511], base=BASE[:511], trainer=TRAINER[:511], previous=None, noise=NOISE)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (BASE, "bare base"),
        (PREVIOUS, "previous adapter"),
        (DOUBLED, r"something else \(projection (1\.9|2\.0)"),
        (-BASE, "something else"),
    ],
)
def test_a_fault_stops_the_run_and_says_which(engine, message):
    with pytest.raises(EngineError, match=rf"adapter version 7, the engine .*{message}"):
        parity.require_applied(judge(engine), version=7)


def test_applied_and_cannot_tell_let_the_run_go_on():
    parity.require_applied(judge(TRAINER), version=7)
    parity.require_applied(judge(BASE, trainer=BASE, previous=None), version=7)


def test_another_base_is_noticed_before_any_adapter():
    assert parity.measured_noise(BASE + NOISE, BASE) == pytest.approx(NOISE)
    parity.require_same_base(NOISE, limit=0.01)
    with pytest.raises(EngineError, match="same base"):
        parity.require_same_base(parity.measured_noise(BASE.roll(1), BASE), limit=0.01)
    with pytest.raises(EngineError, match="same base"):
        parity.require_same_base(float("nan"), limit=0.01)


def test_what_rounding_may_differ_by_grows_with_the_spread_of_the_logprobs():
    """0.1 of it in bfloat16, 0.003 in float32, as much as is asked for; and a floor where a text has hardly any."""
    spread_by_3 = [-1.0, -7.0, -1.0, -7.0]  # mean -4, each 3 away
    assert parity.largest_noise(spread_by_3, dtype=torch.bfloat16) == pytest.approx(0.3)
    assert parity.largest_noise(spread_by_3, dtype=torch.float32) == pytest.approx(0.009)
    assert parity.largest_noise(spread_by_3, dtype=torch.bfloat16, tolerance=0.5) == pytest.approx(1.5)
    assert parity.largest_noise([-1.0, -1.0], dtype=torch.bfloat16) == 0.1
    assert parity.largest_noise([-1.0], dtype=torch.float32) == 2e-3


def test_the_text_is_made_of_prompts_and_their_first_solutions():
    problems = [
        Problem("both", (1, 2), "0", ((3, 4), (9, 9))),
        Problem("too short to score", (5,), "0"),
        Problem("no solution", (6, 7, 8), "0"),
        Problem("cut", tuple(range(20)), "0", ((1,) * 20,)),
    ]
    found = parity.text_sequences(problems, num_tokens=12, max_length=9)
    assert found == [[1, 2, 3, 4], [6, 7, 8], list(range(8))]  # 3 + 2 + 7 scores
    assert parity.text_sequences(problems, num_tokens=4, max_length=9) == [[1, 2, 3, 4], [6, 7]]


@pytest.mark.parametrize("max_length", [513, 200, 40])
def test_the_probe_has_enough_tokens_and_is_always_the_same(max_length):
    sequences = probe_sequences(vocab_size=50, num_tokens=512, max_length=max_length, seed=1)
    assert 512 <= sum(len(ids) - 1 for ids in sequences) < 512 + len(sequences)
    assert max(map(len, sequences)) < max_length
    assert {token for ids in sequences for token in ids} == set(range(50))
    assert sequences == probe_sequences(vocab_size=50, num_tokens=512, max_length=max_length, seed=1)
    assert sequences != probe_sequences(vocab_size=50, num_tokens=512, max_length=max_length, seed=2)


# --- the checksum

A, B = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([[0.1, 0.2], [0.3, 0.4]])


def save(folder, *, a=A, b=B, alpha=3.0, r=2, module="model.layers.0.q_proj", **config):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": r, "lora_alpha": alpha} | config))
    name = f"base_model.model.{module}"
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    return folder


def test_the_checksum_is_of_a_and_of_scaled_b(tmp_path):
    expected = parity.checksum_of_pairs({"model.layers.0.q_proj": (A, B * 1.5)})
    assert parity.checksum(save(tmp_path / "adapter"), dtype=torch.float32) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 3.1},
        {"a": torch.nextafter(A, A + 1)},
        {"b": torch.nextafter(B, B + 1)},
        {"a": A.flip(0)},
        {"module": "model.layers.1.q_proj"},
        {"use_rslora": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_other_adapter_has_another_checksum(tmp_path, change):
    right = parity.checksum(save(tmp_path / "right"), dtype=torch.float32)
    assert parity.checksum(save(tmp_path / "wrong", **change), dtype=torch.float32) != right


def test_the_checksum_is_taken_in_the_engines_type(tmp_path):
    folder = save(tmp_path / "adapter")
    pairs = {"model.layers.0.q_proj": (A.bfloat16(), B.bfloat16() * 1.5)}
    assert parity.checksum(folder, dtype=torch.bfloat16) == parity.checksum_of_pairs(pairs)
    assert parity.checksum(folder, dtype=torch.bfloat16) != parity.checksum(folder, dtype=torch.float32)


def test_a_mismatch_stops_the_run():
    parity.require_checksum("abc", expected="abc", version=3)
    for found in ("abd", None):
        with pytest.raises(EngineError, match="version 3"):
            parity.require_checksum(found, expected="abc", version=3)
