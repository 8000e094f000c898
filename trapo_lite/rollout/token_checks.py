"""Check that the tokenizer and the model use the same tokens, before anything is sampled."""

import json
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import Config
from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.core.types import Problem
from trapo_lite.data.chat import end_id_of, generation_ends
from trapo_lite.data.tokens import text_of
from trapo_lite.model.base import model_config


def require_embeddings(config: Config, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> None:
    """Raise ConfigError or DataError if a used token has no embedding in the model, according to its config.json.

    A tokenizer may have such tokens as long as none of them is used.
    """
    size = model_config(config.model).get_text_config().vocab_size
    if max(tokenizer.get_vocab().values()) < size:
        return
    end_id = end_id_of(config.data, tokenizer)
    only = f"but {config.model.name} has embeddings for the tokens 0 to {size - 1} only"
    fix = "or enlarge the model's embeddings, train the new ones and save it"
    if end_id >= size:
        end = str(tokenizer.convert_ids_to_tokens(end_id))
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


def require_one_end(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if tokenizer and generation_config.json name different end tokens and data.eos_token is unset.

    With the wrong end token, answers run to the length limit and get no reward.
    """
    if config.data.eos_token is not None:
        return
    ids = generation_ends(config.model.name)
    if ids and end_id_of(config.data, tokenizer) not in ids:
        names = [str(tokenizer.decode([token_id])) for token_id in ids]
        raise ConfigError(
            f"data.eos_token: {config.model.name} ends answers with {tokenizer.eos_token!r} by its tokenizer, with "
            f"{' or '.join(map(repr, names))} by its generation_config.json; say which is right, such as "
            f"data.eos_token={json.dumps(names[0])}"
        )
