"""A training set built from two sources, killed on the way, compared with what is evaluated on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from byte_model import byte_tokenizer

from trapo_lite.config import Config, RewardSection, load_config
from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.curation.build_report import BuildTally, histogram
from trapo_lite.curation.decontamination import Overlap
from trapo_lite.curation.training_set import Build, build_training_set
from trapo_lite.data.loading import load_problems
from trapo_lite.data.rows import Example, read_example
from trapo_lite.data.sources import Row
from trapo_lite.reward import Scorer
from trapo_lite.run.files import lock

ROOT = Path(__file__).parents[2]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(file)


def trace(number: int, *, thought: str = "so {}", end: str = "It is \\boxed{{{}}}.") -> str:
    return f"<think>\n{thought.format(number)}\n</think>\n{end.format(number)}"


def first_source(file: Path, num: int = 6) -> str:
    """OpenR1-Math-46k's form."""
    rows = [
        {
            "data_source": "",
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {n} + {n}?"}],
            "target": [{"role": "assistant", "content": trace(2 * n)}],
            "reward_model": {"ground_truth": str(2 * n), "style": "rule"},
            "extra_info": {"index": n, "split": "default"},
        }
        for n in range(num)
    ]
    return write(file, rows)


def second_source(file: Path) -> str:
    """OpenR1-Math-220k's form: 0 has only the trace that is known, 1 only wrong or unfinished ones, 2 and 3 good ones,
    3 after one that is too long and one that is marked as right but is not; 4 and 5 are not in it."""

    def row(n: int, generations: list[str], correct: list[bool], complete: list[bool]) -> dict[str, Any]:
        return {
            "problem": f"what is  {n} + {n}?",
            "answer": str(2 * n),
            "generations": generations,
            "correctness_math_verify": correct,
            "is_reasoning_complete": complete,
        }

    rows = [
        row(9, [trace(18)], [True], [True]),
        row(0, [trace(0)], [True], [True]),
        row(1, [trace(3), trace(2)], [False, True], [True, False]),
        row(2, [trace(5), trace(4, thought="twice two")], [False, True], [True, True]),
        row(
            3, [trace(6, thought="long " * 60 + "{}"), trace(7), trace(6, thought="thrice {}")], [True] * 3, [True] * 3
        ),
        {"answer": "no problem"},
    ]
    return write(file, rows)


def config_of(train: str, *overrides: str) -> Config:
    return load_config(overrides=[f"data.train={train}", "rollout.max_response_tokens=200", *overrides])


def built(build: Build, said: list[str] | None = None) -> tuple[list[dict], BuildTally]:
    counts = build_training_set(build, byte_tokenizer(), (said if said is not None else []).append)
    return [json.loads(line) for line in build.out.read_text().splitlines()], counts


@pytest.mark.slow
def test_second_traces_are_joined_where_they_are_right_finished_new_and_fit(tmp_path: Path) -> None:
    train, second = first_source(tmp_path / "one.jsonl"), second_source(tmp_path / "two.jsonl")
    config = config_of(train)
    with Scorer(RewardSection(num_workers=1)) as scorer:
        rows, counts = built(Build(config, tmp_path / "set.jsonl", second=second, scorer=scorer))
    assert [len(row["solutions"]) for row in rows] == [1, 1, 2, 2, 1, 1]
    assert rows[2]["solutions"][1] == trace(4, thought="twice two")
    assert rows[3]["solutions"][1] == trace(6, thought="thrice {}") and counts.num_second == 2
    assert (counts.num_second_rows, counts.num_second_bad) == (6, 1)
    assert counts.traces_dropped == {}
    assert (counts.num_graded, counts.num_wrong, counts.num_wrong_thoughts) == (8, 0, 1)  # "twice two" says no number
    loaded = load_problems(config.data, byte_tokenizer(), max_response_tokens=200, files=str(tmp_path / "set.jsonl"))
    assert [len(problem.expert_ids) for problem in loaded.problems] == [1, 1, 2, 2, 1, 1]
    assert len({problem.id for problem in loaded.problems}) == 6  # the group key is always set
    report = json.loads((tmp_path / "set.report.json").read_text())
    assert report["num_kept"] == 6 and report["--second"] == second and not (tmp_path / "set.work").exists()


