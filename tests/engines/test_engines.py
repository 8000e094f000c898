"""The contract of the rollout engines: every test runs against each real engine."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from conftest import TINY_MAX_LEN, TINY_RANK, TINY_VOCAB, VLLM_DTYPE, VLLM_ROUNDING

from trapo_lite.core.errors import EngineError
from trapo_lite.engines import parity
from trapo_lite.engines.base import Completion, RolloutEngine, SampleRequest
from trapo_lite.model.logprobs import probe_sequences

KV_CACHE_TOKENS = 8192  # small, so that sequences are pre-empted; 512 bytes a token in the tiny model
PROBE = probe_sequences(vocab_size=TINY_VOCAB, num_tokens=512, max_length=300)
STOP = 3
OVERRIDES = {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}  # the model's own theta is 10,000


@dataclass
class Served:
    """An engine, what it said before any adapter, and a version counter (versions only grow)."""

    engine: RolloutEngine
    base_scores: list[float]
    base_completion: Completion
    base_checksum: str | None
    dtype: torch.dtype
    atol: float
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def publish(self, adapter_dir: Path) -> int:
        version = next(self.versions)
        self.engine.publish(adapter_dir, version)
        return version


@pytest.fixture(scope="session", params=["transformers", pytest.param("vllm", marks=pytest.mark.long)])
def served(request, tiny_model_dir: Path, tmp_path_factory) -> Iterator[Served]:
    if request.param == "vllm":
        from trapo_lite.engines.vllm.engine import VLLMEngine
        from trapo_lite.engines.vllm.options import VLLMOptions

        options = VLLMOptions(
            model_path=str(tiny_model_dir),
            max_model_len=TINY_MAX_LEN,
            lora_rank=TINY_RANK,
            dtype=VLLM_DTYPE,
            kv_cache_gib=KV_CACHE_TOKENS * 512 / 2**30,
            config_overrides=OVERRIDES,
            can_merge=True,
        )
        engine = VLLMEngine(options, log_path=tmp_path_factory.mktemp("logs") / "vllm.log", start_limit_s=300.0)
    else:
        from trapo_lite.engines.transformers.engine import TransformersEngine

        engine = TransformersEngine(
            str(tiny_model_dir), max_model_len=TINY_MAX_LEN, max_num_seqs=16, config_overrides=OVERRIDES
        )
    base_checksum = engine.adapter_checksum()
    base_completion = run(engine, [sample("base")])["base"]
    is_vllm = request.param == "vllm"
    yield Served(
        engine,
        probe_scores(engine),
        base_completion,
        base_checksum,
        dtype=getattr(torch, VLLM_DTYPE) if is_vllm else torch.float32,
        atol=VLLM_ROUNDING if is_vllm else 1e-4,
    )
    engine.close()


@pytest.fixture(scope="session")
def reference(tiny_model_dir: Path) -> Callable[..., torch.Tensor]:
    """reference(adapter_dir, token_ids, temperature=1): log-probs of token_ids[1:] by transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model_dir)
    config.update(OVERRIDES)
    models = {}

    def logits_of(adapter_dir: Path | None, token_ids: Sequence[int]) -> torch.Tensor:
        if adapter_dir not in models:
            base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, config=config)
            models[adapter_dir] = base if adapter_dir is None else PeftModel.from_pretrained(base, str(adapter_dir))
        with torch.no_grad():
            return models[adapter_dir].eval()(input_ids=torch.tensor([token_ids])).logits[0]

    def score(adapter_dir: Path | None, token_ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
        logprobs = (logits_of(adapter_dir, token_ids)[:-1] / temperature).log_softmax(dim=-1)
        return logprobs.gather(1, torch.tensor(token_ids[1:]).unsqueeze(1)).squeeze(1)

    score.logits = logits_of
    return score


def sample(request_id: str, *, seed: int = 7, prompt: Sequence[int] = tuple(range(10, 30)), **fields) -> SampleRequest:
    return SampleRequest(request_id, tuple(prompt), seed, **{"max_tokens": 24, "temperature": 0.7} | fields)


def run(engine: RolloutEngine, requests: Sequence[SampleRequest]) -> dict[str, Completion]:
    for request in requests:
        engine.submit(request)
    completions = {}
    while len(completions) < len(requests):
        for completion in engine.poll():
            assert completion.request_id not in completions
            completions[completion.request_id] = completion
    return completions


def run_one(engine: RolloutEngine, request: SampleRequest) -> Completion:
    return run(engine, [request])[request.request_id]


def probe_scores(engine: RolloutEngine) -> list[float]:
    return [score for token_ids in PROBE for score in engine.score(token_ids)]


def prompt_of(seed: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(4, TINY_VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


# --- what comes back


@pytest.mark.slow
def test_completions_come_back_by_id_with_one_logprob_a_token(served):
    requests = [sample(f"id-{i}", seed=i, prompt=prompt_of(i, 5 + i), max_tokens=1 + i) for i in range(30)]
    completions = run(served.engine, requests)
    assert set(completions) == {request.request_id for request in requests}
    for request in requests:
        completion = completions[request.request_id]
        assert len(completion.token_ids) == len(completion.logprobs) == request.max_tokens
        assert completion.finish_reason == "length"
        assert max(completion.logprobs) <= 0


@pytest.mark.slow
def test_a_stop_token_ends_the_completion_and_stays_in_it(served):
    requests = [sample(f"stop-{i}", seed=i, max_tokens=300, temperature=1.5, stop_ids=(STOP, 5)) for i in range(8)]
    for completion in run(served.engine, requests).values():
        assert completion.finish_reason == "stop"
        assert completion.token_ids[-1] in (STOP, 5)
        assert not {STOP, 5} & set(completion.token_ids[:-1])
        assert len(completion.logprobs) == len(completion.token_ids)


@pytest.mark.slow
def test_without_stop_ids_the_same_draw_goes_on_to_its_limit(served):
    stopped = run_one(served.engine, sample("stopped", max_tokens=200, temperature=1.5, stop_ids=(STOP,)))
    unstopped = run_one(served.engine, sample("unstopped", max_tokens=200, temperature=1.5))
    assert len(stopped.token_ids) < len(unstopped.token_ids) == 200
    assert unstopped.token_ids[: len(stopped.token_ids)] == stopped.token_ids


@pytest.mark.slow
def test_aborted_requests_never_come_back(served):
    for i in range(6):
        served.engine.submit(sample(f"abort-{i}", seed=i, max_tokens=40))
    assert served.engine.poll() == []
    served.engine.abort("abort-1")
    served.engine.abort("abort-4")
    served.engine.abort("never heard of")
    left = set()
    while len(left) < 4:
        left |= {completion.request_id for completion in served.engine.poll()}
    assert left == {"abort-0", "abort-2", "abort-3", "abort-5"}
    assert served.engine.poll() == []
    assert set(run(served.engine, [sample("abort-1")])) == {"abort-1"}, "the id is free again"


def test_a_request_that_is_done_but_not_collected_can_be_aborted(served):
    served.engine.submit(sample("short", max_tokens=1))
    served.engine.submit(sample("long", max_tokens=30))
    served.engine.score(PROBE[0])
    served.engine.abort("short")
    completions = []
    while not completions:
        completions = served.engine.poll()
    assert [completion.request_id for completion in completions] == ["long"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ()}, "no tokens"),
        ({"max_tokens": 0}, "at least 1"),
        ({"max_tokens": TINY_MAX_LEN}, "exceed"),
        ({"temperature": 0.0}, "top_k=1"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_requests_nobody_can_serve_are_refused_at_once(served, fields, message):
    with pytest.raises(EngineError, match=message):
        served.engine.submit(sample("bad", **fields))
    assert served.engine.poll() == []


# --- seeds


@pytest.mark.slow
def test_a_seed_gives_the_same_tokens_alone_and_among_others(served, tiny_adapter_dir):
    served.publish(tiny_adapter_dir)
    alone = run_one(served.engine, sample("alone", seed=11, max_tokens=60))
    crowd = [sample(f"crowd-{i}", seed=100 + i, prompt=prompt_of(i, 3 + 7 * i), temperature=1.0) for i in range(20)]
    among = run(served.engine, [*crowd[:9], sample("alone", seed=11, max_tokens=60), *crowd[9:]])["alone"]
    assert among.token_ids == alone.token_ids
    torch.testing.assert_close(
        torch.tensor(among.logprobs), torch.tensor(alone.logprobs), rtol=0, atol=served.atol / 10
    )
    assert run_one(served.engine, sample("other", seed=12, max_tokens=60)).token_ids != alone.token_ids


@pytest.mark.slow
def test_more_prompt_tokens_than_a_batch_or_the_cache_holds(served, tiny_adapter_dir):
    served.publish(tiny_adapter_dir)
    requests = [sample(f"long-{i}", seed=i, prompt=prompt_of(i, 500), max_tokens=100) for i in range(20)]
    assert sum(len(request.token_ids) for request in requests) > KV_CACHE_TOKENS
    completions = run(served.engine, requests)
    for request in requests[::7]:
        assert completions[request.request_id].token_ids == run_one(served.engine, request).token_ids


# --- the distribution


@pytest.mark.slow
def test_sampled_logprobs_agree_with_a_plain_forward(served, tiny_adapter_dir, reference):
    served.publish(tiny_adapter_dir)
    request = sample("agree", temperature=0.6, max_tokens=80)
    completion = run_one(served.engine, request)
    sequence = [*request.token_ids, *completion.token_ids]
    expected = reference(tiny_adapter_dir, sequence, temperature=0.6)[len(request.token_ids) - 1 :]
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=served.atol)


@pytest.mark.slow
def test_scores_are_at_temperature_1_also_for_tokens_in_the_prefix_cache(served, tiny_adapter_dir, reference):
    served.publish(tiny_adapter_dir)
    token_ids = PROBE[0]
    run_one(served.engine, sample("cache it", prompt=token_ids, temperature=0.3))
    expected = reference(tiny_adapter_dir, token_ids)
    for _ in range(2):
        torch.testing.assert_close(torch.tensor(served.engine.score(token_ids)), expected, rtol=0, atol=served.atol)


@pytest.mark.slow
def test_scoring_disturbs_no_running_request(served):
    request = sample("running", max_tokens=50)
    alone = run_one(served.engine, request)
    served.engine.submit(request)
    assert served.engine.poll() == []
    served.engine.score(PROBE[0])
    completions = []
    while not completions:
        completions = served.engine.poll()
    assert completions[0].token_ids == alone.token_ids


@pytest.mark.slow
def test_drawn_frequencies_follow_the_probabilities(served, reference):
    served.engine.reset_prefix_cache()
    prompt = prompt_of(5, 12)
    completions = run(
        served.engine, [sample(f"draw-{i}", seed=i, prompt=prompt, max_tokens=1, temperature=1.0) for i in range(1000)]
    )
    logprob_by_token = {c.token_ids[0]: c.logprobs[0] for c in completions.values()}
    for token, logprob in logprob_by_token.items():
        probability = torch.tensor(logprob).exp().item()
        frequency = sum(c.token_ids[0] == token for c in completions.values()) / 1000
        assert abs(frequency - probability) < 5 * (probability * (1 - probability) / 1000) ** 0.5 + 0.002


@pytest.mark.parametrize(
    ("fields", "num_kept"),
    [({"top_k": 3}, 3), ({"top_k": 1}, 1), ({"top_p": 0.4}, None), ({"top_p": 0.6, "top_k": 4}, None)],
)
def test_top_k_and_top_p_cut_the_support_and_renormalise(served, tiny_adapter_dir, reference, fields, num_kept):
    served.publish(tiny_adapter_dir)
    prompt = prompt_of(6, 12)
    probs = (reference.logits(tiny_adapter_dir, prompt)[-1] / 1.3).softmax(dim=-1).sort(descending=True)
    kept = probs.values[: fields.get("top_k", TINY_VOCAB)] / probs.values[: fields.get("top_k", TINY_VOCAB)].sum()
    kept = kept[kept.cumsum(0) - kept < fields.get("top_p", 1.0)]
    assert num_kept in (None, len(kept)) and len(kept) < 30
    expected = dict(zip(probs.indices.tolist(), (kept / kept.sum()).log().tolist(), strict=False))

    requests = [sample(f"cut-{i}", seed=i, prompt=prompt, max_tokens=1, temperature=1.3, **fields) for i in range(150)]
    for completion in run(served.engine, requests).values():
        assert completion.token_ids[0] in expected
        assert completion.logprobs[0] == pytest.approx(expected[completion.token_ids[0]], abs=served.atol)


# --- the base and its adapters


def test_config_overrides_reach_the_engine(served, reference, tiny_model_dir):
    from transformers import AutoModelForCausalLM

    expected = reference(None, PROBE[0])
    torch.testing.assert_close(torch.tensor(served.base_scores[: len(expected)]), expected, rtol=0, atol=served.atol)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tiny_model_dir)(input_ids=torch.tensor(PROBE[:1])).logits
    without = logits[0, :-1].log_softmax(dim=-1).gather(1, torch.tensor(PROBE[0][1:]).unsqueeze(1)).squeeze(1)
    assert (without - expected).abs().max() > 0.1


@pytest.mark.slow
def test_adapters_swap_and_are_reported(served, tiny_adapter_dir, other_adapter_dir, reference):
    assert served.base_completion.adapter_version is None
    scores, tokens = [served.base_scores], [served.base_completion.token_ids]
    for adapter_dir in (tiny_adapter_dir, other_adapter_dir, tiny_adapter_dir):
        version = served.publish(adapter_dir)
        assert served.engine.version == version
        completion = run_one(served.engine, sample("base"))
        assert completion.adapter_version == version
        scores.append(probe_scores(served.engine))
        tokens.append(completion.token_ids)
    for found, adapter_dir in zip(scores, (None, tiny_adapter_dir, other_adapter_dir, tiny_adapter_dir), strict=True):
        expected = torch.cat([reference(adapter_dir, token_ids) for token_ids in PROBE])
        torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=served.atol)
    assert tokens[1] == tokens[3] and len(set(tokens)) == 3


