"""The page about runs: whatever their folders hold is read, and nothing in it becomes markup."""

import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from byte_model import write_byte_model
from transformers import AutoTokenizer

from trapo_lite.config import validate
from trapo_lite.core.errors import ConfigError
from trapo_lite.report.charts import CHARTS, drawn
from trapo_lite.report.page import MOST_BYTES, _pieces_of, headline, page, page_data, report
from trapo_lite.report.rollout_sample import MOST_CHARACTERS, sample_rollouts
from trapo_lite.report.run_data import Evaluated, RunData, read_run
from trapo_lite.run.metrics import TABLE, entry

EMPTY = RunData(Path("run"), {}, {}, [], [], [], [], [], has_ended=False)
HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)>\u202e&amp;\u2028 ]]> <!--"


def line(problem_id: str, slot: int, completion: str = "So \\boxed{1}", **more: object) -> dict:
    return {
        "problem_id": problem_id,
        "slot": slot,
        "micro_group": 1,
        "ratio": 0.0,
        "prompt": "1?",
        "prefix": "",
        "completion": completion,
        "verdict": "correct",
        "answer": "1",
        "gold": "1",
        "reward": 1.0,
        "advantage": 0.5,
        "finish_reason": "stop",
        **more,
    }


def make_run(folder: Path, *, num_steps: int = 3, lines: list[dict] | None = None) -> Path:
    folder.mkdir()
    config = validate({"run": {"name": folder.name}, "train": {"max_steps": 10}, "optim": {"lr": 3e-4}})
    (folder / "config.yaml").write_text(config.to_yaml())
    rows = [
        {"step": step, "reward/own": step / 10, "time/step": 60.0, "memory/peak_gib": 1.5, "eval/accuracy": 0.1 * step}
        for step in range(1, num_steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rollouts").mkdir()
    for step in range(1, num_steps + 1):
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines or [line("p", 0), line("p", 1)])
        (folder / f"rollouts/step-{step:06d}.jsonl").write_text(text)
    return folder


class Scripts(HTMLParser):
    """Collects the elements of a page, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data


def test_a_page_holds_what_the_folder_holds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    file = report([run])
    assert file == run / "report.html"
    data = json.loads(Scripts(file.read_text()).scripts[0])
    [shown] = data["runs"]
    assert shown["steps"] == [1, 2, 3] and shown["columns"]["reward/own"] == [0.1, 0.2, 0.3]
    assert shown["changed"]["optim.lr"] == 3e-4 and "optim.name" not in shown["changed"]
    assert [group["step"] for group in shown["groups"]] == [1, 2, 3]
    facts = dict(shown["headline"])
    assert facts["steps"] == "3 of 10" and facts["time"] == "3 min 0 s" and facts["state"] == "not ended"
    assert facts["accuracy on eval.data, first → last"] == "10.0 % → 30.0 %"
    assert any("environment.json is missing" in line for line in shown["missing"])


@pytest.mark.parametrize("name", ["a problem", HOSTILE])
def test_no_text_of_a_run_is_markup(tmp_path: Path, name: str) -> None:
    plain = page(page_data([read_run(make_run(tmp_path / "plain"))]))
    lines = [line(name, 0, completion=name, prompt=name, prefix=name, gold=name, answer=name)]
    folder = make_run(tmp_path / "run", lines=lines)
    (folder / "environment.json").write_text(json.dumps([{"after_step": 0, "device": name, "command": name}]))
    text = page(page_data([read_run(folder)]))
    parsed = Scripts(text)
    assert parsed.tags == Scripts(plain).tags  # the same elements
    [group] = json.loads(parsed.scripts[0])["runs"][0]["groups"][:1]
    assert group["rollouts"][0]["completion"] == name


def test_what_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_steps=5)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "{broken", "[1]", lines[3], lines[4], '{"step": 6']))
    (run / "rollouts/step-000002.jsonl").write_bytes(b'{"problem_id": 3}\n\xff\xfe\n[[[\n')
    (run / "config.yaml").write_text("optim: {lr: fast}\nrun: {name: x}\n")
    (run / "eval/adapter").mkdir(parents=True)
    (run / "eval/adapter/dev.json").write_text("{")
    (run / "eval/adapter/dev.jsonl").write_text("")
    found = read_run(run)
    assert [row["step"] for row in found.rows] == [1, 4, 5]
    assert found.options == {"optim.lr": "fast", "run.name": "x"} and found.config is None
    said = "\n".join(page_data([found])["runs"][0]["missing"])
    for part in (
        "2 lines could not be read",
        "2 steps of the first 5 are missing",
        "config.yaml is damaged",
        "3 lines of",
    ):
        assert part in said, said
    assert "An evaluation cannot be read" in said


def test_a_run_without_rollouts_or_evaluations_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_steps=0)
    shutil.rmtree(run / "rollouts")
    found = read_run(run)
    assert any(line.startswith("No evaluation of the run") for line in found.missing)
    assert any(line.startswith("There are no rollouts") for line in found.missing)
    assert dict(headline(found))["steps"] == "0 of 10"
    assert page_data([found])["charts"] == []
    (run / "metrics.jsonl").unlink()
    assert any("metrics.jsonl is missing" in line for line in read_run(run).missing)


def write_bytes(file: str, content: bytes):
    def damage(run: Path) -> None:
        (run / file).write_bytes(content)

    return damage


def as_folder(file: str):
    def damage(run: Path) -> None:
        (run / file).unlink()
        (run / file).mkdir()

    return damage


def with_rollout(**changed: object):
    def damage(run: Path) -> None:
        text = json.dumps({**line("p", 0), **changed})
        (run / "rollouts/step-000001.jsonl").write_text(text + "\n")

    return damage


NAN_ROW = b'{"step": 1, "reward/own": NaN, "time/step": 1e999, "memory/peak_gib": ' + b"9" * 400 + b"}\n"


@pytest.mark.parametrize(
    "damage",
    [
        write_bytes("metrics.jsonl", b""),
        write_bytes("metrics.jsonl", NAN_ROW),
        write_bytes("metrics.jsonl", b'{"step": null}\n{"step": 1e99}\n{"step": true}\n[]\n\xff\n'),
        as_folder("metrics.jsonl"),
        as_folder("config.yaml"),
        as_folder("rollouts/step-000002.jsonl"),
        write_bytes("config.yaml", b"optim: {lr: .nan, betas: !!set {1, 2}}\n"),
        write_bytes("config.yaml", b"{{{"),
        write_bytes("environment.json", b"[1]"),
        with_rollout(reward=float("nan"), advantage="much", ratio=None, slot=1.5, verdict=3, gold=["1"]),
        with_rollout(completion="half of a character: \ud83d"),
        with_rollout(completion_ids=[1, -1, 2**80], completion_logprobs=[0.0, None, "x"]),
        with_rollout(completion_ids="abc", completion_logprobs={"a": 1}),
    ],
)
def test_no_damage_ends_in_a_traceback(tmp_path: Path, damage) -> None:
    run = make_run(tmp_path / "run")
    damage(run)
    data = json.loads(Scripts(report([run]).read_text()).scripts[0])
    assert data["runs"][0]["missing"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder, message in [(tmp_path / "absent", "there is no such folder"), (tmp_path, "so it is no run's")]:
        with pytest.raises(ConfigError, match=message):
            report([folder])
    run = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="is a file"):
        report([run / "config.yaml"])
    with pytest.raises(ConfigError, match="named twice"):
        report([run, tmp_path / "." / "run"])
    for out in (tmp_path, tmp_path / "absent/page.html"):
        with pytest.raises(ConfigError, match=r"--out .*; name a file"):
            report([run], out)


def test_rollouts_beyond_the_limit_are_thinned_evenly(tmp_path: Path) -> None:
    lines = [line(f"p{problem}", slot, completion="x" * 400) for problem in range(4) for slot in range(8)]
    run = make_run(tmp_path / "run", num_steps=200, lines=lines)
    sample = sample_rollouts(run / "rollouts", most_bytes=400_000)
    steps = [group["step"] for group in sample.groups]
    assert sample.num_all == 200 * 32 and 0 < sample.num_shown < sample.num_all
    assert len(json.dumps(sample.groups)) < 420_000
    assert {1, 200} <= set(steps) and steps == sorted(steps)
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 50
    assert all(len(group["rollouts"]) == 8 for group in sample.groups)  # whole problems


def test_a_line_of_a_megabyte_is_cut(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_steps=1, lines=[line("p", 0, completion="y" * 1_000_000)])
    data = page_data([read_run(run)])
    [rollout] = data["runs"][0]["groups"][0]["rollouts"]
    assert len(rollout["completion"]) == MOST_CHARACTERS and rollout["is_cut"]
    assert any("Very long texts" in text for text in data["runs"][0]["missing"])


def test_a_full_page_stays_below_five_megabytes(tmp_path: Path) -> None:
    """Also one of text that is longer as the page writes it, and of thousands of steps."""
    lines = [line(f"p{problem}", slot, completion="<&> " * 300) for problem in range(4) for slot in range(8)]
    run = make_run(tmp_path / "run", num_steps=40, lines=lines)
    names = [name for chart in CHARTS for name in chart.series]
    rows = [{"step": step} | dict.fromkeys(names, 0.12345) for step in range(1, 10_001)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = report([run])
    assert MOST_BYTES < file.stat().st_size < 5_000_000
    [shown] = json.loads(Scripts(file.read_text()).scripts[0])["runs"]
    assert any("of 10000 steps, spread evenly" in text for text in shown["missing"])


def test_long_rollouts_are_shown_without_probabilities(tmp_path: Path) -> None:
    more = {"completion_ids": [1] * 19_000, "completion_logprobs": [-0.12] * 19_000}
    lines = [line("p", slot, completion="y" * 19_000, **more) for slot in range(8)]
    run = make_run(tmp_path / "run", num_steps=1, lines=lines)
    sample = sample_rollouts(run / "rollouts", most_bytes=1_000_000, pieces_of=lambda ids, text: [1] * len(ids))
    assert sample.num_shown == 8 and "pieces" not in sample.groups[0]["rollouts"][0]
    lines = [line("p", 0, completion="yy", completion_ids=[1, 1], completion_logprobs=[-0.126, 0.0])]
    few = make_run(tmp_path / "few", num_steps=1, lines=lines)
    sample = sample_rollouts(few / "rollouts", most_bytes=1_000_000, pieces_of=lambda ids, text: [1] * len(ids))
    assert sample.groups[0]["rollouts"][0]["logprobs"] == [-0.13, 0.0]


def test_tokens_have_the_lengths_that_a_browser_counts(tmp_path: Path) -> None:
    """A tokenizer of bytes: four tokens make one emoji, which is two UTF-16 units."""
    model_dir = write_byte_model(tmp_path)
    config = validate({"model": {"name": str(model_dir)}})
    pieces_of = _pieces_of(replace(EMPTY, config=config))
    text = "So \\boxed{12}\n\n😀 = 𝑥"
    ids = AutoTokenizer.from_pretrained(model_dir)(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(ids, text)
    assert len(pieces) == len(ids) > len(text)
    assert sum(pieces) == len(text) + 2  # two characters outside the first plane
    assert pieces_of(ids, text + "!") is None


def test_the_headline_compares_the_base_with_the_adapter_for_each_set() -> None:
    def evaluated(folder: str, problems: str, accuracy: float) -> Evaluated:
        return Evaluated(folder, problems, 10, 1, accuracy, (0.0, 1.0), 0.0, 5.0)

    evaluations = [
        evaluated("base", "dev", 0.1),
        evaluated("adapter", "dev", 0.9),
        evaluated("step-000010", "dev", 0.3),
        evaluated("adapter", "amc", 0.7),
    ]
    facts = dict(headline(replace(EMPTY, evaluations=evaluations)))
    assert facts["accuracy on dev, base → adapter"] == "10.0 % → 90.0 %"
    assert facts["accuracy on amc, adapter"] == "70.0 %"


def test_a_run_that_is_trained_further_has_not_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_steps=3)
    (run / "adapter").mkdir()
    assert not read_run(run).has_ended  # 3 of 10 steps: the adapter is of an earlier end
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("max_steps: 10", "max_steps: 3"))
    assert read_run(run).has_ended


def test_two_runs_stand_on_one_page_with_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    text = (two / "config.yaml").read_text()
    (two / "config.yaml").write_text(text.replace("lr: 0.0003", "lr: 0.001"))
    file = report([one, two])
    assert file == Path("comparison.html")
    data = json.loads(Scripts(file.read_text()).scripts[0])
    assert data["differing"] == {"optim.lr": [3e-4, 1e-3]}


def test_charts_name_metrics_that_exist() -> None:
    names = [name for chart in CHARTS for name in chart.series]
    assert len(set(names)) == len(names)
    assert {entry(re.sub("_N$", "_1", name)) for name in names} <= set(TABLE)


def test_a_chart_shows_what_the_rows_have() -> None:
    rows = [{"step": 1, "rollout/helped_2": 0.5, "rollout/helped_3": 0.0, "verdict/correct": 1.0, "verdict/wrong": 0.0}]
    series = {chart.chart.title: chart.series for chart in drawn([rows])}
    assert series == {
        "Rollouts with help, by micro-group": {
            "rollout/helped_2": "micro-group 2",
            "rollout/helped_3": "micro-group 3",
        },
        "Verdicts": {"verdict/correct": "correct"},
    }


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_draws_the_page_and_runs_nothing_of_a_rollout(tmp_path: Path) -> None:
    lines = [line(HOSTILE, 0, completion=HOSTILE), line(HOSTILE, 1, prefix="Begin.", ratio=0.5, verdict="wrong")]
    (tmp_path / "other").mkdir()
    runs = [make_run(tmp_path / "run", lines=lines), make_run(tmp_path / "other/run")]
    file = report(runs, tmp_path / "page.html")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    body = done.stdout.partition("<body>")[2].partition('<script id="data"')[0]
    assert body.count("<svg") == len(drawn([read_run(tmp_path / "run").rows]))  # every chart
    assert 'aria-label="Reward, mean reward. ' in body and "from 0.1 to 0.3" in body
    assert "<img" not in body and "<script" not in body and "taken" not in title
    for name in (f"{tmp_path.name}/run", "other/run"):
        assert name in title and f">{name}<" in body
    assert "&lt;img src=x onerror=alert(1)&gt;" in body
    for part in ("Overview", "Curves", "Rollouts", "Options", "steps", "3 of 10", "12 of 12 rollouts on this page"):
        assert part in body