def test_a_second_source_has_own_columns_and_needs_no_answers(tmp_path: Path) -> None:
    train = first_source(tmp_path / "one.jsonl")
    second = write(tmp_path / "two.jsonl", [{"q": "What is 1 + 1?", "how": {"text": "Two: \\boxed{2}"}}])
    build = Build(config_of(train), tmp_path / "set.jsonl", second=second)
    with pytest.raises(
        DataError, match=r"--second .*: none of its 1 rows can be read; the first: .*two.jsonl line 1: "
    ):
        built(build)
    renamed = write(
        tmp_path / "one.jsonl",
        [{"q": f"What is {n} + {n}?", "answer": str(2 * n), "how": {"text": trace(2 * n)}} for n in range(3)],
    )
    rows, counts = built(
        Build(
            config_of(renamed, "data.columns={problem: q, solutions: [how.text]}"),
            build.out,
            second=second,
            restart=True,
        )
    )
    assert rows[1]["solutions"] == [trace(2), "Two: \\boxed{2}"] and counts.num_second == 1


def test_bad_rows_stop_a_build_all_at_once(tmp_path: Path) -> None:
    """In the first reading, and among prompts and traces, which are read a batch at a time."""
    rows = [{"problem": "x" * n, "answer": "1", "solution": "1"} for n in range(1, 7)]
    train = write(tmp_path / "one.jsonl", [*rows, {"problem": "x"}, {"answer": "1"}])
    with pytest.raises(
        DataError, match=r"data: 2 of 8 rows read cannot be used \(1 no gold .*on_bad_row: skip\n.*line 7"
    ):
        built(Build(config_of(train), tmp_path / "set.jsonl"))
    train = write(tmp_path / "two.jsonl", rows)
    overrides = ["data.prompt_template='{problem}'", "data.max_prompt_tokens=4"]
    with pytest.raises(DataError, match=r"data: 2 of 6 rows read cannot be used \(2 prompt over 4 tok.*skip\n.*line 5"):
        built(Build(config_of(train, *overrides), tmp_path / "other.jsonl"))


def test_a_build_looks_at_the_template(tmp_path: Path) -> None:
    train = first_source(tmp_path / "one.jsonl")
    with pytest.raises(DataError, match=r"data\.prompt_template: '<s>': not known to the tokenizer"):
        built(Build(config_of(train, "data.prompt_template=<s>{problem}"), tmp_path / "set.jsonl"))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "<|im_start|>{{ messages[0].content }}<|im_end|>"
    build = Build(config_of(train, "data.prompt_template='{problem}'"), tmp_path / "set.jsonl")
    lines = build_training_set(build, tokenizer, lambda _: None).lines()
    assert lines[-2].startswith("warning: data.prompt_template: differs from the tokenizer's chat template")
    assert lines[-1].startswith("first prompt, 14 tokens: 'W' 54, 'h' 71,")  # "What is 0 + 0?"
    assert json.loads((tmp_path / "set.report.json").read_text())["prompt_warnings"] == [
        line.strip() for line in lines[-2:]
    ]


def test_rows_of_a_benchmark_are_counted_or_removed(tmp_path: Path) -> None:
    train = first_source(tmp_path / "one.jsonl")
    overlap = Overlap({"amc": ["WHAT is 3+3?"], "aime24": ["Something else entirely"]})
    options = {"overlap": overlap, "overlap_names": ("amc", "aime24")}
    rows, counts = built(Build(config_of(train), tmp_path / "a.jsonl", **options))
    assert len(rows) == 6 and counts.rows_by_set == {"amc": 1}
    report = json.loads((tmp_path / "a.report.json").read_text())
    assert report["found_overlap"] == [[rows[3]["id"], ["amc"]]] and report["num_graded"] is None
    rows, counts = built(Build(config_of(train), tmp_path / "b.jsonl", **options, remove_overlap=True))
    assert len(rows) == 5 and counts.rows_dropped == {"shares words with a benchmark": 1}
    assert "What is 3 + 3?" not in {row["problem"] for row in rows}


