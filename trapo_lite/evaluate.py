"""The evaluation job: what a model, or a run's adapter on its base, solves of a set of problems."""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from trapo_lite import parity
from trapo_lite.base_model import check_name, model_config
from trapo_lite.config import Config, ConfigError, load_config
from trapo_lite.data import DataError, load_problems, load_tokenizer, text_of
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.engines.start import start_engine
from trapo_lite.evaluation import EvalResult, evaluate_problems
from trapo_lite.inputs import sampling_settings
from trapo_lite.launch import set_threads
from trapo_lite.reward import MathVerifier
from trapo_lite.run_folder import final_adapter, load_run_config
from trapo_lite.types import Problem


@dataclass(frozen=True)
class EvalTarget:
    """What is evaluated, on what, and where the results go: `out` and, beside it, the answers in a .jsonl.

    adapter_dir: a PEFT adapter on config.model; None: the model by itself
    """

    config: Config
    adapter_dir: Path | None
    out: Path

    @property
    def answers_path(self) -> Path:
        return self.out.with_suffix(".jsonl")


def target_from_arguments(
    *,
    run: Path | None,
    model: str | None,
    adapter: Path | None,
    base: bool,
    data: str | None,
    num_samples: int | None,
    out: Path | None,
    config: Sequence[str],
    overrides: Sequence[str],
) -> EvalTarget:
    """What scripts/evaluate.py was asked for; ConfigError where options contradict each other or name nothing.

    run:   its adapter (`adapter`, by default run/adapter) unmerged on its base, or with `base` the base alone;
           results in run/eval
    model: by itself; results in ./eval
    """
    given = {"eval.data": data, "eval.num_samples": num_samples, "model.name": model}
    set_by_options = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    every_override = [*overrides, *set_by_options]
    resolved = load_config(config, every_override) if run is None else load_run_config(run, config, every_override)
    if run is None:
        if base or adapter is not None:
            raise ConfigError("--base, --adapter: say which adapter of a run; give --run instead of --model")
        name, adapter_dir = Path(resolved.model.name).name, None
    else:
        adapter_dir = _adapter_of(run, adapter, base=base)
        name = "base" if adapter_dir is None else adapter_dir.name
    folder = Path("eval") if run is None else run / "eval"
    data_name = Path(resolved.eval.data or "").stem.replace(":", "-")
    return EvalTarget(resolved, adapter_dir, out or folder / f"{name}-{data_name}.json")


def _adapter_of(run: Path, adapter: Path | None, *, base: bool) -> Path | None:
    if base and adapter is not None:
        raise ConfigError(f"--base: is the model without an adapter, but --adapter {adapter} is one; choose one")
    if base:
        return None
    folder = adapter or final_adapter(run)
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"--adapter {folder}: holds no adapter_config.json; give the folder of a PEFT adapter (RUN/adapter "
            "after a finished run, RUN/checkpoints/step-... before) or --base"
        )
    return folder


def evaluate(target: EvalTarget) -> EvalResult:
    """Sample, grade, print a table, write the results.

    Raises ConfigError, DataError, ModelError or EngineError; nothing is loaded before what can be checked is checked.
    """
    config, console = target.config, Console()
    set_threads(config)
    check_name(config.model.name)
    tokenizer = load_tokenizer(config.model.name)
    problems, report = _read_problems(config, tokenizer)
    console.print("\n".join(report), markup=False, highlight=False, soft_wrap=True)
    limit = config.eval.max_response_tokens or config.rollout.max_response_tokens
    max_model_len = _require_positions(config, problems, limit)
    with contextlib.ExitStack() as stack:
        _make_parent(target.out)
        console.print(f"starting {config.rollout.engine} with {_model_name(target)}", markup=False, highlight=False)
        verifier = stack.enter_context(MathVerifier.from_config(config.reward))
        engine = start_engine(
            config,
            max_model_len=max_model_len,
            log_path=target.out.with_suffix(".engine.log"),
            device_index=0 if torch.cuda.is_available() else None,
            notify=partial(console.print, markup=False, highlight=False, soft_wrap=True),
        )
        stack.callback(engine.close)
        if target.adapter_dir is not None:
            _publish(engine, target.adapter_dir, dtype=getattr(torch, config.model.dtype))
        started = time.perf_counter()
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("answers", total=len(problems) * config.eval.num_samples)
            result = evaluate_problems(
                engine,
                verifier,
                problems,
                num_samples=config.eval.num_samples,
                settings=sampling_settings(config, tokenizer, for_eval=True),
                decode=partial(text_of, tokenizer),
                on_progress=lambda done, expected: progress.update(task, completed=done),
            )
    _write(target, result, partial(text_of, tokenizer), seconds=time.perf_counter() - started)
    console.print("\n".join(table_lines(target, result)), markup=False, highlight=False, soft_wrap=True)
    return result


