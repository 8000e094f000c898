"""Check that the model has an embedding for each token that is used, before anything is sampled."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import Config
from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.core.types import Problem
from trapo_lite.data.chat import end_id_of
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