@pytest.mark.slow
def test_publish_takes_its_own_copy_and_says_what_it_cost(served, make_adapter, reference):
    adapter_dir = make_adapter(5)
    expected = reference(adapter_dir, PROBE[0])
    num_bytes = (adapter_dir / "adapter_model.safetensors").stat().st_size
    served.publish(adapter_dir)
    (adapter_dir / "adapter_model.safetensors").unlink()
    assert num_bytes <= served.engine.publish_bytes < num_bytes + 20_000
    torch.testing.assert_close(torch.tensor(served.engine.score(PROBE[0])), expected, rtol=0, atol=served.atol)


def test_versions_only_grow(served, tiny_adapter_dir, other_adapter_dir):
    version = served.publish(tiny_adapter_dir)
    for too_old in (version, version - 1):
        with pytest.raises(EngineError, match="versions only grow"):
            served.engine.publish(other_adapter_dir, too_old)
    assert served.engine.adapter_checksum() == parity.checksum(tiny_adapter_dir, dtype=served.dtype)


def test_a_folder_that_holds_no_adapter_is_refused(served, tmp_path):
    with pytest.raises(EngineError, match="not a PEFT adapter"):
        served.publish(tmp_path)


@pytest.mark.slow
def test_release_and_resume_keep_the_adapter(served, tiny_adapter_dir):
    served.publish(tiny_adapter_dir)
    before = run_one(served.engine, sample("before"))
    served.engine.release()
    served.engine.resume()
    assert run_one(served.engine, sample("before")).token_ids == before.token_ids