def test_a_run_of_words_is_found_anywhere_and_nothing_shorter() -> None:
    words = [f"w{n}" for n in range(30)]
    overlap = Overlap({"set": [" ".join(words)]})
    assert overlap.sets_with("So, " + ", ".join(words[5:18]) + "!") == ("set",)
    assert overlap.sets_with(" ".join(words[5:17])) == ()


def test_a_short_problem_is_found_in_a_longer_text_and_a_way_of_speaking_is_not() -> None:
    speech = "where m and n are relatively prime positive integers. Find m + n."
    overlap = Overlap(
        {
            "math500": ["How many positive whole-number divisors does 196 have?"],
            "aime24": [f"A cube of 7 blue faces rolls until it stops at rest with chance m/n, {speech}"],
            "aime25": [f"Ann draws 3 green cards from a deck of 60 with chance m/n, {speech}"],
        }
    )
    assert overlap.sets_with("Problem 7. How many positive whole-number divisors does 196 have? Box it.") == (
        "math500",
    )
    assert overlap.sets_with(f"A fair die is rolled. The chance is m/n, {speech}") == ()
    assert overlap.sets_with(f"Let us see: {speech}") == ()
    assert overlap.sets_with("If a cube of 7 blue faces rolls until it stops at rest, with what chance?") == ("aime24",)


def test_words_of_any_alphabet_are_words() -> None:
    overlap = Overlap({"x": ["Сколько целых положительных чисел делит число сто", "数"], "y": ["?!"]})
    assert overlap.sets_with("а. Сколько целых положительных чисел делит число сто?") == ("x",)
    assert overlap.sets_with("求解方程") == overlap.sets_with("...") == ()


def test_a_problem_in_two_sets_and_two_questions_on_one_text_are_found() -> None:
    problem = "A dog runs around a field of radius 7 and a cat walks along its rim until they meet. Where is that?"
    text = "Two stars of masses 3 and 5 circle one another in the plane of the sky, seen from very far away. "
    one, other = text + "What is the mass of the first star in suns?", text + "What is the period in years of them?"
    overlap = Overlap({"amc": [problem], "amc23": [problem + " Write a number."], "minerva": [one, other]})
    assert overlap.sets_with(f"Problem. {problem}") == ("amc", "amc23")
    assert overlap.sets_with(f"Hm: {one} Thanks.") == ("minerva",)


def test_a_problem_of_nothing_but_ways_of_speaking_is_found_as_a_whole() -> None:
    """25 words, each run of 13 in one of three others that are about something else."""
    words = [f"w{n}" for n in range(25)]
    pieces = [words[:17], words[5:21], words[9:]]
    others = [" ".join([*piece, *(f"other{n}{k}" for k in range(40))]) for n, piece in enumerate(pieces)]
    overlap = Overlap({"a": [" ".join(words)], "b": others})
    assert overlap.sets_with(f"Now {' '.join(words)}!") == ("a",)
    assert overlap.sets_with(" ".join(words[:20])) == ()


def test_what_was_kept_is_never_made_up(tmp_path: Path) -> None:
    train = first_source(tmp_path / "one.jsonl")
    build = Build(config_of(train), tmp_path / "set.jsonl")
    (tmp_path / "set.work").mkdir()
    state = {"described": build.described(), "kept_bytes": 99, "num_done": 6, "counts": BuildTally(num_kept=6).to_row()}
    (tmp_path / "set.work" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="is shorter than 99 bytes"):
        built(build)


def test_one_process_at_a_time_writes_a_set(tmp_path: Path) -> None:
    build = Build(config_of(first_source(tmp_path / "one.jsonl")), tmp_path / "set.jsonl")
    (tmp_path / "set.work").mkdir()
    with lock(tmp_path / "set.work", option="--out"), pytest.raises(ConfigError, match="another process is writing"):
        built(build)
    assert len(built(build)[0]) == 6


