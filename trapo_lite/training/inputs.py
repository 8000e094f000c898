"""Read and check all inputs of a run that need no loaded model."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import Config
from trapo_lite.config.paths import check_name
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.types import Problem
from trapo_lite.data import (
    DataReport,
    check_sources,
    load_problems,
    load_tokenizer,
    require_experts,
)
from trapo_lite.model.base import check_weight_files, model_config
from trapo_lite.model.packable import check_model
from trapo_lite.model.saved_adapter import check_fit, check_start, own_config, read_tensors
from trapo_lite.rollout.token_checks import require_embeddings
from trapo_lite.run.loggers import check_loggers


@dataclass(frozen=True)
class Inputs:
    """Inputs hold the problems as tokens, and the longest sequence that the engine must hold."""

    tokenizer: PreTrainedTokenizerBase
    problems: list[Problem]
    report: DataReport
    eval_problems: list[Problem]
    max_model_len: int


def check_paths(config: Config) -> None:
    """Raise an error if a local file or folder that the configuration names is missing; read no weights, ask no hub."""
    check_name(config.model.name)
    check_sources(config.data.train)
    if config.eval.data is not None:
        check_sources(config.eval.data)
    folder = config.rollout.server_adapter_dir
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"rollout.server_adapter_dir: no folder {folder!r}; create it where the servers see it too")
    if config.lora.init_from is not None:
        check_start(config.lora)


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
    max_model_len = check_model(config)
    check_weight_files(config.model.name)
    check_start_fits(config, reads_weights=True)
    limit = config.rollout.max_response_tokens
    tokenizer = load_tokenizer(config.model.name)
    problems, report = load_problems(config.data, tokenizer, max_response_tokens=limit)
    if config.algorithm.uses_experts:
        require_experts(report)
    if not config.algorithm.samples:
        problems = [problem for problem in problems if problem.expert_ids]  # SFT trains nothing else
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
    require_embeddings(config, tokenizer, [*problems, *eval_problems])
    return Inputs(tokenizer, problems, report, eval_problems, max_model_len)
