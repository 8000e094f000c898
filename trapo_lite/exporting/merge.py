"""Merge base and adapter into one checkpoint, and refuse it if it is not the trained policy.

    base in float32 -> + alpha / r * B A -> rounded once -> saved beside `out` -> loaded again, compared -> renamed

A checkpoint that fails the comparison is deleted, so that a checkpoint at `out` has passed it.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trapo_lite.config import DataSection, ModelSection
from trapo_lite.config.paths import check_name
from trapo_lite.config.prompt_file import PROMPT_FILE, prompt_yaml
from trapo_lite.core.errors import ExportError
from trapo_lite.data.chat import prompt_settings, stop_ids_of, template_with_defaults
from trapo_lite.data.tokens import load_tokenizer, texts_of
from trapo_lite.exporting.model_card import model_card
from trapo_lite.exporting.report import ExportDtype, ExportReport, compare
from trapo_lite.exporting.saving import move_synced, save_model
from trapo_lite.model.adapter_config import AdapterConfig, AdapterError, read_config
from trapo_lite.model.base import load_base, model_config, weights_fingerprint
from trapo_lite.model.logprobs import probe_sequences
from trapo_lite.model.positions import num_positions
from trapo_lite.model.saved_adapter import check_fit, load_by_name, read_tensors
from trapo_lite.run.environment import this_environment
from trapo_lite.run.folder import RunFolder, final_adapter, load_run_config
from trapo_lite.run.lines import Lines
from trapo_lite.run.trained_with import require_as_trained

MIN_PROBE_TOKENS = 1024
MAX_PROBE_LENGTH = 257


def export_run(
    run: Path,
    overrides: Sequence[str] = (),
    *,
    adapter_dir: Path | None = None,
    out: Path | None = None,
    dtype: ExportDtype | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Export a run from its folder's config.yaml; by default run/adapter to run/merged in the run's model.dtype."""
    with Lines() as lines:
        lines.phase("export: reading the run and the base's files")
        return _export_run(
            run, overrides, adapter_dir=adapter_dir, out=out, dtype=dtype, overwrite=overwrite, phase=lines.phase
        )


def _export_run(
    run: Path,
    overrides: Sequence[str],
    *,
    adapter_dir: Path | None,
    out: Path | None,
    dtype: ExportDtype | None,
    overwrite: bool,
    phase: Callable[[str], None],
) -> ExportReport:
    trained = load_run_config(run)
    config = load_run_config(run, overrides=overrides)
    if config.model.quantize != trained.model.quantize:
        raise ExportError(
            f"model.quantize={config.model.quantize}: the adapter was trained on a base with quantize "
            f"{trained.model.quantize} and corrects that one's errors; remove the override"
        )
    check_name(config.model.name)
    tokenizer = load_tokenizer(config.model.name)
    stop_ids = stop_ids_of(config.data, tokenizer, model=config.model.name)
    is_prompt_given = config.data != trained.data
    prompt = None if is_prompt_given else prompt_settings(config.data, tokenizer, stop_ids)
    weights = weights_fingerprint(config.model.name)
    require_as_trained(run, name=config.model.name, weights=weights, prompt=prompt)
    return export_merged(
        model=config.model,
        adapter_dir=adapter_dir or final_adapter(run),
        out=out or run / "merged",
        dtype=dtype or config.model.dtype,
        data=config.data,
        max_response_tokens=config.eval.max_response_tokens or config.rollout.max_response_tokens,
        trained=RunFolder(run).starts(),
        overwrite=overwrite,
        phase=phase,
    )