def test_bad_rows_are_errors_or_counted(tmp_path: Path) -> None:
    train = write(tmp_path / "one.jsonl", [{"problem": "?"}, {"problem": "1?", "answer": "1", "solution": "x"}])
    with pytest.raises(DataError, match=r"one\.jsonl line 1: answer: found none"):
        built(Build(config_of(train), tmp_path / "a.jsonl"))
    rows, counts = built(Build(config_of(train, "data.on_bad_row=skip"), tmp_path / "b.jsonl"))
    assert len(rows) == 1 and counts.rows_dropped == {"no gold answer": 1}
    assert counts.lines()[0] == "1 of 2 rows kept; problems by traces: 1 with 1"
    with pytest.raises(DataError, match="none of 2 rows is left"):
        built(Build(config_of(train, "data.on_bad_row=skip", "data.max_prompt_tokens=2"), tmp_path / "c.jsonl"))


def test_a_build_maps_columns_filters_rows_and_takes_answers_from_boxes(tmp_path: Path) -> None:
    rows = [{"Q": f"{n} + {n}?", "level": n, "way": rf"So \boxed{{{2 * n}}}."} for n in range(6)]
    rows[3]["way"] = "A proof."
    train = write(tmp_path / "one.jsonl", rows)
    options = ["data.columns={problem: Q, solutions: way}", "data.filter={level: [2, 5]}", "data.answer_from=box"]
    out = tmp_path / "set.jsonl"
    kept, counts = built(Build(config_of(train, *options, "data.on_bad_row=skip"), out))
    assert [(row["problem"], row["answer"]) for row in kept] == [("2 + 2?", "4"), ("4 + 4?", "8"), ("5 + 5?", "10")]
    assert (counts.num_rows, counts.num_kept, counts.num_boxed_answers) == (6, 3, 3)
    assert counts.rows_dropped == {"data.filter: level": 2, "no boxed answer": 1}
    assert json.loads((tmp_path / "set.report.json").read_text())["data.filter"] == {"level": [2, 5]}
    loaded = load_problems(config_of(str(out)).data, byte_tokenizer(), max_response_tokens=200)
    assert [problem.answer for problem in loaded.problems] == ["4", "8", "10"]


def test_a_build_of_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    train = first_source(tmp_path / "one.jsonl")
    work = tmp_path / "set.work"
    work.mkdir()
    described = Build(config_of(train), tmp_path / "set.jsonl", second="owner/name").described()
    state = {"described": described, "second_rows": 1000}
    (work / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"unfinished build with --second 'owner/name', now it is None; .* --restart"):
        built(Build(config_of(train), tmp_path / "set.jsonl"))
    assert len(built(Build(config_of(train), tmp_path / "set.jsonl", restart=True))[0]) == 6
    work.mkdir()
    state = {"described": Build(config_of(train), tmp_path / "set.jsonl").described(), "num_done": 1}
    (work / "state.json").write_text(json.dumps(state))
    text = Path(train).read_text()
    Path(train).write_text(text.swapcase())  # as many bytes as before
    with pytest.raises(DataError, match="unfinished build with contents of the files"):
        built(Build(config_of(train), tmp_path / "set.jsonl"))
    Path(train).write_text(text)
    (work / "state.json").write_text('{"descr')
    with pytest.raises(DataError, match=r"state\.json: cannot be read .*--restart"):
        built(Build(config_of(train), tmp_path / "set.jsonl"))


def test_a_mistake_does_not_stand_in_the_way_of_its_correction(tmp_path: Path) -> None:
    train = write(tmp_path / "one.jsonl", [{"problem": "?"}, {"problem": "1?", "answer": "1", "solution": "x"}])
    with pytest.raises(DataError, match="found none"):
        built(Build(config_of(train), tmp_path / "set.jsonl"))
    assert len(built(Build(config_of(train, "data.on_bad_row=skip"), tmp_path / "set.jsonl"))[0]) == 1


