"""Read and check all inputs of a run that need no loaded model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import Config
from trapo_lite.config.paths import check_paths
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.in_words import counted
from trapo_lite.core.types import Problem
from trapo_lite.data.chat import prompt_settings, stop_ids_of
from trapo_lite.data.expert_thoughts import require_fitting_experts
from trapo_lite.data.loading import load_problems, require_experts
from trapo_lite.data.order import ProblemOrder
from trapo_lite.data.report import DataReport
from trapo_lite.data.teacher_prompts import with_teacher_prompts
from trapo_lite.data.tokens import load_tokenizer
from trapo_lite.engines.start import check_served
from trapo_lite.model.adapter_config import own_config
from trapo_lite.model.base import check_weight_files, model_config, with_one_rope
from trapo_lite.model.layout import Layout, check_model
from trapo_lite.model.saved_adapter import check_fit, check_start, read_tensors
from trapo_lite.rollout.token_checks import require_embeddings
from trapo_lite.run.loggers import check_loggers


@dataclass(frozen=True)
class Inputs:
    """Inputs hold the problems as tokens, and how the model's rollouts will run.

    config:     with RoPE as the engine serves it
    rope_lines: for the user, on that
    stop_ids:   the tokens that end a completion
    prompt:     what the run must keep of prompts (`data.chat.prompt_settings`)
    """

    config: Config
    rope_lines: list[str]

    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    prompt: dict[str, Any]
    problems: list[Problem]
    report: DataReport
    eval_problems: list[Problem]
    layout: Layout
    order: ProblemOrder

    @property
    def fingerprint(self) -> str:
        """Return the `data_fingerprint` of the problems and their order."""
        return data_fingerprint(self.report, self.order)


def data_fingerprint(report: DataReport, order: ProblemOrder) -> str:
    """Return what a resumed run must find again of the data: its content, and what is drawn as one source."""
    sizes = [len(members) for members in order.sources]
    return report.fingerprint if len(sizes) == 1 else f"{report.fingerprint}, sources of {sizes}"


def check_start_fits(config: Config, *, reads_weights: bool) -> None:
    """Raise AdapterError unless the adapter of `lora.init_from` fits this base and this `lora` section.

    reads_weights: also refuse weights that are not finite; otherwise only names and shapes are read
    """
    if config.lora.init_from is None:
        return
    start = check_start(config.lora)
    check_fit(start, model_config(config.model), wanted=own_config(config.lora))
    if reads_weights:
        read_tensors(start)


def read_inputs(config: Config) -> Inputs:
    """Read tokenizer and problems and check the configuration; raise ConfigError, DataError or ModelError."""
    check_loggers(config)
    check_paths(config)
    config, rope_lines = with_one_rope(config, max_model_len=config.max_model_len)
    layout = check_model(config)
    if config.uses_engine:
        check_served(config)
    check_weight_files(config.model.name)
    check_start_fits(config, reads_weights=True)
    tokenizer = load_tokenizer(config.model.name)
    stop_ids = stop_ids_of(config.data, tokenizer, model=config.model.name)
    problems, report, order = read_problems(config, tokenizer)
    eval_problems = read_eval_problems(config, tokenizer)
    require_embeddings(config, tokenizer, [*problems, *eval_problems])
    prompt = prompt_settings(config.data, tokenizer, stop_ids)
    return Inputs(config, rope_lines, tokenizer, stop_ids, prompt, problems, report, eval_problems, layout, order)


def read_problems(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Problem], DataReport, ProblemOrder]:
    """Read data.train; return the problems that are trained, the report on all rows, and the order of drawing.

    Raises DataError or ConfigError if the rows do not fit the configuration.
    """
    limit = config.rollout.max_response_tokens
    loaded = load_problems(config.data, tokenizer, max_response_tokens=limit, rewards=config.reward)
    if config.algorithm.needs_solutions:
        require_experts(loaded.report)
    if config.algorithm.ever_uses_experts:
        require_fitting_experts(config.data, loaded.examples, tokenizer)
    if (teacher := config.algorithm.any_teacher) is not None:
        most = config.teacher_prompt_tokens
        loaded = with_teacher_prompts(loaded, config.data, teacher, tokenizer, max_prompt_tokens=most)
    problems = loaded.problems
    if not all(stage.samples for stage in config.algorithm.stages):
        problems = [problem for problem in problems if problem.expert_ids]  # SFT trains nothing else
    return problems, loaded.report, _order(config, problems)


def read_eval_problems(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
    """Read the problems of eval.data that are evaluated during training; none if nothing is. Raises DataError."""
    if config.eval.every == 0 or config.eval.data is None:
        return []
    loaded = load_problems(
        config.data.model_copy(update={"require_expert": False}),
        tokenizer,
        max_response_tokens=config.rollout.max_response_tokens,
        rewards=config.reward,
        files=config.eval.data,
    )
    return loaded.problems[: config.eval.num_problems]


def _order(config: Config, problems: Sequence[Problem]) -> ProblemOrder:
    """Return the order in which problems are drawn; raise ConfigError if a source has fewer than a step takes."""
    data, names = config.data, config.data.sources
    of_source = [0 if data.shares is None else problem.source_index for problem in problems]
    split = data.split(config.rollout.num_problems)
    sources = [[i for i, source in enumerate(of_source) if source == index] for index in range(len(split))]
    for index, (members, count) in enumerate(zip(sources, split, strict=True)):
        name = ", ".join(names) if data.shares is None else names[index]
        if count > len(members):
            share = "" if data.shares is None else f", and by data.shares {count} of them from this source"
            raise ConfigError(
                f"rollout.num_problems: {config.rollout.num_problems} a step{share}, but {name} has "
                f"{len(members)} usable problems; lower it{' or its share' if share else ''}"
            )
        if config.rollout.replace_uninformative and count == len(members):
            raise ConfigError(
                f"rollout.replace_uninformative: every step draws all {count} problems of {name}, so none is left to "
                "replace them; set it to 0 or lower rollout.num_problems"
            )
    return ProblemOrder(sources, split, config.run.seed)


def share_lines(config: Config, order: ProblemOrder) -> list[str]:
    """Return a line on how many problems of a step come from each source, if data.shares says it."""
    if config.data.shares is None:
        return []
    parts = [
        f"{count} from {name} ({counted(len(members), 'problem')}, {config.train.max_steps * count / len(members):.2g} "
        "times each)"
        for name, count, members in zip(config.data.sources, order.split, order.sources, strict=True)
    ]
    return [f"problems of a step: {', '.join(parts)}"]
