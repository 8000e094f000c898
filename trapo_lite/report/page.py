"""Write a page about runs: one HTML file that needs no network and no server."""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from trapo_lite.core.errors import ConfigError, TrapoLiteError
from trapo_lite.core.in_words import counted
from trapo_lite.report.charts import drawn
from trapo_lite.report.rollout_sample import PiecesOf, RolloutSample, sample_rollouts
from trapo_lite.report.run_data import BASES, RunData, read_run
from trapo_lite.report.script_json import in_script
from trapo_lite.run.files import replace_text

MOST_BYTES = 3_000_000
"""This is the limit of the rollouts on a page."""
MOST_STEPS = 1_500
"""This is the limit of the curves, for all runs together. With charts and library, a page is below 5 MB."""


def report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page about the runs in these folders, and return its file.

    out: default: report.html in the run's folder, or comparison.html here if there are several
    Raises ConfigError for a folder that is no run's, and for a file that cannot be written.
    """
    for index, folder in enumerate(folders):
        if folder.resolve() in [earlier.resolve() for earlier in folders[:index]]:
            raise ConfigError(f"{folder}: is named twice; give each run once")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ConfigError(f"--out {out}: {'is a folder' if out.is_dir() else 'its folder is not there'}; name a file")
    runs = [read_run(folder) for folder in folders]
    if out is None:
        out = folders[0] / "report.html" if len(folders) == 1 else Path("comparison.html")
    replace_text(out, page(page_data(runs)))
    return out


def page(data: dict[str, Any]) -> str:
    """Return the page as HTML. What is in `data`, texts of rollouts too, is data to the browser and never markup."""
    return Template(_asset("page.html")).substitute(
        title=html.escape(data["title"]),
        css=_asset("page.css"),
        library=vega(),
        script=_asset("page.js"),
        data=in_script(data),
    )


def page_data(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return all that the page shows, as plain values."""
    charts = [chart.to_json() for chart in drawn([run.rows for run in runs])]
    metrics = sorted({metric for chart in charts for metric in chart["series"]})
    names = run_names([run.folder for run in runs])
    return {
        "title": ", ".join(names),
        "charts": charts,
        "runs": [
            {"name": name, **_run_json(run, metrics, num_runs=len(runs))} for name, run in zip(names, runs, strict=True)
        ],
        "differing": _differing(runs),
    }


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return the names of the folders, each with as many of those above as tell it from the others.

    >>> run_names([Path("/a/x"), Path("/b/x"), Path("/b/y")])
    ['a/x', 'b/x', 'y']
    """
    parts = [folder.resolve().parts for folder in folders]
    names = ["" for _ in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        counts = Counter(names)
        longer = ["/".join(of[-depth:]) for of in parts]
        names = [more if counts[name] > 1 or not name else name for name, more in zip(names, longer, strict=True)]
    return names


def _run_json(run: RunData, metrics: Sequence[str], *, num_runs: int) -> dict[str, Any]:
    sample = sample_rollouts(run.folder / "rollouts", most_bytes=MOST_BYTES // num_runs, pieces_of=_pieces_of(run))
    rows = _thinned(run.rows, most=MOST_STEPS // num_runs)
    missing = [*run.missing, *_sample_lines(sample)]
    if len(rows) < len(run.rows):
        missing.append(f"Curves show {len(rows)} of {len(run.rows)} steps, spread evenly.")
    return {
        "headline": headline(run),
        "warnings": run.warnings,
        "missing": missing,
        "steps": [row["step"] for row in rows],
        "columns": {name: [_rounded(row.get(name)) for row in rows] for name in metrics},
        "evaluations": [asdict(each) for each in run.evaluations],
        "options": run.options,
        "changed": run.changed,
        "starts": run.starts,
        "groups": sample.groups,
    }


def _thinned(rows: Sequence[dict[str, Any]], *, most: int) -> list[dict[str, Any]]:
    """Return rows that are spread evenly, with the last one and, if they are not too many, those of evaluations."""
    every = -(-len(rows) // max(1, most))
    kept = {*range(0, len(rows), every or 1), len(rows) - 1}
    evaluations = [index for index, row in enumerate(rows) if row.get("eval/accuracy") is not None]
    kept |= set(evaluations if len(evaluations) <= most else [])
    return [row for index, row in enumerate(rows) if index in kept]


def headline(run: RunData) -> list[tuple[str, str]]:
    """Return the facts that a reader wants first, as (name, value)."""
    facts = _accuracies(run)
    measured = [row["eval/accuracy"] for row in run.rows if row.get("eval/accuracy") is not None]
    if not facts and measured:
        facts.append(("accuracy on eval.data, first → last", f"{_percent(measured[0])} → {_percent(measured[-1])}"))
    rewards = [row["reward/own"] for row in run.rows if row.get("reward/own") is not None]
    if rewards:
        facts.append(("reward by itself, first → last", f"{rewards[0]:.2f} → {rewards[-1]:.2f}"))
    most = run.options.get("train.max_steps")
    done = run.rows[-1]["step"] if run.rows else 0
    facts.append(("steps", f"{done} of {most}" if most else str(done)))
    if run.rows:
        facts.append(("time", _duration(sum(row.get("time/step") or 0.0 for row in run.rows))))
    peaks = [row["memory/peak_gib"] for row in run.rows if row.get("memory/peak_gib") is not None]
    if peaks:
        facts.append(("memory", f"{max(peaks):.2f} GiB"))
    if run.starts:
        facts.append(("machine", str(run.starts[-1].get("device", "not known"))))
    resumed = sum(start["after_step"] > 0 for start in run.starts)
    state = "ended" if run.has_ended else "not ended"
    facts.append(("state", state + (f", resumed {counted(resumed, 'time')}" if resumed else "")))
    return facts


def _accuracies(run: RunData) -> list[tuple[str, str]]:
    """Return, for up to three sets of problems, the accuracy of the base and of what was trained."""
    facts = []
    for problems in dict.fromkeys(each.problems for each in run.evaluations):
        of_set = [each for each in run.evaluations if each.problems == problems]
        before = next((each for each in of_set if each.folder in BASES), None)
        trained = [each for each in of_set if each.folder not in BASES]
        after = next((each for each in trained if each.folder == "adapter"), trained[-1] if trained else None)
        if before and after:
            values = f"{_percent(before.accuracy)} → {_percent(after.accuracy)}"
            facts.append((f"accuracy on {problems}, base → {after.folder}", values))
        elif shown := after or before:
            facts.append((f"accuracy on {problems}, {shown.folder}", _percent(shown.accuracy)))
    return facts[:3]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{seconds:.0f} s"


def _rounded(value: float | int | None) -> float | int | None:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _differing(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """Return the options in which the runs differ, with each one's value; names and folders of runs are left out."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    values = {name: [run.options.get(name) for run in runs] for name in names if name not in ("run.name", "run.dir")}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def _sample_lines(sample: RolloutSample) -> list[str]:
    lines = []
    if sample.num_shown < sample.num_all:
        lines.append(
            f"{sample.num_shown} of {counted(sample.num_all, 'rollout')} are on this page: whole problems, from steps "
            "that are spread evenly over the run. The folder rollouts/ has all."
        )
    if sample.num_damaged:
        lines.append(f"{counted(sample.num_damaged, 'line')} of the rollouts could not be read.")
    if any(rollout.get("is_cut") for group in sample.groups for rollout in group["rollouts"]):
        lines.append("Very long texts of rollouts are cut on this page, and their tokens have no probabilities.")
    return lines


