"""What only the transformers engine does by itself: drawing tokens, joining and leaving rows, bf16 adapters."""

from pathlib import Path

import pytest
import torch
from adapter_folders import edited, renamed, with_nan
from conftest import TINY_MAX_LEN, TINY_RANK, TINY_VOCAB
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trapo_lite.config import load_config
from trapo_lite.core.errors import EngineError
from trapo_lite.engines import parity
from trapo_lite.engines.adapter_folder import AdapterFolder
from trapo_lite.engines.base import SampleRequest
from trapo_lite.engines.start import start_engine
from trapo_lite.engines.transformers.cache import BLOCK, MAX_SCORES, GrowingLayer, grouped_attention, read_at_once
from trapo_lite.engines.transformers.engine import TransformersEngine
from trapo_lite.engines.transformers.sampling import draw, processed_logprobs
from trapo_lite.engines.vllm.engine import require_rank

LOGITS = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()  # probabilities 0.4, 0.3, 0.2, 0.1


def probs_of(*, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    logprobs = processed_logprobs(
        LOGITS.unsqueeze(0),
        temperature=torch.tensor([temperature]),
        top_k=torch.tensor([top_k]),
        top_p=torch.tensor([top_p]),
    )
    return logprobs.exp()[0].tolist()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.41}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.39}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.75}, [4 / 7, 3 / 7, 0, 0]),  # of 4/9, 3/9, 2/9 the first two hold 0.78
        ({"top_k": 9}, [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_the_distribution_by_hand(fields, expected):
    assert probs_of(**fields) == pytest.approx(expected, abs=1e-6)


def test_rows_have_their_own_settings():
    logprobs = processed_logprobs(
        LOGITS.repeat(3, 1),
        temperature=torch.tensor([1.0, 0.5, 1.0]),
        top_k=torch.tensor([0, 0, 1]),
        top_p=torch.tensor([1.0, 1.0, 1.0]),
    )
    expected = torch.tensor([[0.4, 0.3, 0.2, 0.1], [16 / 30, 9 / 30, 4 / 30, 1 / 30], [1, 0, 0, 0]])
    torch.testing.assert_close(logprobs.exp(), expected)


def test_a_draw_inverts_the_cumulative_distribution():
    """Token 1 has no mass, so that no number, 0.4 included, may draw it."""
    logprobs = torch.tensor([0.4, 0.0, 0.4, 0.2], dtype=torch.float64).log().repeat(6, 1)
    uniform = torch.tensor([0.0, 0.39, 0.4, 0.79, 0.81, 1 - 2**-53], dtype=torch.float64)
    assert draw(logprobs, uniform).tolist() == [0, 0, 2, 2, 3, 3]


def test_prompts_are_read_as_many_at_a_time_as_there_is_memory_for(tiny_model_dir, monkeypatch):
    """Attention over 250 prompts of 4,000 tokens would take 16 GB a head; one is always read, whatever it takes."""
    lengths = [100] * 300 + [4000] * 3 + [6000] + [10] * 2
    prompts = [(i, *range(length - 1)) for i, length in enumerate(lengths)]
    batches = list(read_at_once(prompts, tuple))
    assert [prompt for batch in batches for prompt in batch] == prompts
    assert [len(batch) for batch in batches] == [300, 1, 1, 1, 1, 2]
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) ** 2 <= MAX_SCORES for batch in batches)
    same = [tuple(range(4000))] * 2
    assert list(read_at_once(same, tuple)) == [same]  # one prompt, read once

    def drawn() -> dict[str, tuple[int, ...]]:
        engine = TransformersEngine(str(tiny_model_dir), max_model_len=TINY_MAX_LEN)
        for i in range(6):
            engine.submit(SampleRequest(f"r{i}", tuple(range(5 + 9 * i)), seed=i, max_tokens=8))
        found: dict[str, tuple[int, ...]] = {}
        while len(found) < 6:
            found |= {one.request_id: one.token_ids for one in engine.poll()}
        return found

    at_once = drawn()
    monkeypatch.setattr("trapo_lite.engines.transformers.cache.MAX_SCORES", 1000)
    assert drawn() == at_once


@pytest.mark.slow
def test_rows_join_and_leave_without_disturbing_each_other(tiny_model_dir):
    requests = [
        SampleRequest(f"r{i}", tuple(range(5 + (11 * i) % 60)), seed=i, max_tokens=3 + (7 * i) % 30) for i in range(12)
    ]
    engine = TransformersEngine(str(tiny_model_dir), max_model_len=TINY_MAX_LEN)
    alone = {}
    for request in requests:
        engine.submit(request)
        while request.request_id not in alone:
            alone |= {completion.request_id: completion for completion in engine.poll()}
    together, waiting = {}, list(requests)
    while len(together) < len(requests):
        if waiting:
            engine.submit(waiting.pop())  # a newcomer at every step
        together |= {completion.request_id: completion for completion in engine.poll()}
    for request_id, completion in alone.items():
        assert together[request_id].token_ids == completion.token_ids
        assert together[request_id].logprobs == pytest.approx(completion.logprobs, abs=1e-5)


def test_a_bf16_engine_holds_the_adapter_in_bf16(tiny_model_dir, tiny_adapter_dir):
    engine = TransformersEngine(str(tiny_model_dir), max_model_len=TINY_MAX_LEN, dtype="bfloat16")
    engine.publish(tiny_adapter_dir, 1)
    assert engine.adapter_checksum() == parity.checksum(tiny_adapter_dir, dtype=torch.bfloat16)


