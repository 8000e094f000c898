"""Files and hub ids: the same rows in every format, and a message for every way a file can be wrong."""

import json
import socket
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from trapo_lite.config.paths import check_sources
from trapo_lite.core.errors import DataError
from trapo_lite.data.sources import read_rows

ROWS = [{"problem": "1 + 1?", "answer": "2"}, {"problem": "é\u2028?", "answer": "4"}]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def written(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("made.jsonl", "\n".join(LINES)),
        ("made.jsonl", "\ufeff" + "\r\n\r\n".join(LINES) + "\r\n"),
        ("made.json", "\n".join(LINES)),
        ("made.json", json.dumps(ROWS, indent=1)),
        ("made.json", "\ufeff\n" + json.dumps(ROWS)),
    ],
    ids=["lines", "lines-of-windows", "json-lines-named-json", "array", "array-with-mark"],
)
def test_json(tmp_path, name, content):
    """A line separator (U+2028) inside a text ends no row."""
    rows = list(read_rows(written(tmp_path, name, content.encode())))
    assert [row.fields for row in rows] == ROWS
    assert [row.key for row in rows] == ["made-0", "made-1"]


def test_csv(tmp_path):
    """Commas, quotes and line breaks stand in quoted cells; a cell without text holds nothing."""
    text = '\ufeffproblem,answer,solution\r\n"1 + 1,\r\nwhat?",2,"a ""box"""\r\n\r\né\u2028?,4,\r\n'
    first, second = read_rows(written(tmp_path, "made.csv", text.encode()))
    assert first.fields == {"problem": "1 + 1,\r\nwhat?", "answer": "2", "solution": 'a "box"'}
    assert second.fields == {"problem": "é\u2028?", "answer": "4", "solution": None}
    assert [row.where for row in (first, second)] == [f"{tmp_path}/made.csv line {number}" for number in (2, 5)]
    assert [row.key for row in (first, second)] == ["made-0", "made-1"]


def test_a_csv_cell_may_hold_a_long_solution(tmp_path):
    text = "problem,answer,solution\n1?,2," + "x" * 200_000
    [row] = read_rows(written(tmp_path, "made.csv", text.encode()))
    assert len(row.fields["solution"]) == 200_000


def test_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "made.parquet")
    rows = list(read_rows(str(tmp_path / "made.parquet")))
    assert [row.fields for row in rows] == ROWS
    assert [row.where for row in rows] == [f"{tmp_path}/made.parquet row {index} (from 0)" for index in range(2)]


def test_the_hub_gives_config_and_split_as_named(monkeypatch):
    calls = []

    def load_dataset(name, config, *, split, revision):
        calls.append((name, config, split, revision))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in ("owner/name", "owner/name:main", "owner/name:main:test", "owner/name::test", "owner/name@v1.0:main"):
        assert [row.key for row in read_rows(source)] == ["name-0", "name-1"]
    assert calls == [
        ("owner/name", None, "train", None),
        ("owner/name", "main", "train", None),
        ("owner/name", "main", "test", None),
        ("owner/name", None, "test", None),
        ("owner/name", "main", "train", "v1.0"),
    ]


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("Config name is missing")])
def test_a_hub_that_gives_nothing_is_a_clear_error(monkeypatch, error):
    def load_dataset(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=f"data owner/name: the hub did not give it: {error}; check the id"):
        list(read_rows("owner/name"))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "made.jsonl", "the file is empty"),
        (b'{"problem": "x", "answer": "1"}\n{"problem": ', "made.jsonl", "made.jsonl line 2: not JSON"),
        (b'[{"problem": "x", "answer": "1"}', "made.json", "made.json: not JSON"),
        (b'"text"\n', "made.jsonl", "made.jsonl line 1: holds a str; write an object"),
        (b"[3]", "made.json", "made.json row 0 (from 0): holds a int"),
        (b'\n{"problem": "\xff", "answer": "1"}', "made.jsonl", "made.jsonl line 2: not UTF-8"),
        (b"[" * 100_000, "made.json", "made.json: not JSON"),
        (b"PAR1 and then nothing of the kind", "made.parquet", "made.parquet: cannot be read as parquet"),
        (b"problem,answer", "made.tsv", "ends in '.tsv'; give a .parquet, .jsonl, .json, .csv file"),
        (b'problem,answer\n1?,2\n"2?,4\n5?,6\n', "made.csv", "made.csv line 3: the row that begins here is not CSV"),
        (b'problem,answer\n1?,2\n"2"?,4\n', "made.csv", "made.csv line 3: the row that begins here is not CSV"),
        (b'problem,answer\n"1\n?",2\n3,4,5\n', "made.csv", "made.csv line 4: found 3 cells, the first line names 2"),
        (b"problem,answer\n1?\n", "made.csv", "made.csv line 2: found 1 cells, the first line names 2 columns"),
        (b"problem;answer\n1?;2\n", "made.csv", "line 1: found one column, 'problem;answer'; separate the cells by"),
        (b"problem,problem\n1?,2\n", "made.csv", "line 1: two columns are named 'problem'"),
        (b"problem,\n1?,2\n", "made.csv", "line 1: column 2 has no name"),
        (b"problem,answer\n\xff,2\n", "made.csv", "is not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, name, message):
    with pytest.raises(DataError) as caught:
        for row in read_rows(written(tmp_path, name, content)):
            if row.bad is not None:  # a line by itself: loading decides whether it is an error or skipped
                raise DataError(f"{row.where}: {row.bad}")
    assert message in str(caught.value)


def test_a_parquet_cut_short_or_with_broken_text(tmp_path):
    file = tmp_path / "whole.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    with pytest.raises(DataError, match="cannot be read as parquet"):
        list(read_rows(written(tmp_path, "short.parquet", file.read_bytes()[:-20])))
    pq.write_table(pa.table({"problem": pa.array([b"\xff"]).view(pa.string())}), file)
    with pytest.raises(DataError, match="is not UTF-8"):
        list(read_rows(str(file)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/train.parquet", "no such file"),
        ("./nowhere", "no such file"),
        ("a.jsonl,b.csv", r"no such file; for several sources write \[a\.jsonl,b\.csv\]; check the path"),
        ("gsm8k", "no such file"),
        ("a/b/c", "no such file"),
        ("data/train.csv", "no such file"),
        (".", "is a folder"),
    ],
)
def test_what_is_neither_file_nor_hub_id_is_refused_before_anything_is_opened(source, message):
    with pytest.raises(DataError, match=message):
        check_sources(["owner/name", source])


def test_an_empty_list_of_files_is_refused():
    with pytest.raises(DataError, match="the list of files is empty"):
        check_sources([])


def test_without_a_network_a_data_set_is_read_from_the_cache_or_refused_at_once(monkeypatch):
    asked_offline = []

    def load_dataset(name, config, *, split, revision):
        asked_offline.append((constants.is_offline_mode(), datasets.config.HF_HUB_OFFLINE))
        if name == "owner/cached":
            return [{"problem": "1 + 1?"}]
        raise ConnectionError("offline")

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [row.fields for row in read_rows("owner/cached")] == [{"problem": "1 + 1?"}]
    with pytest.raises(DataError, match=r"^data owner/absent: .* the hub cannot be reached, and the cache lacks it; "):
        list(read_rows("owner/absent"))
    assert asked_offline == [(True, True)] * 2
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False)