def export_merged(
    *,
    model: ModelSection,
    adapter_dir: Path,
    out: Path,
    dtype: ExportDtype,
    data: DataSection,
    max_response_tokens: int,
    trained: Sequence[Mapping[str, Any]] = (),
    overwrite: bool = False,
    phase: Callable[[str], None] = lambda text: None,
) -> ExportReport:
    """Write base + adapter to the folder `out` as one safetensors checkpoint with tokenizer and generation config.

    The folder also holds a card, environment.json, and the prompts of training for evaluation (config/prompt_file.py).

    data:      says how prompts were made and which tokens end answers; the chat template that is saved takes its
               template_options as defaults, unless `template_with_defaults` cannot make such a template
    max_response_tokens: what answers may have in an evaluation of the checkpoint, if nothing else is asked for
    trained:   the environment.json of the adapter's run; it is kept in that of the checkpoint
    phase:     told what is done from now on
    An nf4 base is de-quantised, because the adapter was trained on the de-quantised weights.
    Raises ExportError, and leaves `out` as it was, for a missing or foreign adapter, an `out` in use, a full disk, and
    a checkpoint that differs from base + adapter by more than `ExportReport.refusal` allows.
    """
    adapter = _checked_adapter(adapter_dir, model)
    _require_free(out, overwrite=overwrite)
    tokenizer = load_tokenizer(model.name)
    stop_ids = stop_ids_of(data, tokenizer, model=model.name)
    template = template_with_defaults(data, tokenizer)
    tokenizer.chat_template = template or tokenizer.chat_template
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        report = _write_checked(model, adapter, partial, out, dtype, tokenizer, stop_ids, phase)
        made_by = this_environment()
        card = model_card(
            model=model,
            adapter=adapter.fields,
            dtype=dtype,
            data=data,
            ends=texts_of(tokenizer, stop_ids),
            has_defaults=template is not None,
            results=report.lines()[1:],
            environment=made_by,
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
        (partial / PROMPT_FILE).write_text(prompt_yaml(data, max_response_tokens=max_response_tokens), encoding="utf-8")
        made_of = {"adapter": weights_fingerprint(str(adapter_dir)), "exported": made_by, "trained": list(trained)}
        record = json.dumps(made_of, indent=1, ensure_ascii=False)
        (partial / "environment.json").write_text(record + "\n", encoding="utf-8")
        move_synced(partial, out)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        raise ExportError(f"{out}: cannot be written: {error}; make room or choose another --out") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _write_checked(
    section: ModelSection,
    adapter: AdapterConfig,
    folder: Path,
    out: Path,
    dtype: ExportDtype,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    phase: Callable[[str], None],
) -> ExportReport:
    """Merge, save to `folder`, load it again and compare. One copy of the model is in memory at a time."""
    phase(f"export: loading {section.name}")
    base = load_float32_base(section)
    phase("export: computing log-probs of base and adapter")
    probe = _probe_of(base)
    base_logprobs = logprobs(base, probe)
    policy = _with_adapter(base, adapter)
    policy_logprobs = logprobs(policy, probe)
    phase("export: merging")
    merged = policy.merge_and_unload(safe_merge=True)
    phase(f"export: writing {folder}")
    save_model(_rounded_(merged, getattr(torch, dtype)), folder, tokenizer, stop_ids)
    del base, policy, merged

    phase("export: loading the merged checkpoint and computing its log-probs")
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    saved_logprobs = logprobs(saved, probe)
    noise = 0.0
    if dtype == "bfloat16":
        noise = float((logprobs(_dithered_(saved), probe) - saved_logprobs).abs().mean())
    report = compare(saved_logprobs, policy_logprobs, base_logprobs, out=out, dtype=dtype, rounding_noise=noise)
    if problem := report.refusal():
        raise ExportError(f"{out}: refused, the merged checkpoint is not the trained policy: {problem}")
    return report


def load_float32_base(section: ModelSection) -> PreTrainedModel:
    """Load the base in float32 on the CPU. An nf4 base is loaded as for training, then de-quantised."""
    if section.quantize == "none":
        return load_base(section.model_copy(update={"dtype": "float32"}), device="cpu", attention=None).eval()
    base = load_base(section, device="cpu", attention=None).dequantize(dtype=torch.float32)
    return _rounded_(base, torch.float32).eval()  # unquantised weights are still in section.dtype


@torch.inference_mode()
def logprobs(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return log p of every token after the first of its sequence, all sequences in one tensor: (n,), float64."""
    values = []
    for token_ids in sequences:
        ids = torch.tensor([list(token_ids)])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        values.append(logits.log_softmax(dim=-1).gather(1, ids[0, 1:, None]).squeeze(1))
    return torch.cat(values).double()


def _probe_of(base: PreTrainedModel) -> list[list[int]]:
    length = min(MAX_PROBE_LENGTH, num_positions(base.config))
    return probe_sequences(vocab_size=base.config.vocab_size, num_tokens=MIN_PROBE_TOKENS, max_length=length)


def _with_adapter(base: PreTrainedModel, adapter: AdapterConfig) -> Any:
    from peft import get_peft_model

    policy = get_peft_model(base, adapter.to_peft())
    load_by_name(policy, read_tensors(adapter), where=adapter.where)
    return policy.eval()


def _rounded_(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Round the weights in place. RoPE's frequencies are buffers and stay in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _dithered_(model: PreTrainedModel) -> PreTrainedModel:
    """Move every weight in place at random by up to half a unit in bfloat16's last place, as rounding does.

    Weights that are in bfloat16 already cannot be rounded again to measure the error of rounding.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        _, exponent = torch.frexp(parameter.data)
        unit = torch.ldexp(parameter.data.ne(0).float(), exponent - 8)  # 8 bits of precision, including the leading one
        parameter.data += (torch.rand(parameter.shape, generator=generator) - 0.5) * unit
    return model


def _checked_adapter(adapter_dir: Path, model: ModelSection) -> AdapterConfig:
    """Read the adapter's configuration. Raise ExportError unless it is a plain LoRA adapter that fits the model."""
    try:
        adapter = read_config(adapter_dir, option="--adapter")
        check_fit(adapter, model_config(model))
        read_tensors(adapter)
    except AdapterError as error:
        raise ExportError(str(error)) from None
    return adapter


def _require_free(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        if not (out / "config.json").is_file():
            raise ExportError(f"--out {out}: exists already and is no checkpoint; choose another folder")
        raise ExportError(f"--out {out}: exists already; choose another folder or pass --overwrite")
    if out.exists() and not (out / "config.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"--out {out}: is not a model folder, so it is not overwritten; choose another")
