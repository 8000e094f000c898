"""Save a merged model with its tokenizer, and move the finished folder to its place."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from trapo_lite.core.errors import ExportError
from trapo_lite.data.tokens import end_of_text_id, load_tokenizer
from trapo_lite.run.files import move_into_place


def save_model(
    merged: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]
) -> None:
    """Save model and tokenizer. Sampling defaults are those of training: temperature 1, no truncation.

    stop_ids: tokens of which each ends an answer; the first is the EOS
    """
    needed = sum(p.numel() * p.element_size() for p in merged.parameters())
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OSError(f"{needed >> 20:,} MiB are needed, {free >> 20:,} MiB are free on this disk")
    pad_id = tokenizer.pad_token_id
    ends = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    merged.generation_config = GenerationConfig(do_sample=True, eos_token_id=ends, pad_token_id=pad_id)
    merged.config.eos_token_id = stop_ids[0]
    merged.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, stop_ids[0])


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, eos_id: int) -> None:
    """Save the tokenizer, with the token that ends answers as its EOS, so that serving stops there.

    A token of the plain vocabulary is not made the EOS: as a special token it would be removed from every text. Then
    only config.json, generation_config.json and the prompt file name it.
    """
    if eos_id in tokenizer.added_tokens_decoder:
        tokenizer.eos_token = tokenizer.added_tokens_decoder[eos_id].content
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from None  # the Rust library has no other class for a failed write
    if eos_id in tokenizer.added_tokens_decoder and end_of_text_id(load_tokenizer(str(folder))) != eos_id:
        raise ExportError(f"{folder}: the saved tokenizer does not end texts with token {eos_id}; report this")


def move_synced(partial: Path, out: Path) -> None:
    """Write the folder's files to the disk, then rename it to `out`."""
    for weights in partial.glob("*.safetensors"):  # safetensors makes them readable for their owner only
        weights.chmod((partial / "config.json").stat().st_mode)
    for path in (*partial.iterdir(), partial):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    move_into_place(partial, out)
