"""Everything of a run that can be read and checked before a model is loaded."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from trapo_lite.adapter import check_fit, check_start, own_config, read_tensors
from trapo_lite.base_model import check_positions, model_config
from trapo_lite.config import Config, ConfigError
from trapo_lite.config.folders import check_name
from trapo_lite.data import (
    DataError,
    DataReport,
    check_sources,
    end_of_text_id,
    load_problems,
    load_tokenizer,
    require_experts,
    text_of,
)
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
    """Do the local files and folders that the configuration names exist? No hub is asked, no weights are read."""
    check_name(config.model.name)
    check_sources(config.data.train)
    if config.eval.data is not None:
        check_sources(config.eval.data)
    folder = config.rollout.server_adapter_dir
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"rollout.server_adapter_dir: no folder {folder!r}; make it, where the servers see it too")
    if config.lora.init_from is not None:
        check_start(config.lora)


def check_model(config: Config) -> int:
    """Return the longest sequence that a run needs, in tokens.

    Raises ConfigError or ModelError if the model, by its config.json and its class, has not enough positions, cannot be
    trained in packed trees, or lacks the layers that `lora.target_modules` names.
    """
    base, max_model_len = model_config(config.model), config.longest_sequence
    check_positions(base, config.model.name, longest=max_model_len)
    check_targets(require_packable(base), config.lora.target_modules)
    return max_model_len


def require_embeddings(config: Config, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> None:
    """Raise ConfigError or DataError for a token that the model, by its config.json, has no embedding for.

    That a tokenizer has such tokens is no mistake as long as none of them is used.
    """
    size = model_config(config.model).get_text_config().vocab_size
    if max(tokenizer.get_vocab().values()) < size:
        return
    end_id = end_of_text_id(tokenizer, config.data.eos_token)
    only = f"but {config.model.name} has embeddings for the tokens 0 to {size - 1} only"
    fix = "or enlarge the model's embeddings, train the new ones and save it"
    if end_id >= size:
        end = config.data.eos_token or tokenizer.eos_token
        raise ConfigError(f"data.eos_token: {end!r} is token {end_id}, {only}; name another token, {fix}")
    for problem in problems:
        for token_ids in (problem.prompt_ids, *problem.expert_ids):
            if max(token_ids, default=0) >= size:
                token = max(token_ids)
                where = "prompt" if token_ids is problem.prompt_ids else "expert solution"
                text = text_of(tokenizer, [token], with_special=True)
                raise DataError(
                    f"data: the {where} of problem {problem.id} holds {text!r}, token {token}, {only}; take it out of "
                    f"the rows and data.prompt_template, {fix}"
                )


def check_start_fits(config: Config, *, reads_weights: bool) -> None:
    """Raise AdapterError unless the adapter of `lora.init_from` is one that this base and `lora` section would make.

    reads_weights: also refuse weights that are not finite; without it their names and shapes are read
    """
    if config.lora.init_from is None:
        return
    start = check_start(config.lora)
    check_fit(start, model_config(config.model), wanted=own_config(config.lora))
    if reads_weights:
        read_tensors(start)


def read_inputs(config: Config) -> Inputs:
    """Tokenizer, problems and checks that need no weights; raises ConfigError, DataError or ModelError."""
    check_loggers(config)
    check_paths(config)
    max_model_len = check_model(config)
    check_start_fits(config, reads_weights=True)
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
    require_embeddings(config, tokenizer, [*problems, *eval_problems])
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


def require_one_end(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if tokenizer and generation_config.json end answers differently and no option decides.

    A model that is stopped at the wrong token runs to the length limit and scores nothing.
    """
    if config.data.eos_token is not None:
        return
    try:
        ids = GenerationConfig.from_pretrained(config.model.name).eos_token_id
    except (OSError, ValueError):  # there is none
        return
    ids = [ids] if isinstance(ids, int) else ids or []
    if ids and end_of_text_id(tokenizer) not in ids:
        names = [str(tokenizer.decode([token_id])) for token_id in ids]
        raise ConfigError(
            f"data.eos_token: {config.model.name} ends answers with {tokenizer.eos_token!r} by its tokenizer, with "
            f"{' or '.join(map(repr, names))} by its generation_config.json; say which is right, such as "
            f"data.eos_token={json.dumps(names[0])}"
        )
