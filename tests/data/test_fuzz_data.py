"""Data files of any bytes, and rows of any shape: one clear error, rows that are skipped and counted, or problems."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from byte_model import byte_tokenizer
from fuzzing import changed_byte, damaged, outcome, plain_data, texts
from hypothesis import example, given
from hypothesis import strategies as st

from trapo_lite.config import DataSection
from trapo_lite.config.paths import check_sources
from trapo_lite.data.loading import load_problems
from trapo_lite.data.sources import read_rows

TOKENIZER = byte_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("<|endoftext|>")
MAX_PROMPT, MAX_RESPONSE = 64, 48
ROWS: list[dict[str, Any]] = [
    {"problem": f"{n} + {n}?", "answer": str(2 * n), "solution": f"<think>\ntwice\n</think>\n\\boxed{{{2 * n}}}"}
    for n in range(3)
] + [
    {
        "data_source": "x",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}],
        "target": [{"role": "assistant", "content": "It is \\boxed{2}."}],
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": 7, "split": "default"},
    },
    {"question": "48/2?", "answer": "48/2 = <<48/2=24>>24\n#### 24", "id": 5},
    {
        "problem": "1?",
        "answer": 1,
        "generations": ["a", "b"],
        "correctness_math_verify": [True, False],
        "is_reasoning_complete": [True, True],
        "uuid": "u",
    },
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b'\xef\xbb\xbfproblem,answer,solution\r\n"1, 1?",2,"a ""b""\nc"\r\n2?,4,\r\n\r\n3?,6,"x, y"\r\n'
ARRAY = json.dumps(ROWS).encode()
FIELDS = sorted(
    {key for row in ROWS for key in row}
    | {"final_answer", "target_lst", "hint", "solutions", "source", "system", "messages", "extra_info.uuid"}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def parquet(folder: Path) -> bytes:
    file = folder / "whole.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:3] * 20), file)
    return file.read_bytes()


def load(file: Path, content: bytes, **options: Any) -> None:
    """Read it both ways, and look at what comes out."""
    file.write_bytes(content)
    template = "{problem}\n"
    for on_bad_row in ("error", "skip"):
        data = DataSection(
            train=str(file), prompt_template=template, max_prompt_tokens=MAX_PROMPT, on_bad_row=on_bad_row, **options
        )
        loaded = outcome(lambda data=data: load_problems(data, TOKENIZER, max_response_tokens=MAX_RESPONSE))
        if isinstance(loaded, str):
            assert str(file) in loaded
            continue
        problems, report = loaded.problems, loaded.report
        assert len({problem.id for problem in problems}) == len(problems) == report.num_problems > 0
        assert report.num_rows == len(problems) + sum(report.rows_dropped.values())
        assert on_bad_row == "skip" or not report.rows_dropped
        for problem in problems:
            assert 1 <= len(problem.prompt_ids) <= MAX_PROMPT and problem.answer.strip()
            for trace in problem.expert_ids:
                assert 2 <= len(trace) <= MAX_RESPONSE and trace.index(END) == len(trace) - 1


@given(damaged(LINES))
@example(b"\xef\xbb\xbf" + LINES)
@example(LINES.replace(b"\n", b"\r\n"))
@example(b"[" * 100_000 + b"\n")
@example(b'{"problem": "1?", "answer": ' + b"9" * 5000 + b"}\n")
@example(b'{"problem": "1?", "answer": 1e400}\n')
@example(b'{"problem": "1?", "answer": "1", "solution": "\\ud800"}\n')
def test_json_lines_of_any_bytes(folder: Path, content: bytes) -> None:
    load(folder / "any.jsonl", content)


@given(damaged(ARRAY))
@example(b"[]")
@example(b"[1]")
@example(b'{"a": 1}')
@example(b"[" * 100_000)
@example(b"[" + b"9" * 5000 + b"]")
def test_a_json_array_of_any_bytes(folder: Path, content: bytes) -> None:
    load(folder / "any.json", content)


@given(damaged(CSV))
@example(b"problem,answer\n1?,2\n\0,\0\n")
@example(b'"')
@example(b",")
@example(b"\r\r\n")
def test_csv_of_any_bytes(folder: Path, content: bytes) -> None:
    load(folder / "any.csv", content)


@given(st.data())
def test_parquet_of_any_bytes(folder: Path, parquet: bytes, data: st.DataObject) -> None:
    load(folder / "any.parquet", data.draw(st.one_of(damaged(parquet), changed_byte(parquet))))


@pytest.mark.slow
def test_parquet_with_many_bytes_changed(folder: Path, parquet: bytes) -> None:
    """Metadata at the end, lengths in it: what a reader must not believe."""
    rng = random.Random(0)
    for _ in range(100):
        content = bytearray(parquet)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content) - 600, len(content))] = rng.randrange(256)
        load(folder / "any.parquet", bytes(content))


@pytest.mark.slow
@given(
    st.sampled_from(ROWS),
    st.dictionaries(st.sampled_from(FIELDS), plain_data(), max_size=3),
    st.sets(st.sampled_from(FIELDS), max_size=2),
)
@example(ROWS[0], {"answer": 10**400}, set())
@example(ROWS[0], {"answer": float("nan")}, set())
@example(ROWS[0], {"id": True}, set())
@example(ROWS[0], {"id": ""}, set())
@example(ROWS[0], {"answer": {"a": float("inf")}}, set())
@example(ROWS[0], {"answer": "\n #### \n"}, set())
@example(ROWS[4], {"answer": "#### "}, set())
@example(ROWS[3], {"reward_model": "x"}, set())
@example(ROWS[3], {"extra_info": {"index": 10**400}}, set())
@example(ROWS[3], {"extra_info": {"index": True}}, set())
@example(ROWS[5], {"correctness_math_verify": "yes"}, set())
def test_rows_of_any_shape(folder: Path, row: dict[str, Any], changes: dict[str, Any], without: set[str]) -> None:
    changed = {key: value for key, value in (row | changes).items() if key not in without}
    load(folder / "any.jsonl", (json.dumps(changed) + "\n" + json.dumps(ROWS[0]) + "\n").encode())


@given(texts(60), st.sampled_from(["", ".jsonl", ".parquet", ".json", ".csv"]))
@example("a/b@c:d:e", "")
@example("~nobody-of-this-name/x", ".jsonl")
@example("a\0b", ".jsonl")
@example("x" * 5000, ".jsonl")
@example("", "")
def test_names_of_sources(name: str, suffix: str) -> None:
    """Whatever is given by --data, --second or data.train is a file, reads like a hub id, or is refused."""
    source = name + suffix
    found = outcome(lambda: check_sources(source))
    if isinstance(found, list) and Path(source).expanduser().is_file():
        outcome(lambda: list(read_rows(source)))