def test_a_shared_prompt_and_prefix_are_read_once_and_only_under_one_adapter(
    served, tiny_adapter_dir, other_adapter_dir
):
    """vLLM on the CPU caches blocks of 32 tokens; the last token is always computed."""
    served.publish(tiny_adapter_dir)
    prompt, more = prompt_of(9, 70), prompt_of(10, 40)

    def cached(prompt: tuple[int, ...]) -> int | None:
        return run_one(served.engine, sample("read", prompt=prompt, max_tokens=2)).num_cached_tokens

    counts = [cached(prompt), cached(prompt), cached(prompt + more), cached(prompt + more)]
    if type(served.engine).__name__ != "VLLMEngine":
        assert counts == [None] * 4
        return
    assert counts == [0, 64, 64, 96]
    served.publish(other_adapter_dir)
    assert (cached(prompt), cached(prompt)) == (0, 64)
    served.engine.merge()
    assert (cached(prompt), cached(prompt)) == (0, 64)
    served.engine.unmerge()
    assert (cached(prompt), cached(prompt)) == (0, 64)


# --- the adapter in the base's own weights


@pytest.mark.slow
def test_merged_it_serves_the_same_policy_and_unmerged_the_same_bits(served, tiny_adapter_dir, reference):
    engine = served.engine
    version = served.publish(tiny_adapter_dir)
    separate, requests = probe_scores(engine), [sample(f"merged-{i}", seed=i, max_tokens=40) for i in range(6)]
    tokens = {name: completion.token_ids for name, completion in run(engine, requests).items()}
    expected = torch.cat([reference(tiny_adapter_dir, token_ids) for token_ids in PROBE])
    for _ in range(2):
        assert engine.merge() == pytest.approx(1.0, abs=served.atol)
        assert engine.merge() == pytest.approx(1.0, abs=served.atol), "merged already: nothing happens"
        merged = probe_scores(engine)
        torch.testing.assert_close(torch.tensor(merged), expected, rtol=0, atol=served.atol)
        assert merged != separate, "the same bits: was it merged at all?"
        completions = run(engine, requests)
        assert {name: completion.token_ids for name, completion in completions.items()} == tokens
        assert {completion.adapter_version for completion in completions.values()} == {version}
        assert engine.adapter_checksum() == parity.checksum(tiny_adapter_dir, dtype=served.dtype)
        engine.unmerge()
        assert probe_scores(engine) == separate


