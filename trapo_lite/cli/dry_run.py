"""Check all of a run that needs no weights, and say what it would do."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trapo_lite.config import Config
from trapo_lite.config.unusual import unusual_lines
from trapo_lite.core.errors import ConfigError, DataError, ModelError
from trapo_lite.core.in_words import counted
from trapo_lite.run.lines import Lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def dry_run(config: Config, *, restart: bool) -> None:
    """Print what the run would do, each warning, and at the end how many there were. Raise what the run would raise."""
    from trapo_lite.run.loggers import check_loggers

    warnings: list[str] = []
    with Lines() as lines:

        def say(line: str) -> None:
            lines.results([line])
            if line.startswith("warning: "):
                warnings.append(line)

        lines.phase("checking the run")
        for line in unusual_lines(config):
            say(line)
        check_loggers(config)
        is_readable = _is_readable(config.model.name)
        for line in _checks(config, lines, say, restart=restart) if is_readable else _checks_without_model(config):
            say(line)
        num_warnings = counted(len(warnings), "warning") if warnings else "no warning"
        part = "" if is_readable else " in the configuration, and checked nothing else"
        say(f"the dry run found no error and {num_warnings}{part}; nothing was written")


def _checks_without_model(config: Config) -> Iterator[str]:
    """Check the configuration alone, and yield the plan of a step."""
    from trapo_lite.model.saved_adapter import check_start
    from trapo_lite.planning.report import plan_lines

    if config.lora.init_from is not None:
        check_start(config.lora)
    yield from plan_lines(config)
    yield (
        f"warning: model.name: {config.model.name} is no folder here, so it is taken for a hub id: nothing of the "
        "model was checked, nor its tokenizer, its template, the data or the engine; name a local folder "
        "to check them"
    )


def _checks(config: Config, lines: Lines, say: Callable[[str], None], *, restart: bool) -> Iterator[str]:
    """Check the model and its tokenizer, and yield the plan of a step; at the end ask vLLM, which takes seconds."""
    from trapo_lite.data.template import check_prompt, open_turn_warnings
    from trapo_lite.data.tokens import load_tokenizer
    from trapo_lite.engines.start import ask_vllm, check_served
    from trapo_lite.model.base import model_lines, model_shape, with_one_rope
    from trapo_lite.model.layout import check_model
    from trapo_lite.planning.memory import checkpoint_bytes
    from trapo_lite.planning.report import plan_lines
    from trapo_lite.run.folder import bytes_of_checkpoints
    from trapo_lite.run.outlook import disk_line
    from trapo_lite.training.inputs import check_start_fits

    config, rope_lines = with_one_rope(config, max_model_len=config.max_model_len)
    layout = check_model(config)
    if config.uses_engine:
        check_served(config)
    check_start_fits(config, reads_weights=False)
    tokenizer = load_tokenizer(config.model.name)
    prompt = check_prompt(config.data, tokenizer, model=config.model.name)
    yield from plan_lines(config)
    written = 0 if restart else bytes_of_checkpoints(config.run.folder / "checkpoints")
    needed = checkpoint_bytes(config, model_shape(config).adapter_parameters)
    yield disk_line(config, needed, written_bytes=written)
    yield from _data_lines(config, tokenizer, lines, say, restart=restart)
    yield from [*model_lines(config.model), *rope_lines]
    yield layout.line or "layout: tree"
    yield prompt
    yield from open_turn_warnings(config.data, tokenizer)
    if config.uses_engine and config.rollout.engine == "vllm":
        lines.phase("asking vLLM")
        yield "asking vLLM whether it serves this class of models, which takes it some seconds"
        yield ask_vllm(config, notify=say)


def _data_lines(
    config: Config, tokenizer: "PreTrainedTokenizerBase", lines: Lines, say: Callable[[str], None], *, restart: bool
) -> Iterator[str]:
    """Yield what a run would say of its data, its folder and its reward functions. Data of the hub is not read."""
    from trapo_lite.data.chat import prompt_settings, stop_ids_of
    from trapo_lite.data.tokens import text_of
    from trapo_lite.reward import Scorer
    from trapo_lite.reward.expert_check import expert_lines
    from trapo_lite.reward.start_check import require_loadable, start_lines
    from trapo_lite.training.inputs import data_fingerprint, read_eval_problems, read_problems, share_lines
    from trapo_lite.training.resume import earlier_run_lines

    in_eval = config.eval.data if config.eval.every and config.eval.data is not None else []
    sources = [*config.data.sources, *([in_eval] if isinstance(in_eval, str) else in_eval)]
    remote = [source for source in sources if not Path(source).expanduser().is_file()]
    if remote:
        require_loadable(config.reward)
        yield (
            f"data: {', '.join(remote)} is read from the hub when the run starts, so its rows were not checked, nor "
            f"whether an earlier run in {config.run.folder} can be resumed"
        )
        return
    lines.phase("reading the data")
    problems, report, order = read_problems(config, tokenizer)
    eval_problems = read_eval_problems(config, tokenizer)
    yield from [*report.lines(), *share_lines(config, order)]
    if not restart:
        prompt = prompt_settings(config.data, tokenizer, stop_ids_of(config.data, tokenizer, model=config.model.name))
        yield from earlier_run_lines(config, prompt=prompt, data_fingerprint=data_fingerprint(report, order))
    lines.phase("scoring expert solutions")
    decode = functools.partial(text_of, tokenizer)
    with Scorer(config.reward, notify=say) as scorer:
        yield from start_lines(config.reward, scorer, problems, decode)
        if eval_problems and config.reward.own_functions:
            yield f"eval.data: {config.eval.data}: {counted(len(eval_problems), 'problem')}"
            yield from start_lines(config.reward, scorer, eval_problems, decode, option="eval.data")
        if config.algorithm.needs_solutions:
            yield from expert_lines(scorer, problems, decode)


def _is_readable(name: str) -> bool:
    """Return whether the model is a folder, or a hub id whose config.json and tokenizer are cached or can be had."""
    from trapo_lite.data.tokens import load_tokenizer
    from trapo_lite.model.base import multimodal_type

    if Path(name).is_dir():
        return True  # what is wrong in it is an error
    try:
        multimodal_type(name)
        load_tokenizer(name)
    except (ConfigError, DataError, ModelError):
        return False
    return True
