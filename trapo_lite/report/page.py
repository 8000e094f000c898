"""Write a page about runs: one HTML file that needs no network and no server."""

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from trapo_lite.core.errors import ConfigError, TrapoLiteError
from trapo_lite.core.in_words import counted
from trapo_lite.report.charts import drawn
from trapo_lite.report.rollout_sample import RolloutSample, sample_rollouts
from trapo_lite.report.run_data import RunData, read_run
from trapo_lite.run.files import replace_text

MOST_BYTES = 3_000_000
"""Of the rollouts on a page, which stays below 5 MB with charts and library."""


def report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page about the runs in these folders, and return its file.

    out: default: report.html in the run's folder, or comparison.html here if there are several
    Raises ConfigError for a folder that is no run's, and for a file that cannot be written.
    """
    for index, folder in enumerate(folders):
        if folder.resolve() in [earlier.resolve() for earlier in folders[:index]]:
            raise ConfigError(f"{folder}: is named twice; give each run once")
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
        data=_in_script(data),
    )


def page_data(runs: Sequence[RunData], *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Return all that the page shows, as plain values."""
    charts = [chart.to_json() for chart in drawn([run.rows for run in runs])]
    names = sorted({name for chart in charts for name in chart["series"]})
    share = most_bytes // max(1, len(runs))
    return {
        "title": ", ".join(run.name for run in runs),
        "charts": charts,
        "runs": [_run_json(run, names, most_bytes=share) for run in runs],
        "differing": _differing(runs),
    }


def _run_json(run: RunData, names: Sequence[str], *, most_bytes: int) -> dict[str, Any]:
    sample = sample_rollouts(run.folder / "rollouts", most_bytes=most_bytes, pieces_of=_pieces_maker(run))
    return {
        "name": run.name,
        "folder": str(run.folder),
        "headline": headline(run),
        "warnings": run.warnings,
        "missing": [*run.missing, *_sample_lines(sample)],
        "steps": [row["step"] for row in run.rows],
        "columns": {name: [_rounded(row.get(name)) for row in run.rows] for name in names},
        "evaluations": [asdict(each) for each in run.evaluations],
        "options": run.options,
        "changed": run.changed,
        "starts": run.starts,
        "groups": sample.groups,
    }


def headline(run: RunData) -> list[tuple[str, str]]:
    """Return the facts that a reader wants first, as (name, value)."""
    facts = []
    measured = [row["eval/accuracy"] for row in run.rows if row.get("eval/accuracy") is not None]
    if run.evaluations:
        first, last = run.evaluations[0], run.evaluations[-1]
        facts.append(("accuracy, evaluated", _percent(last.accuracy)))
        if first.folder in ("base", "before") and first.problems == last.problems and first is not last:
            facts[-1] = ("accuracy before → after", f"{_percent(first.accuracy)} → {_percent(last.accuracy)}")
    elif measured:
        facts.append(("accuracy on eval.data, first → last", f"{_percent(measured[0])} → {_percent(measured[-1])}"))
    rewards = [row["reward/own"] for row in run.rows if row.get("reward/own") is not None]
    if rewards:
        facts.append(("reward by itself, first → last", f"{rewards[0]:.2f} → {rewards[-1]:.2f}"))
    most = run.options.get("train.max_steps")
    done = run.rows[-1]["step"] if run.rows else 0
    facts.append(("steps", f"{done} of {most}" if most else str(done)))
    if run.rows:
        seconds = sum(row.get("time/step") or 0.0 for row in run.rows)
        facts.append(("time", _duration(seconds)))
    peaks = [row["memory/peak_gib"] for row in run.rows if row.get("memory/peak_gib") is not None]
    if peaks:
        facts.append(("memory", f"{max(peaks):.2f} GiB"))
    if run.starts:
        facts.append(("machine", str(run.starts[-1].get("device", "not known"))))
    state = "ended" if run.has_adapter else "not ended"
    resumed = sum(start["after_step"] > 0 for start in run.starts)
    facts.append(("state", state + (f", resumed {counted(resumed, 'time')}" if resumed else "")))
    return facts


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
        lines.append("Very long texts of rollouts are cut on this page.")
    return lines


def _pieces_maker(run: RunData) -> Callable[[Sequence[int]], list[int]] | None:
    """Return a function of token ids that gives the length of each token's text, or None without the tokenizer."""
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

    def pieces_of(ids: Sequence[int]) -> list[int]:
        """Give a character that several tokens form together to the last of them."""
        lengths, open_ids = [], []
        for token_id in ids:
            open_ids.append(token_id)
            text = text_of_tokens(tuple(open_ids))
            is_whole = not text.endswith("\N{REPLACEMENT CHARACTER}")
            lengths.append(len(text) if is_whole else 0)
            if is_whole:
                open_ids = []
        return lengths

    return pieces_of


@cache
def vega() -> str:
    """Return the chart library as one script: Vega, Vega-Lite and vega-embed."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


@cache
def _asset(name: str) -> str:
    return (resources.files("trapo_lite.report") / name).read_text(encoding="utf-8")


def _in_script(data: Any) -> str:
    r"""Return JSON that may stand inside a script element: no text in it can end the element.

    >>> print(_in_script("</script>"))
    "\u003c/script\u003e"
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
