"""Everything of a run that can be read and checked before a model is loaded."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trapo_lite.base_model import check_positions, model_config
from trapo_lite.config import Config, ConfigError
from trapo_lite.config.folders import check_adapter, check_name
from trapo_lite.data import DataReport, check_sources, end_of_text_id, load_problems, load_tokenizer, require_experts
from trapo_lite.loggers import check_loggers
from trapo_lite.packable import check_targets, require_packable
from trapo_lite.sampler import SamplingSettings, Schedule
from trapo_lite.types import Problem


@dataclass(frozen=True)
class Inputs:
    """Problems as tokens, and the longest sequence the engine must hold."""

    tokenizer: PreTrainedTokenizerBase
    problems: list[Problem]
    report: DataReport
    eval_problems: list[Problem]
    max_model_len: int


def check_paths(config: Config) -> None:
    """Do the local files and folders that the configuration names exist? Nothing is opened, no hub is asked."""
    check_name(config.model.name)
    check_sources(config.data.train)
    if config.eval.data is not None:
        check_sources(config.eval.data)
    folder = config.rollout.server_adapter_dir
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"rollout.server_adapter_dir: no folder {folder!r}; make it, where the servers see it too")
    if config.lora.init_from is not None:
        check_adapter(Path(config.lora.init_from), config.lora)


def check_model(config: Config) -> int:
    """The longest sequence a run needs, in tokens.

    ConfigError or ModelError where the model, by its config.json and its class, has not the positions for it, cannot
    be trained in packed trees, or has not the layers that `lora.target_modules` names.
    """
    base, max_model_len = model_config(config.model), config.longest_sequence
    check_positions(base, config.model.name, longest=max_model_len)
    check_targets(require_packable(base), config.lora.target_modules)
    return max_model_len


def read_inputs(config: Config) -> Inputs:
    """Tokenizer, problems and checks that need no weights; raises ConfigError, DataError or ModelError."""
    check_loggers(config)
    check_paths(config)
    max_model_len = check_model(config)
    limit = config.rollout.max_response_tokens
    tokenizer = load_tokenizer(config.model.name)
    problems, report = load_problems(config.data, tokenizer, max_response_tokens=limit)
    if config.algorithm.uses_experts:
        require_experts(report)
    if not config.algorithm.samples:
        problems = [problem for problem in problems if problem.expert_ids]  # without a trace there is nothing to train
    if config.rollout.num_problems > len(problems):
        raise ConfigError(
            f"rollout.num_problems: {config.rollout.num_problems} a step, but {', '.join(report.files)} has "
            f"{len(problems)} usable problems; lower it"
        )
    eval_problems: list[Problem] = []
    if config.eval.every > 0 and config.eval.data is not None:
        data = config.data.model_copy(update={"require_expert": False})
        eval_problems, _ = load_problems(data, tokenizer, max_response_tokens=limit, files=config.eval.data)
        eval_problems = eval_problems[: config.eval.num_problems]
    return Inputs(tokenizer, problems, report, eval_problems, max_model_len)


def sampling_settings(
    config: Config, tokenizer: PreTrainedTokenizerBase, *, for_eval: bool = False, schedule: Schedule = "pipelined"
) -> SamplingSettings:
    """How rollouts are drawn, in training or in evaluation. `schedule` stands for auto."""
    limit, temperature = config.rollout.max_response_tokens, config.rollout.temperature
    if for_eval:
        limit, temperature = config.eval.max_response_tokens or limit, config.eval.temperature
    return SamplingSettings(
        seed=config.run.seed,
        max_response_tokens=limit,
        stop_ids=(end_of_text_id(tokenizer, config.data.eos_token),),
        temperature=temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        schedule=schedule if config.rollout.schedule == "auto" else config.rollout.schedule,
        deterministic=config.run.deterministic,
    )