@pytest.mark.long
def test_looking_for_second_traces_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at row 2,500 of the second source, whose first 2,000 rows are then not read again."""
    num = 3000
    train = first_source(tmp_path / "one.jsonl", num=num)
    others = [
        {"problem": f"What is {n} + {n}?", "answer": str(2 * n), "solutions": [f"Other: \\boxed{{{2 * n}}}"]}
        for n in range(num)
    ]
    second = write(tmp_path / "two.jsonl", others)
    whole, _ = built(Build(config_of(train), tmp_path / "whole.jsonl", second=second))
    assert all(len(row["solutions"]) == 2 for row in whole)
    examined: list[str] = []

    def stopping(row: Row, *args: Any, **options: Any) -> Example:
        examined.append(row.key)
        if row.key == "two-2500":
            raise KeyboardInterrupt
        return read_example(row, *args, **options)

    def examining(row: Row, *args: Any, **options: Any) -> Example:
        examined.append(row.key)
        return read_example(row, *args, **options)

    killed = Build(config_of(train), tmp_path / "killed.jsonl", second=second)
    with monkeypatch.context() as patched:
        patched.setattr("trapo_lite.curation.second_traces.read_example", stopping)
        with pytest.raises(KeyboardInterrupt):
            built(killed)
        examined.clear()
        patched.setattr("trapo_lite.curation.second_traces.read_example", examining)
        resumed, counts = built(killed)
    assert examined[0] == "two-2000" and len(examined) == 1000
    assert resumed == whole and counts.num_second == num


def test_a_build_without_solutions_or_with_wrong_ones_gives_a_warning() -> None:
    def warnings(**counts: Any) -> list[str]:
        return [line.strip() for line in BuildTally(num_kept=2, **counts).lines() if "warning: " in line]

    [line] = warnings(problems_by_traces=Counter({"0": 2}))
    assert line.startswith("warning: no row has an expert solution")
    [line] = warnings(problems_by_traces=Counter({"0": 1, "1": 1}), num_graded=1, num_wrong=1, num_wrong_thoughts=1)
    assert line.startswith("warning: no trace verifies")
    assert warnings(problems_by_traces=Counter({"1": 2}), num_graded=2, num_wrong=1, num_wrong_thoughts=2) == []


def test_a_histogram_holds_everything_once() -> None:
    rng = random.Random(0)
    counts: dict[int, int] = {}
    for _ in range(1000):
        length = rng.randrange(8192)
        counts[length] = counts.get(length, 0) + 1
    first, *bars = histogram("trace", counts)
    assert first.startswith("  trace tokens: min ") and len(bars) == 12
    assert sum(int(bar.split()[3]) for bar in bars) == 1000
    assert histogram("trace", {}) == []


@pytest.mark.long
def test_a_build_that_was_killed_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    """Killed in its first batch of rows, and again in a later one."""
    train, num = first_source(tmp_path / "one.jsonl", num=400), 400
    others = [
        {"problem": f"What is {n} + {n}?", "answer": str(2 * n), "solutions": [f"Other: \\boxed{{{2 * n}}}"]}
        for n in range(num)
    ]
    second = write(tmp_path / "two.jsonl", others)
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def command(name: str) -> list[str]:
        script = [sys.executable, "scripts/prepare_data.py", f"data.train={train}", f"model.name={tmp_path}/tokenizer"]
        return [*script, "--second", second, "--verify", "--out", str(tmp_path / name)]

    subprocess.run(command("whole.jsonl"), cwd=ROOT, check=True, capture_output=True, timeout=200)
    kept = tmp_path / "killed.work" / "kept.jsonl"
    for least in (1, 60_000):
        process = subprocess.Popen(command("killed.jsonl"), cwd=ROOT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not kept.exists() or kept.stat().st_size < least:
            assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with kept.open("a") as file:
        file.write('{"id": "half a li')  # as a kill in the middle of a write leaves it
    done = subprocess.run(command("killed.jsonl"), cwd=ROOT, check=True, capture_output=True, text=True, timeout=200)
    assert "resuming" in done.stdout
    assert (tmp_path / "killed.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert (tmp_path / "killed.report.json").read_text() == (tmp_path / "whole.report.json").read_text()
    assert len((tmp_path / "whole.jsonl").read_text().splitlines()) == num