def _pieces_of(run: RunData) -> PiecesOf | None:
    """Return a function that gives the length of each token's text, or None without the model's tokenizer."""
    if run.config is None or not Path(run.config.model.name).is_dir():  # nothing is asked of the hub
        return None
    from trapo_lite.data.tokens import load_tokenizer, text_of

    try:
        tokenizer = load_tokenizer(run.config.model.name)
    except TrapoLiteError:
        return None

    @cache
    def text_of_tokens(ids: tuple[int, ...]) -> str:
        return text_of(tokenizer, ids, with_special=True)

    def pieces_of(ids: Sequence[int], text: str) -> list[int] | None:
        """Give a character that several tokens form together to the last of them."""
        texts, open_ids = [], []
        for token_id in ids:
            open_ids.append(token_id)
            piece = text_of_tokens(tuple(open_ids))
            is_whole = not piece.endswith("\N{REPLACEMENT CHARACTER}")
            texts.append(piece if is_whole else "")
            if is_whole:
                open_ids = []
        if "".join(texts) != text:  # a tokenizer whose tokens have another text alone
            return None
        return [len(piece.encode("utf-16-le")) // 2 for piece in texts]

    return pieces_of


@cache
def vega() -> str:
    """Return the chart library as one script: Vega, Vega-Lite and vega-embed."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


@cache
def _asset(name: str) -> str:
    return (resources.files("trapo_lite.report") / name).read_text(encoding="utf-8")
