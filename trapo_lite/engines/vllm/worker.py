"""Run vLLM in a process of its own, which `__main__` starts for VLLMEngine.

`serving` reads (method, arguments) from the socket and answers each method except `submit` and `abort`. Any error
ends the process with a traceback in its log, and the parent reports it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trapo_lite.engines.base import FIRST_ADAPTER_ID, Completion, SampleRequest
from trapo_lite.engines.parity import checksum_of_pairs
from trapo_lite.engines.vllm.binding import (
    active_pairs,
    bind_whole_layers,
    lora_manager,
    rows_by_module,
    unbound_modules,
)
from trapo_lite.engines.vllm.cpu_lora import use_one_adapter_lora
from trapo_lite.engines.vllm.cpu_rotary import rotate_all_heads
from trapo_lite.engines.vllm.language_model import language_model_arguments, read_language_model_only
from trapo_lite.engines.vllm.merging import MergedAdapter, keep_plain_weights
from trapo_lite.engines.vllm.options import VLLMOptions, round_up_lora_rank
from trapo_lite.engines.vllm.served import served_model
from trapo_lite.model.base import multimodal_type

BLOCK_SIZE_ON_CPU = 32  # with the default, 128, the prefix cache never holds a prompt under 128 tokens
MIN_BATCHED_TOKENS_ON_CPU = 4096
LARGE_CARD = 60 * 2**30  # fits the activations of long steps
BATCHED_TOKENS_ON_LARGE_CARD = 8192  # per step; vLLM's default for an embedded engine is 2048


class VLLMWorker:
    """Hold one LLMEngine and the adapter that it serves. Each method is a message of the protocol.

    on_accepted: called when vLLM has a class for the model that takes adapters, before a weight is read
    """

    def __init__(self, options: VLLMOptions, on_accepted: Callable[[], None] = lambda: None) -> None:
        from vllm import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        self.is_cpu = current_platform.is_cpu()
        if self.is_cpu:
            use_one_adapter_lora()
            rotate_all_heads()
            if options.can_merge:
                keep_plain_weights()
        bind_whole_layers()
        gpu_memory = 0 if self.is_cpu else current_platform.get_device_total_memory()
        arguments = engine_arguments(options, is_cpu=self.is_cpu, gpu_memory=gpu_memory)
        arguments |= language_model_arguments(options)
        if multimodal_type(options.model_path) is not None:
            read_language_model_only()
        model_config = served_model(options.model_path, arguments, is_cpu=self.is_cpu)
        on_accepted()
        if self.is_cpu and model_config.has_inner_state:
            arguments["enable_prefix_caching"] = False  # for states of recurrent layers it needs prefills in chunks
        self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self.lora_request: Any = None
        self.num_rows: dict[str, int] = {}  # of B, for each module of that adapter
        self.merged: MergedAdapter | None = None
        self.version: int | None = None
        self.version_by_request: dict[str, int | None] = {}
        self.finished: list[Completion] = []
        self.num_scores = 0
        self.is_released = False

    def submit(self, request: SampleRequest) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop_token_ids=list(request.stop_ids),
            ignore_eos=True,  # stop_ids decides what ends a completion, not the model's files
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.version_by_request[request.request_id] = self.version
        self._add(request.request_id, request.token_ids, params)

    def abort(self, request_id: str) -> None:
        self.version_by_request.pop(request_id, None)
        self.engine.abort_request([request_id])
        self.finished = [completion for completion in self.finished if completion.request_id != request_id]

    def poll(self) -> list[Completion]:
        if not self.finished and self.engine.has_unfinished_requests():
            self._step()
        finished, self.finished = self.finished, []
        return finished

    def score(self, token_ids: tuple[int, ...]) -> list[float]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # skip_reading_prefix_cache: otherwise positions in the cache have no log-prob.
        params = SamplingParams(
            temperature=1.0,
            max_tokens=1,
            prompt_logprobs=0,
            detokenize=False,
            ignore_eos=True,
            seed=0,
            skip_reading_prefix_cache=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.num_scores += 1
        request_id = f"score-{self.num_scores}"
        self._add(request_id, token_ids, params)
        while True:
            for output in self._step():
                if output.request_id == request_id:
                    by_token = output.prompt_logprobs[1:]
                    return [position[token].logprob for position, token in zip(by_token, token_ids[1:], strict=True)]

    def publish(self, path: Path, version: int) -> list[str]:
        """Serve the adapter and return []; change nothing and return the modules that vLLM has no layer for, if any."""
        from vllm.lora.request import LoRARequest

        self._drain()
        num_rows = rows_by_module(path)
        [unbound] = self.engine.collective_rpc(lambda worker: unbound_modules(worker, num_rows))
        if unbound:
            return unbound
        self.unmerge()
        # A new id, name and path for every version: for a known id vLLM keeps the old adapter, and for a known name it
        # uses the old adapter's prefix cache.
        previous = self.lora_request
        self.lora_request = LoRARequest(f"version-{version}", FIRST_ADAPTER_ID + version, str(path))
        if not self.engine.add_lora(self.lora_request):
            raise RuntimeError(f"vLLM did not load adapter version {version} from {path}")
        self.version, self.num_rows = version, num_rows
        if previous is not None:
            self.engine.remove_lora(previous.lora_int_id)
        self.reset_prefix_cache()
        return []

    def merge(self) -> float:
        self._drain()
        adapter_id = self.lora_request.lora_int_id
        if self.merged is None:
            [self.merged] = self.engine.collective_rpc(lambda worker: MergedAdapter(lora_manager(worker), adapter_id))
            self.reset_prefix_cache()
        return self.merged.kept.share

    def unmerge(self) -> None:
        if self.merged is not None:
            self.merged.restore()
            self.merged = None
            self.reset_prefix_cache()

    def adapter_checksum(self) -> str | None:
        if self.lora_request is None:
            return None
        adapter_id = self.lora_request.lora_int_id
        [pairs] = self.engine.collective_rpc(lambda worker: active_pairs(worker, adapter_id, self.num_rows))
        return checksum_of_pairs(pairs)

    def reset_prefix_cache(self) -> None:
        """Clear the cache. A merged request has the base's cache key, so the next merge would read this one's cache."""
        self._drain()
        if not self.engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache: requests still hold blocks of it")

    def release(self) -> None:
        if self.is_cpu or self.is_released:
            return
        self._drain()
        # Level 2 would drop the base, and adapters do not survive that.
        if self.can_release_cache_alone:
            self.engine.sleep(level=0)
            self.engine.release_kv_cache_memory()
        else:
            self.engine.sleep(level=1)
        self.is_released = True

    def resume(self) -> None:
        if not self.is_released:
            return
        self.engine.wake_up(tags=["kv_cache"] if self.can_release_cache_alone else None)
        if self.engine.is_sleeping():
            raise RuntimeError("vLLM did not wake up: its KV cache could not be taken again")
        self.is_released = False

    @property
    def can_release_cache_alone(self) -> bool:
        """Return whether vLLM can release the cache and keep the frozen base in place (from vLLM 0.31 on)."""
        return hasattr(self.engine, "release_kv_cache_memory")

    def _drain(self) -> None:
        """Step vLLM until its scheduler is empty and no step is scheduled ahead (on CUDA).

        Ids of finished or aborted requests stay in the scheduler until the next step, and vLLM does not release its KV
        cache before that. May only be called with no request in flight.
        """
        client: Any = self.engine.engine_core
        core = client.engine_core  # in this process, because VLLM_ENABLE_V1_MULTIPROCESSING is 0
        while core.scheduler.has_requests() or core.batch_queue:
            self._step()

    def _add(self, request_id: str, token_ids: tuple[int, ...], params: Any) -> None:
        prompt: Any = {"prompt_token_ids": list(token_ids)}
        lora_request = None if self.merged else self.lora_request
        self.engine.add_request(request_id, prompt, params, lora_request=lora_request)

    def _step(self) -> list[Any]:
        """Make one engine step. Add finished samples to `finished`, return all finished outputs."""
        outputs = [output for output in self.engine.step() if output.finished]
        for output in outputs:
            if output.request_id in self.version_by_request:
                version = self.version_by_request.pop(output.request_id)
                self.finished.append(completion_of(output, version))
        return outputs


def completion_of(output: Any, version: int | None) -> Completion:
    [sample] = output.outputs
    token_ids = tuple(sample.token_ids)
    logprobs = tuple(position[token].logprob for position, token in zip(sample.logprobs or (), token_ids, strict=True))
    return Completion(
        output.request_id,
        token_ids,
        logprobs,
        sample.finish_reason,
        version,
        num_cached_tokens=output.num_cached_tokens,
    )


def engine_arguments(options: VLLMOptions, *, is_cpu: bool, gpu_memory: int = 0) -> dict[str, Any]:
    """Return the arguments for vLLM to serve versioned adapters and report log-probs as the trainer computes them.

    gpu_memory: bytes of the card
    """
    arguments: dict[str, Any] = {
        "model": options.model_path,
        "skip_tokenizer_init": True,
        "dtype": options.dtype,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "enable_lora": True,
        "max_loras": 2,  # the old version stays in its slot until the new one is loaded
        "max_cpu_loras": 2,
        "max_lora_rank": round_up_lora_rank(options.lora_rank),
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "generation_config": "vllm",
        "hf_overrides": dict(options.config_overrides),
        "disable_log_stats": True,
        "seed": 0,
    }
    if options.quantize == "nf4":
        arguments |= {"quantization": "bitsandbytes"}
    if is_cpu:
        # A seeded request with a prefill in chunks kills the engine, because CPU generators have no offset.
        arguments |= {
            "block_size": BLOCK_SIZE_ON_CPU,
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(options.max_model_len, MIN_BATCHED_TOKENS_ON_CPU),
            "kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30),
        }
    else:
        arguments |= {"gpu_memory_utilization": options.gpu_memory_fraction, "enable_sleep_mode": True}
        if gpu_memory >= LARGE_CARD:
            arguments |= {"max_num_batched_tokens": max(BATCHED_TOKENS_ON_LARGE_CARD, options.max_num_seqs)}
    return arguments
