"""Make the command that starts a `vllm serve` endpoint for training, for messages of the server engine."""


def start_command(
    max_model_len: int, *, model: str = "MODEL", rank: int | str = "RANK", dtype: str = "DTYPE", overrides: str = ""
) -> str:
    """Return the command that starts an endpoint for training."""
    hf_overrides = f" --hf-overrides '{overrides}'" if overrides else ""
    return (
        f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 python -m vllm.entrypoints.openai.api_server --model {model} "
        f"--dtype {dtype} --enable-lora --max-loras 2 --max-lora-rank {rank} --max-model-len {max_model_len} "
        f"--generation-config vllm --logprobs-mode processed_logprobs{hf_overrides} --port PORT "
        "(--max-loras: 2 for each trainer process; on a CPU also --no-enable-chunked-prefill "
        "--max-num-batched-tokens 8192 --kv-cache-memory-bytes 1073741824)"
    )