def test_an_adapter_that_cannot_be_served_is_refused_and_the_next_one_is_not(
    tiny_model_dir, tiny_adapter_dir, other_adapter_dir, tmp_path
):
    engine = TransformersEngine(str(tiny_model_dir), max_model_len=TINY_MAX_LEN)
    wrong = {
        "28 of 28 tensors are missing": edited(tiny_adapter_dir, tmp_path / "names", tensors=renamed),
        "init_lora_weights": edited(tiny_adapter_dir, tmp_path / "kind", init_lora_weights="pissa"),
        "does not fit the base|not found in the base": edited(
            tiny_adapter_dir, tmp_path / "targets", target_modules=["nowhere"]
        ),
        "is not finite": edited(tiny_adapter_dir, tmp_path / "nan", tensors=with_nan),
    }
    for adapter_dir, version in ((tiny_adapter_dir, 1), (other_adapter_dir, 2)):
        for complaint, folder in wrong.items():
            with pytest.raises(EngineError, match=complaint):
                engine.publish(folder, version)
        engine.publish(adapter_dir, version)
        assert engine.adapter_checksum() == parity.checksum(adapter_dir, dtype=torch.float32)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"r": "six"}, "r is 'six'"), ({"use_dora": True}, "use_dora"), ({"peft_type": "IA3"}, "peft_type: 'IA3'")],
    ids=["type", "dora", "ia3"],
)
def test_an_adapter_for_vllm_is_read_before_it_is_handed_on(tiny_adapter_dir, tmp_path, change, complaint):
    wrong = edited(tiny_adapter_dir, tmp_path / "wrong", **change)
    with pytest.raises(EngineError, match=complaint):
        require_rank(wrong, TINY_RANK)
    folder = AdapterFolder(tmp_path)
    with pytest.raises(EngineError, match=complaint):
        folder.add(wrong, 1)
    folder.close()


def test_servers_of_other_users_can_read_a_shared_folder(tiny_adapter_dir, tmp_path):
    folder = AdapterFolder(tmp_path)
    path, _ = folder.add(tiny_adapter_dir, 1)
    (plain := tmp_path / "plain").mkdir()
    (plain / "file").touch()
    assert folder.path.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o777
    assert path.stat().st_mode == plain.stat().st_mode
    assert {file.stat().st_mode for file in path.iterdir()} == {(plain / "file").stat().st_mode}
    folder.close()


def test_start_engine_takes_everything_from_the_configuration(tiny_model_dir, tmp_path):
    overrides = [f"model.name={tiny_model_dir}", "model.dtype=float32", "rollout.engine=transformers"]
    config = load_config(overrides=[*overrides, "rollout.max_num_seqs=3"])
    engine = start_engine(config, max_model_len=50, log_path=Path(tmp_path / "log"))
    assert isinstance(engine, TransformersEngine)
    assert (engine.max_model_len, engine.max_num_seqs, engine.dtype) == (50, 3, torch.float32)
    assert len(engine.score(list(range(TINY_VOCAB)))) == TINY_VOCAB - 1
    engine.close()


# --- what decoding costs


def test_prompts_that_are_the_same_are_read_once(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    engine = TransformersEngine(str(tiny_model_dir), max_model_len=TINY_MAX_LEN)
    shapes, forward = [], engine._base.forward
    monkeypatch.setattr(
        engine._base, "forward", lambda **options: (shapes.append(options["input_ids"].shape), forward(**options))[1]
    )
    prompts = [(5, 6, 7), (5, 6, 7), (8, 9), (5, 6, 7)]
    requests = [SampleRequest(str(i), p, i, 3, 1.0, 1.0, stop_ids=()) for i, p in enumerate(prompts)]
    for request in requests:
        engine.submit(request)
    together = {}
    while len(together) < len(requests):
        together |= {completion.request_id: completion for completion in engine.poll()}
    assert shapes == [(2, 3), (4, 1), (4, 1)]
    for request in requests:
        engine.submit(request)
        [alone] = [completion for _ in range(3) for completion in engine.poll()]
        assert alone.token_ids == together[request.request_id].token_ids
        assert alone.logprobs == pytest.approx(together[request.request_id].logprobs, abs=1e-5)


@pytest.mark.parametrize("length", [1, 3])
def test_grouped_attention_is_transformers_own(length: int):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, length, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = (torch.arange(9) >= torch.tensor([[0], [4]]))[:, None, None].expand(2, 1, length, 9)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True
    for attention_mask in (mask, None):
        options = {"scaling": 0.3, "is_causal": False}
        found, _ = grouped_attention(module, query, key, value, attention_mask, **options)
        expected, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        torch.testing.assert_close(found, expected)


def test_a_growing_cache_holds_what_a_plain_one_holds():
    torch.manual_seed(0)
    ours, plain = GrowingLayer(), DynamicLayer()

    def put(rows: int, length: int) -> None:
        states = torch.randn(2, rows, 2, length, 4).unbind()
        for found, expected in zip(ours.update(*states), plain.update(*states), strict=True):
            assert torch.equal(found, expected)

    put(3, 5)
    for _ in range(2 * BLOCK):  # past the room that was made, more than once
        put(3, 1)
    for layer in (ours, plain):  # as RowCache.select and append do
        layer.keys, layer.values = layer.keys[[2, 0], :, -7:], layer.values[[2, 0], :, -7:]
    for _ in range(3):
        put(2, 1)


def test_heads_whose_values_are_shorter_than_their_queries_are_served() -> None:
    """DeepSeek's latent attention: queries and keys of 24 numbers a head, values of 16."""
    query, key, value = torch.randn(2, 4, 1, 24), torch.randn(2, 4, 5, 24), torch.randn(2, 4, 5, 16)
    found, _ = grouped_attention(torch.nn.Identity(), query, key, value, None, scaling=0.3)
    weights = (query @ key.transpose(2, 3) * 0.3).softmax(dim=-1)
    torch.testing.assert_close(found, (weights @ value).transpose(1, 2))
