"""A user trains models of four families in their own chat formats; the runs are killed, resumed and exported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from byte_model import byte_tokenizer
from chat_models import MODELS, ChatModel
from multimodal import write_multimodal
from run_differences import differences, read_metrics
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long

THOUGHT = "<think>\nCount on.\n</think>\n"


def tokenizer_of(model: ChatModel) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    others = ["<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "[INST]", "[/INST]"]
    known = [*([model.bos] if model.bos else []), *model.stops, *(token for token in others if token in model.template)]
    tokenizer.add_special_tokens({"additional_special_tokens": known})
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = model.bos, model.stops[-1], model.stops[-1]
    tokenizer.chat_template = model.template
    return tokenizer


def write_chat_model(model: ChatModel, folder: Path) -> Path:
    """Write a tiny model, of the multimodal class where the family has one, with all its stops for generation."""
    tokenizer = tokenizer_of(model)
    options = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **model.options}
    if model.model_type in ("gemma3", "qwen3_5"):
        write_multimodal(model.model_type, folder, tied=True, **options)
    else:
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
        positions = {"num_hidden_layers": 2, "max_position_embeddings": 1024}
        config = CONFIG_MAPPING[model.model_type](**sizes, **positions, **options)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids(list(model.stops))
    GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    return folder


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, f"scripts/{script}.py", *arguments]


def run(arguments: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def kill_after(arguments: list[str], metrics: Path, *, steps: int) -> None:
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) < steps:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended or hung before it was killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_its_own_chat_format_is_trained_killed_resumed_and_exported(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    base = write_chat_model(model, tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    with rows.open("w") as file:
        for a, b in ((a, b) for a in range(3) for b in range(4)):
            solution = f"{THOUGHT}So \\boxed{{{a + b}}}"
            print(json.dumps({"problem": f"{a}+{b}?", "answer": str(a + b), "solution": solution}), file=file)
    settings = [
        *("--config", "configs/tiny_cpu.yaml", f"model.name={base}", "model.dtype=float32", f"data.train={rows}"),
        *("data.prompt_template=chat", f"data.expert_text={'opened' if model.opened else 'full'}"),
        *("data.max_prompt_tokens=96", "rollout.max_response_tokens=64", "rollout.engine=transformers"),
        *("rollout.num_problems=2", "lora.r=4", "eval.every=0", "train.max_steps=4", "train.save_every=1"),
        *("run.deterministic=true", "run.trackers=[]", f"run.dir={tmp_path}"),
    ]
    whole = run(command("train", *settings, "run.name=whole"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert "packing check: " in whole and "layout: rows" not in whole
    parts = command("train", *settings, "run.name=parts")
    kill_after(parts, tmp_path / "parts/metrics.jsonl", steps=2)
    assert "resuming after step" in run(parts)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
    metrics = read_metrics(tmp_path / "parts/metrics.jsonl")
    assert len(metrics) == 4 and all(row["optim/grad_norm"] > 0 for row in metrics)

    run(command("export", "--run", str(tmp_path / "parts")))
    [merged] = tmp_path.glob("parts/merged*")
    exported = AutoTokenizer.from_pretrained(merged)
    messages = [{"role": "user", "content": "1+1?"}]
    assert exported.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    )
    ends = GenerationConfig.from_pretrained(merged).eos_token_id
    assert set(ends if isinstance(ends, list) else [ends]) == {*tokenizer.convert_tokens_to_ids(list(model.stops))}
    assert AutoModelForCausalLM.from_pretrained(merged).config.vocab_size == len(tokenizer)
