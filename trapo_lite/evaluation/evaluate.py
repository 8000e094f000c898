"""Evaluate a model, or a run's adapter on its base, on one or more sets of problems."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from trapo_lite.config import Config
from trapo_lite.config.paths import check_function_files, check_name
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.in_words import counted
from trapo_lite.data.chat import prompt_line, prompt_settings, stop_ids_of
from trapo_lite.data.tokens import load_tokenizer, text_of
from trapo_lite.engines import parity
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.engines.group import EngineGroup
from trapo_lite.engines.start import check_served, start_engine
from trapo_lite.evaluation.answer_store import AnswerLog
from trapo_lite.evaluation.draws import evaluate_problems
from trapo_lite.evaluation.problem_sets import ProblemSet, read_sets, require_positions
from trapo_lite.evaluation.report import report_lines
from trapo_lite.evaluation.results import EvalResult
from trapo_lite.evaluation.target import EvalTarget
from trapo_lite.model.adapter_config import read_config
from trapo_lite.model.base import check_weight_files, model_config, model_lines, weights_fingerprint, with_one_rope
from trapo_lite.model.positions import num_positions
from trapo_lite.model.saved_adapter import check_fit, read_tensors
from trapo_lite.model.threads import set_threads
from trapo_lite.reward import Scorer
from trapo_lite.reward.fingerprints import function_fingerprints, verifier_fingerprint
from trapo_lite.reward.start_check import start_lines
from trapo_lite.rollout.settings import sampling_settings
from trapo_lite.rollout.token_checks import require_embeddings
from trapo_lite.run.cards import require_usable_cards
from trapo_lite.run.environment import this_environment
from trapo_lite.run.files import lock, make_folder
from trapo_lite.run.lines import Lines
from trapo_lite.run.trained_with import require_as_trained


def evaluate(target: EvalTarget) -> dict[str, EvalResult]:
    """Sample, grade, write the results and print a table. Return the results by name of the set.

    An interrupted evaluation is resumed, a complete one is only read. Raises ConfigError, DataError, ModelError or
    EngineError. All checks that need no model run before it is loaded.
    """
    with Lines() as lines:
        lines.phase("reading the model's files and the problems")
        return _evaluate(target, lines)


def _evaluate(target: EvalTarget, lines: Lines) -> dict[str, EvalResult]:
    config, say = target.config, lines.message
    if target.origin_line:
        say(target.origin_line)
    if not target.benchmarks:  # which are graded by math alone
        check_function_files(config)
    if config.rollout.engine != "server":
        require_usable_cards(num_processes=max(1, torch.cuda.device_count()))
    check_name(config.model.name)
    tokenizer = load_tokenizer(config.model.name)
    stop_ids = stop_ids_of(config.data, tokenizer, model=config.model.name)
    sets = read_sets(
        config,
        target.benchmarks,
        tokenizer,
        num_samples=target.num_samples,
        num_problems=target.num_problems,
        allow_part=target.allow_part,
    )
    require_embeddings(config, tokenizer, [problem for problem_set in sets for problem in problem_set.problems])
    check_served(config)
    base = model_config(config.model)
    set_threads(config)
    check_weight_files(config.model.name)
    max_model_len = require_positions(config, sets, available=num_positions(base))
    config, rope_lines = with_one_rope(config, max_model_len=max_model_len)
    target = replace(target, config=config)
    if target.adapter_dir is not None:
        _require_adapter_fits(config, target.adapter_dir, base)
    if target.run is not None:
        prompt = None if target.is_prompt_given else prompt_settings(config.data, tokenizer, stop_ids)
        weights = weights_fingerprint(config.model.name)
        require_as_trained(target.run, name=config.model.name, weights=weights, prompt=prompt)
    say("\n".join(line for problem_set in sets for line in problem_set.report))
    prompt = prompt_line(config.data, tokenizer, stop_ids=stop_ids)
    say("\n".join([*model_lines(config.model), *rope_lines, prompt]))
    make_folder(target.out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock(target.out, option="--out"))
        logs = [_log_of(target, problem_set, tokenizer) for problem_set in sets]
        for log in logs:
            if changed := "; ".join(log.code_changes):
                say(f"warning: {log.partial_file}: was begun by other code or versions ({changed})")
        engine, scorers = None, {}
        if all(log.is_complete for log in logs):
            say(f"{target.out} holds all answers already: they are read, not sampled again; --restart samples new ones")
        if not all(log.is_complete for log in logs):
            num_done = sum(len(log.done) for log in logs)
            already_done = f"; {counted(num_done, 'problem')} done" if num_done else ""
            say(f"starting {config.rollout.engine} with {target.model_name}{already_done}")
            lines.phase(f"starting {config.rollout.engine}")
            for problem_set in sets:  # benchmarks share one, and a file of problems is alone
                if problem_set.name not in scorers:
                    shared = [s for s in sets if s.rewards == problem_set.rewards]
                    scorer = stack.enter_context(Scorer(problem_set.rewards, notify=say))
                    scorers |= {one.name: scorer for one in shared}
                    if problem_set.rewards.own_functions:
                        decode = partial(text_of, tokenizer)
                        problems, option = problem_set.problems, "--data or eval.data"
                        say("\n".join(start_lines(problem_set.rewards, scorer, problems, decode, option=option)))
            engine = _start_engines(config, max_model_len=max_model_len, folder=target.out, say=say)
            stack.callback(engine.close)
            if target.adapter_dir is not None:
                _publish(engine, target.adapter_dir, dtype=getattr(torch, config.model.dtype))
        results = {}
        for problem_set, log in zip(sets, logs, strict=True):
            if engine is not None and not log.is_complete:
                _draw(config, problem_set, log, engine, scorers[problem_set.name], tokenizer, lines)
                scorers[problem_set.name].require_success()
            results[problem_set.name] = log.finish(seed=config.run.seed)
    lines.results(report_lines(target, sets, results))
    return results


def _require_adapter_fits(config: Config, adapter_dir: Path, base: PreTrainedConfig) -> None:
    """Raise an error if the adapter fits another base, or has another rank than the vLLM engine is started for."""
    adapter = read_config(adapter_dir, option="--adapter")
    check_fit(adapter, base)
    read_tensors(adapter)
    if config.rollout.engine == "vllm" and adapter.r != config.lora.r:
        raise ConfigError(f"lora.r: {config.lora.r}, but the adapter {adapter_dir} has {adapter.r}; set lora.r to that")


def _start_engines(
    config: Config, *, max_model_len: int, folder: Path, say: Callable[[str], None]
) -> RolloutEngine | EngineGroup:
    """Start an engine on every card that this process may use, or one on the CPU."""
    start = partial(start_engine, config, max_model_len=max_model_len, notify=say)
    cards = torch.cuda.device_count() if torch.cuda.is_available() and config.rollout.engine != "server" else 0
    if cards < 2:
        return start(log_path=folder / "engine.log", device_index=0 if cards else None)
    return EngineGroup(
        [
            partial(start, log_path=folder / f"engine-{card}.log", device_index=card, num_engines=cards)
            for card in range(cards)
        ]
    )


def _draw(
    config: Config,
    problem_set: ProblemSet,
    log: AnswerLog,
    engine: RolloutEngine | EngineGroup,
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    lines: Lines,
) -> None:
    """Draw the missing answers of one set. Each problem's answers are on disk as soon as they are graded."""
    missing = [problem for problem in problem_set.problems if problem.id not in log.done]
    lines.phase(f"{problem_set.name}: sampling and grading")

    def show(done: int, expected: int) -> None:
        progress.update(task, completed=done)
        lines.count(done, expected, "answers")

    with Progress(console=lines.console, transient=True, disable=lines.is_plain) as progress:
        task = progress.add_task(problem_set.name, total=len(missing) * problem_set.num_samples)
        evaluate_problems(
            engine,
            scorer,
            missing,
            num_samples=problem_set.num_samples,
            settings=sampling_settings(config, tokenizer, for_eval=True),
            decode=partial(text_of, tokenizer),
            on_progress=show,
            on_group=log.append,
        )