def table_lines(target: EvalTarget, result: EvalResult) -> list[str]:
    """For people."""
    low, high = result.interval_95
    verdicts = ", ".join(f"{count} {kind}" for kind, count in result.verdicts.items())
    drawn = f"{len(result.problems)} problems x {len(result.groups[0])}"
    lines = [
        f"{_model_name(target)} on {target.config.eval.data}",
        f"  accuracy   {result.accuracy:.3f}  (95 %: {low:.3f} to {high:.3f})",
        f"  drawn      {drawn} at temperature {target.config.eval.temperature:g}",
        f"  verdicts   {verdicts}",
        f"  no answer  {result.no_answer_share:.1%}",
        f"  truncated  {result.truncated_share:.1%}",
        f"  tokens     {result.mean_tokens:.1f} an answer",
        f"  results    {target.out}, {target.answers_path.name}",
    ]
    if target.config.run.deterministic and result.verdicts.get("timeout"):
        lines.append("  a verdict timed out, so run.deterministic cannot promise the same numbers again")
    return lines


def _read_problems(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Problem], list[str]]:
    """Problems of eval.data and the report's lines; whether there are expert solutions does not matter here."""
    if config.eval.data is None:
        raise ConfigError("eval.data: there is nothing to evaluate on; set it, or give --data FILE")
    data = config.data.model_copy(update={"require_expert": False})
    problems, report = load_problems(
        data, tokenizer, max_response_tokens=config.rollout.max_response_tokens, files=config.eval.data
    )
    dropped = [line for line in report.lines() if "rows dropped" in line]
    return problems[: config.eval.num_problems], [report.lines()[0], *dropped]


def _require_positions(config: Config, problems: Sequence[Problem], limit: int) -> int:
    """Tokens of the longest prompt and answer; ConfigError if the model has no positions for them."""
    needed = max(len(problem.prompt_ids) for problem in problems) + limit
    available = model_config(config.model).max_position_embeddings
    if needed > available:
        raise ConfigError(
            f"eval.max_response_tokens: prompt and answer need {needed} tokens, but {config.model.name} has positions "
            f"for {available}; lower it, or give --config with the settings that the model was trained with"
        )
    return needed


def _publish(engine: RolloutEngine, adapter_dir: Path, *, dtype: torch.dtype) -> None:
    engine.publish(adapter_dir, 1)
    parity.require_checksum(engine.adapter_checksum(), expected=parity.checksum(adapter_dir, dtype=dtype), version=1)


def _write(target: EvalTarget, result: EvalResult, decode: Callable[[Sequence[int]], str], *, seconds: float) -> None:
    """The answers first, so that a summary never stands alone; each file in one rename."""
    config = target.config
    described: dict[str, Any] = {
        "model": config.model.name,
        "adapter": None if target.adapter_dir is None else str(target.adapter_dir),
        "data": config.eval.data,
        "engine": config.rollout.engine,
        "temperature": config.eval.temperature,
        "top_p": config.rollout.top_p,
        "max_response_tokens": config.eval.max_response_tokens or config.rollout.max_response_tokens,
        "seed": config.run.seed,
    }
    answers = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in result.answers(decode))
    summary = {**described, **result.summary(), "seconds": round(seconds, 1), "answers": target.answers_path.name}
    _replace_text(target.answers_path, answers)
    _replace_text(target.out, json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise DataError(f"--out {path}: cannot be written: {reason}; make room or choose another place") from None


def _make_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: its folder cannot be made: {error.strerror}; choose another place") from None


def _model_name(target: EvalTarget) -> str:
    base = target.config.model.name
    return base if target.adapter_dir is None else f"{base} + {target.adapter_dir}"