@pytest.mark.slow
def test_the_next_publish_takes_the_merged_adapter_out_again(served, make_adapter, tiny_adapter_dir):
    nothing = make_adapter(1, scale=0.0)
    served.publish(nothing)
    base = probe_scores(served.engine)
    served.publish(tiny_adapter_dir)
    served.engine.merge()
    assert (torch.tensor(probe_scores(served.engine)) - torch.tensor(base)).abs().max() > 0.1
    served.publish(nothing)
    assert probe_scores(served.engine) == base


def test_publishing_and_merging_wait_for_no_request(served, tiny_adapter_dir):
    served.publish(tiny_adapter_dir)
    served.engine.submit(sample("in flight"))
    for move in (lambda: served.publish(tiny_adapter_dir), served.engine.merge, served.engine.unmerge):
        with pytest.raises(EngineError, match="in flight"):
            move()
    served.engine.abort("in flight")
    served.publish(tiny_adapter_dir)


# --- parity


def test_the_checksum_is_that_of_the_published_folder(served, tiny_adapter_dir, other_adapter_dir):
    assert served.base_checksum is None
    for adapter_dir in (tiny_adapter_dir, other_adapter_dir):
        served.publish(adapter_dir)
        assert served.engine.adapter_checksum() == parity.checksum(adapter_dir, dtype=served.dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("serve", "kind"),
    [("now", "applied"), ("zeros", "no_op"), ("previous", "stale"), ("doubled", "wrong"), ("other", "wrong")],
)
def test_the_probe_names_what_the_engine_really_serves(
    served, make_adapter, reference, tiny_adapter_dir, other_adapter_dir, serve, kind
):
    """The trainer believes that `now` was published; the engine was given something else."""
    now = make_adapter(1, scale=0.02)
    previous = make_adapter(1, scale=0.016)  # the same directions, a fifth shorter: a step back, not another adapter
    dir_by_name = {
        "now": now,
        "previous": previous,
        "zeros": make_adapter(1, scale=0.0),
        "doubled": make_adapter(1, scale=0.02, alpha=24.0),
        "other": make_adapter(8, scale=0.02),
    }
    base = torch.cat([reference(None, token_ids) for token_ids in PROBE])
    served.publish(dir_by_name[serve])
    result = parity.verdict(
        engine=probe_scores(served.engine),
        base=base,
        trainer=torch.cat([reference(now, token_ids) for token_ids in PROBE]),
        previous=torch.cat([reference(previous, token_ids) for token_ids in PROBE]),
        noise=parity.measured_noise(served.base_scores, base),
    )
    assert result.kind == kind, result
    is_right = served.engine.adapter_checksum() == parity.checksum(now, dtype=served.dtype)
    assert is_right == (serve == "now")
