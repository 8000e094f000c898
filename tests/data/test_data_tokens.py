"""Prompt, expert text, end of text and boundaries, with a tokenizer of single bytes."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from byte_model import byte_tokenizer, write_byte_model
from huggingface_hub import constants
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from trapo_lite.config import DataSection, hub
from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.core.micro_groups import cut_prefix
from trapo_lite.data.tokens import encode, end_of_text_id, expert_text, is_boundary_fn, load_tokenizer, prompt_text

BLANK_LINE, END, START_OF_TURN, END_OF_TURN = 256, 257, 258, 259
TEMPLATE = DataSection().prompt_template
TINY_BASE = Path("trapo_lite/tiny_world/base")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.mark.parametrize(
    ("solution", "thought"),
    [
        ("<think>\n a \n</think>\nb", "a"),
        ("preface <think>a</think> b <think>c</think>", "a"),
        ("<think>a<think>b</think>", "a<think>b"),
        ("<think>\n\n</think>\nb", ""),
        ("no tags\n", "no tags\n"),
        ("<think> never closed", "<think> never closed"),
        ("closed only </think> b", "closed only </think> b"),
    ],
)
def test_thought_is_the_first_closed_block_stripped(solution, thought):
    assert expert_text(solution, "thought") == thought
    assert expert_text(solution, "full") == solution


@pytest.mark.parametrize(
    ("solution", "opened"),
    [
        ("<think>\n a \n</think>\nb", " a \n</think>\nb"),
        ("\n <think>\na</think>b", "a</think>b"),
        ("preface <think>a</think> b <think>c</think>", "a</think> b <think>c</think>"),
        ("no tags\n", "no tags\n"),
        ("closed only </think> b", "closed only </think> b"),
    ],
)
def test_opened_is_all_behind_the_first_opening_tag(solution, opened):
    assert expert_text(solution, "opened") == opened


def test_a_problem_full_of_braces_is_put_in_literally():
    text = prompt_text(TEMPLATE, "{x} {problem} \\frac{1}{2} {0}")
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n{x} {problem} \\frac{1}{2} {0}\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_rows_system_message_replaces_the_templates():
    text = prompt_text(TEMPLATE, "6 * 7?", system="Think in \\boxed{} {problem}.")
    assert text.startswith("<|im_start|>system\nThink in \\boxed{} {problem}.<|im_end|>\n<|im_start|>user\n6 * 7?\n")


def test_a_template_without_a_system_block_cannot_take_one():
    with pytest.raises(DataError, match=r"data\.system: row"):
        prompt_text("{problem}", "6 * 7?", system="Be brief.")


def test_special_tokens_are_recognised_and_none_is_added(tokenizer):
    (ids,) = encode(tokenizer, ["<|im_start|>\n\n<|im_end|>"])
    assert ids == (START_OF_TURN, BLANK_LINE, END_OF_TURN)


def test_equal_ids_are_one_object(tokenizer):
    first, second = encode(tokenizer, ["\n\n", "\n\n"])
    assert first[0] is second[0]


def test_end_of_text_is_the_tokenizers_or_the_one_named(tokenizer):
    assert end_of_text_id(tokenizer) == END
    assert end_of_text_id(tokenizer, "<|im_end|>") == END_OF_TURN


@pytest.mark.parametrize(
    ("eos_token", "found"),
    [("<|end|>", "'<|end|>' is 7 tokens"), ("", "no end-of-text token of its own")],
)
def test_end_of_text_must_be_one_token(tokenizer, eos_token, found):
    with pytest.raises(DataError, match=r"data\.eos_token") as caught:
        end_of_text_id(tokenizer, eos_token)
    assert found in str(caught.value)


def test_the_unknown_token_ends_nothing():
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"?": 0, "a": 1}, unk_token="?")), unk_token="?"
    )
    assert end_of_text_id(words, "a") == 1
    with pytest.raises(DataError, match="'b' is unknown to the tokenizer"):
        end_of_text_id(words, "b")


def test_boundaries_are_tokens_that_hold_a_blank_line(tokenizer):
    is_boundary = is_boundary_fn(tokenizer)
    assert [token for token in range(260) if is_boundary(token)] == [BLANK_LINE]


@pytest.mark.parametrize(("boundary", "kept"), [(24, 25), (25, 25), (26, 27), (54, 55), (60, 25)])
def test_the_example_of_the_method(tokenizer, boundary, kept):
    """METHOD 3: 100 tokens, ratio 0.25, one blank line, whose index decides."""
    text = "x" * boundary + "\n\n" + "x" * (98 - boundary)
    (ids,) = encode(tokenizer, [text])
    trace = (*ids, END)
    assert len(trace) == 100
    assert cut_prefix(trace, 0.25, is_boundary_fn(tokenizer)) == kept


def test_a_saved_byte_tokenizer_reads_the_same(tokenizer, tmp_path):
    reloaded = load_tokenizer(str(write_byte_model(tmp_path)))
    texts = ["a\n\n\nb.\n\n  <|im_end|>", "é \\boxed{½} 日本\r\n\r\n", "it's 3.14\t\n\n"]
    assert list(encode(reloaded, texts)) == list(encode(tokenizer, texts))
    assert end_of_text_id(reloaded) == END


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=r"model\.name: .* holds no tokenizer that transformers can read; copy"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "\xff", "[" * 100_000, '{"added_tokens": 5, "eos_token": 5}']
)
def test_a_damaged_tokenizer_is_one_clear_error(tmp_path, name, content):
    folder = write_byte_model(tmp_path)
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises((DataError, ConfigError), match=r"model\.name: "):
        load_tokenizer(str(folder))


def test_a_tokenizer_that_the_library_in_rust_refuses(tmp_path):
    """It raises Exception itself, nothing narrower."""
    folder = write_byte_model(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"the tokenizer's files in .* are damaged"):
        load_tokenizer(str(folder))


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Make an address of this machine the hub, which nobody answers yet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


CURE = "and the model was not downloaded before; check the network, or give a local folder"


def test_a_hub_that_cannot_be_reached_is_one_error_at_once(local_hub: socket.socket) -> None:
    local_hub.close()
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"model\.name: owner/name: no such folder, .* cannot be reached") as caught:
        load_tokenizer("owner/name")
    assert time.monotonic() - started < 5
    assert "Connection refused" in str(caught.value) and str(caught.value).endswith(CURE)


def test_a_model_that_was_downloaded_before_needs_no_hub(
    local_hub: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cached = tmp_path / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    shutil.copytree(TINY_BASE, cached / "snapshots" / "abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    local_hub.close()
    started = time.monotonic()
    assert load_tokenizer("owner/name").get_vocab() == load_tokenizer(str(TINY_BASE)).get_vocab()
    assert time.monotonic() - started < 5 and os.environ["HF_HUB_OFFLINE"] == "1"
    assert [record.getMessage().rpartition("; ")[2] for record in caplog.records] == ["the files of the cache are used"]


def test_a_hub_that_does_not_answer_is_waited_for_once(
    local_hub: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HUB_SECONDS", 0.2)
    for _ in range(2):
        with pytest.raises(ConfigError, match="cannot be reached"):
            load_tokenizer("owner/name")
    local_hub.settimeout(0.2)
    local_hub.accept()[0].close()
    with pytest.raises(TimeoutError):
        local_hub.accept()


def test_a_hub_that_answers_is_asked_by_its_library(local_hub: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    class NotFound(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

    server = HTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    hub.require_hub("model.name: owner/name", name="owner/name")
    server.server_close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    local_hub.close()
    hub.require_hub("model.name: owner/name", name="owner/name")