def _log_of(target: EvalTarget, problem_set: ProblemSet, tokenizer: PreTrainedTokenizerBase) -> AnswerLog:
    config, settings = target.config, sampling_settings(target.config, tokenizer, for_eval=True)
    described: dict[str, Any] = {
        "weights": weights_fingerprint(config.model.name),
        "adapter_weights": None if target.adapter_dir is None else weights_fingerprint(str(target.adapter_dir)),
        "config_overrides": config.model.config_overrides,
        "quantize": config.model.quantize,
        "dtype": config.model.dtype,
        **problem_set.described(),
        "num_samples": problem_set.num_samples,
        "engine": config.rollout.engine,
        "stop_ids": list(settings.stop_ids),
        "temperature": config.eval.temperature,
        "top_p": config.rollout.top_p,
        "top_k": config.rollout.top_k,
        "max_response_tokens": config.eval.max_response_tokens or config.rollout.max_response_tokens,
        "require_box": config.reward.require_box,
        "verifier": verifier_fingerprint(),
        "seed": config.run.seed,
    }
    if own := function_fingerprints(problem_set.rewards.own_functions):
        described["functions"] = own
    noted = {
        **problem_set.noted(),
        "model": config.model.name,
        "adapter": None if target.adapter_dir is None else str(target.adapter_dir.resolve()),
        "environment": this_environment(),
    }
    return AnswerLog(
        target.out,
        problem_set.name,
        described=described,
        noted=noted,
        problem_ids=[problem.id for problem in problem_set.problems],
        num_samples=problem_set.num_samples,
        restart=target.restart,
    )


def _publish(engine: RolloutEngine | EngineGroup, adapter_dir: Path, *, dtype: torch.dtype) -> None:
    engine.publish(adapter_dir, 1)
    parity.require_checksum(engine.adapter_checksum(), expected=parity.checksum(adapter_dir, dtype=dtype), version=1)
