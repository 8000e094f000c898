"""Several evaluations in one table."""

import json
import random
from pathlib import Path

import pytest

from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.evaluation.answer_store import AnswerLog
from trapo_lite.evaluation.compare import PAPER_SETS, PUBLISHED, compare, read_published, read_rows
from trapo_lite.evaluation.results import Answer


def write(
    folder: Path, name: str, accuracy: float, *, fingerprint: str = "f", temperature: float = 0.6, **more: object
) -> None:
    """40 problems with two draws each, correct at random."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, ids = random.Random(f"{name} {accuracy}"), [f"{name}-{n}" for n in range(40)]
    described = {"fingerprint": fingerprint, "seed": 0, "temperature": temperature, **more}
    log = AnswerLog(folder, name, described=described, problem_ids=ids, num_samples=2)
    for one in ids:
        verdicts = ["correct" if rng.random() < accuracy else "wrong" for _ in range(2)]
        log.append([Answer(one, k, "", verdict, "1", "stop", 1, "1") for k, verdict in enumerate(verdicts)])  # type: ignore[arg-type]
    log.finish(seed=0)


@pytest.mark.slow
def test_a_table_with_intervals_tests_and_the_literature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in PAPER_SETS:
        write(tmp_path / "low", name, 0.3)
        write(tmp_path / "high", name, 0.7)
    compare([tmp_path / "low", tmp_path / "high"], published=PUBLISHED, out=tmp_path / "table.json")
    printed = capsys.readouterr().out
    assert "40 x 2" in printed and "57.6" in printed and "62.5" in printed and "2604.23747" in printed
    found = json.loads((tmp_path / "table.json").read_text())
    assert [test["set"] for test in found["tests"]] == list(sorted(PAPER_SETS))
    assert all(test["difference"] > 0.1 and test["p_value"] < 0.01 for test in found["tests"])
    [low] = read_rows(tmp_path / "low")
    value, (bottom, top) = low.average()  # type: ignore[misc]
    assert bottom < value < top and value == pytest.approx(
        sum(low.scores[name].result.accuracy for name in PAPER_SETS) / 5
    )


@pytest.mark.slow
def test_other_problems_are_not_compared_and_other_drawing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "one", "amc", 0.5)
    write(tmp_path / "two", "amc", 0.5, fingerprint="g")
    write(tmp_path / "three", "amc", 0.4, temperature=1.0)
    compare([tmp_path / name for name in ("one", "two", "three")], published=None, out=tmp_path / "t.json")
    printed = capsys.readouterr().out
    assert "two differ in fingerprint 'f' and 'g'; not tested against each other" in printed
    assert printed.count("not tested") == 1 and "three differ in temperature 0.6 and 1.0" in printed
    assert [Path(test["second"]).name for test in json.loads((tmp_path / "t.json").read_text())["tests"]] == ["three"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{"require_box": True}, {"verifier": "other rules"}, {"prompts": "p"}, {"top_k": 20}, {"dtype": "float16"}]
)
def test_what_else_differs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, object]) -> None:
    write(tmp_path / "one", "amc", 0.5)
    write(tmp_path / "two", "amc", 0.5, **more)
    compare([tmp_path / "one", tmp_path / "two"], published=None, out=None)
    assert f"two differ in {next(iter(more))} None and {next(iter(more.values()))!r}" in capsys.readouterr().out


def test_the_average_is_of_whole_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in PAPER_SETS:
        write(tmp_path / "whole", name, 0.0, is_part=False)
        write(tmp_path / "part", name, 0.0, is_part=name == "amc", benchmark=f"{name}, 40 of 83 problems")
    compare([tmp_path / "part"], published=PUBLISHED, out=None)
    printed = capsys.readouterr().out
    assert printed.count("0.0*") == 1 and "* amc of" in printed and "amc, 40 of 83 problems" in printed
    [whole], [part] = read_rows(tmp_path / "whole"), read_rows(tmp_path / "part")
    assert part.average() is None
    value, (low, high) = whole.average()  # type: ignore[misc]
    assert value == low == 0.0 < high


def test_results_without_their_answers_and_a_place_that_cannot_be_written_are_errors(tmp_path: Path) -> None:
    write(tmp_path / "one", "amc", 0.5)
    for place in (tmp_path, tmp_path / "nowhere" / "t.json"):
        with pytest.raises(ConfigError, match=r"--json .*; name a file"):
            compare([tmp_path / "one"], published=None, out=place)
    with pytest.raises(ConfigError, match="one: is named twice"):
        compare([tmp_path / "one", tmp_path / "." / "one"], published=None, out=None)
    (tmp_path / "README.md").write_text("precious")
    with pytest.raises(ConfigError, match=r"README.md: is there already and no \.json file"):
        compare([tmp_path / "one"], published=None, out=tmp_path / "README.md")
    (tmp_path / "one" / "amc.jsonl").unlink()
    with pytest.raises(DataError, match=r"amc\.jsonl: cannot be used"):
        compare([tmp_path / "one"], published=None, out=None)


def test_a_run_has_a_row_for_each_of_its_evaluations(tmp_path: Path) -> None:
    write(tmp_path / "run" / "eval" / "adapter", "amc", 0.5)
    write(tmp_path / "run" / "eval" / "base", "amc", 0.2)
    write(tmp_path / "run" / "eval" / "before", "amc", 0.2)
    for place in (tmp_path / "run", tmp_path / "run" / "eval"):
        assert [Path(row.name).name for row in read_rows(place)] == ["base", "before", "adapter"]
    with pytest.raises(ConfigError, match="holds no results"):
        read_rows(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        read_rows(tmp_path / "nowhere")


def test_the_published_rows_are_those_of_the_papers() -> None:
    """The average of a row is the mean of its five sets, to the rounding of the source; of one it is 54.24, and the
    source says 54.3."""
    rows = {row.name: row for row in read_published(PUBLISHED)}
    assert len(rows) == 8
    for row in rows.values():
        if len(row.scores) > 1:
            average = 54.24 if row.name == "SFT-then-RL" else pytest.approx(row.scores["avg"], abs=0.051)
            assert sum(row.scores[name] for name in PAPER_SETS) / 5 == pytest.approx(average)
