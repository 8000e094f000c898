"""Show a data set as the trainer will see it, write a cleaned copy, or show one problem in detail."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from trapo_lite.config import Config, DataSection
from trapo_lite.config.paths import check_sources
from trapo_lite.core.errors import ConfigError, DataError
from trapo_lite.core.in_words import counted
from trapo_lite.curation.decontamination import Overlap
from trapo_lite.curation.inspection import find_problem, show_problem
from trapo_lite.curation.training_set import Build, build_training_set
from trapo_lite.data.chat import stop_ids_of
from trapo_lite.data.expert_thoughts import require_fitting_experts
from trapo_lite.data.loading import Loaded, Scorer, load_problems
from trapo_lite.data.report import DataReport
from trapo_lite.data.teacher_prompts import with_teacher_prompts
from trapo_lite.data.tokens import load_tokenizer
from trapo_lite.evaluation.registry import Benchmark, read_benchmark, texts_fingerprint
from trapo_lite.reward import Scorer as RewardScorer
from trapo_lite.run.lines import Lines


def prepare(
    config: Config,
    console: Console | None = None,
    *,
    out: str | None = None,
    second: str | None = None,
    overlap: Mapping[str, Benchmark] | None = None,
    remove_overlap: bool = False,
    allow_part: bool = False,
    restart: bool = False,
    verify: bool = False,
    inspect: str | None = None,
) -> None:
    """Print what the data holds, or with `out` build a training set from it. Show the problem `inspect` (id or index).

    second, overlap, remove_overlap, restart: as in training_set.Build;  allow_part: as in benchmarks.read_benchmark
    verify: grade the expert traces, in both readings of data.expert_text

    Loads a tokenizer, never a model. Raises ConfigError or DataError for unusable arguments or data.
    """
    console = console or Console()
    sources = check_sources(config.data.train)
    if out is None and (second is not None or overlap or restart):
        raise ConfigError(
            "--second, --decontaminate, --restart: are about the set that is written; give --out FILE.jsonl"
        )
    if out is not None and inspect is not None:
        raise ConfigError(f"--inspect: shows a row of data.train, not of what is built; then give data.train={out}")
    if out is not None and config.reward.own_functions:
        raise ConfigError(
            "--out: writes problem, answer and solutions, but reward.functions has a function that may take other "
            "columns; choose rows by data.filter instead, or leave the function out"
        )
    if second is not None:
        check_sources(second, option="--second")
    if out is not None:
        _check_out(Path(out), [*sources, *([second] if second else [])], restart=restart)
    tokenizer = load_tokenizer(config.model.name)
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(Lines(console=console))
        scorer = stack.enter_context(RewardScorer(config.reward, notify=lines.message)) if verify else None
        if out is not None:
            lines.phase("reading the benchmarks")
            problems = {
                name: _texts(name, benchmark, allow_part=allow_part) for name, benchmark in (overlap or {}).items()
            }
            build = Build(
                config,
                Path(out),
                second=second,
                overlap=Overlap(problems) if problems else None,
                overlap_names=tuple(
                    f"{name}={benchmark.source} {texts_fingerprint(problems[name])[:12]}"
                    for name, benchmark in (overlap or {}).items()
                ),
                remove_overlap=remove_overlap,
                scorer=scorer,
                restart=restart,
            )
            lines.phase(f"building {out}")
            counts = build_training_set(build, tokenizer, lines.message)
            lines.results([*counts.lines(), f"wrote {counted(counts.num_kept, 'row')} to {out}"])
        else:
            what = "reading and verifying" if verify else "reading"
            lines.phase(f"{what} {config.data.train}")
            loaded = _load(config, config.data, tokenizer, scorer)
            if scorer is not None:
                scorer.require_success()
            if config.algorithm.ever_uses_experts:
                require_fitting_experts(config.data, loaded.examples, tokenizer)
            if loaded.report.num_traces and (teacher := config.algorithm.any_teacher) is not None:
                most = config.teacher_prompt_tokens
                loaded = with_teacher_prompts(loaded, config.data, teacher, tokenizer, max_prompt_tokens=most)
            shown = None if inspect is None else find_problem(loaded.problems, inspect)
            lines.results(loaded.report.lines())
            if loaded.report.num_traces == 0 and config.algorithm.needs_solutions:
                cure = "name their column in data.columns, or choose an algorithm without (grpo)"
                lines.results([f"warning: no row has a usable expert solution, which the algorithm needs; {cure}"])
            lines.phase(f"{what} it with the other data.expert_text")
            lines.results([_other_reading(config, loaded.report, tokenizer, scorer)])
            if shown is not None:
                stop_ids = stop_ids_of(config.data, tokenizer, model=config.model.name)
                show_problem(console, shown, config, tokenizer, stop_ids=stop_ids)


def _texts(name: str, benchmark: Benchmark, *, allow_part: bool) -> list[str]:
    """Return a benchmark's problems without the text of its template."""
    bare = benchmark.model_copy(update={"template": "{problem}"})
    pairs, _ = read_benchmark(name, bare, allow_part=allow_part)
    return [problem for problem, _ in pairs]


def _check_out(path: Path, sources: Sequence[str], *, restart: bool) -> None:
    if not path.parent.is_dir():
        raise DataError(f"--out {path}: there is no folder {path.parent}; make it or choose another place")
    if path.suffix != ".jsonl":
        raise DataError(f"--out {path}: is written as JSON lines; give it a name that ends in .jsonl")
    if any(path.resolve() == Path(source).expanduser().resolve() for source in sources):
        raise DataError(f"--out {path}: is also read by data.train or --second; choose another place")
    work = path.with_suffix(".work")
    if path.is_dir() or work.is_file():
        raise DataError(f"--out {path}: {path if path.is_dir() else work} is in the way; choose another name")
    if path.exists() and not restart and not (work / "state.json").exists():
        raise DataError(f"--out {path}: is there already; choose another name, or give --restart to build it again")


def _load(config: Config, data: DataSection, tokenizer: PreTrainedTokenizerBase, scorer: Scorer | None) -> Loaded:
    limit = config.rollout.max_response_tokens
    return load_problems(data, tokenizer, max_response_tokens=limit, rewards=config.reward, scorer=scorer)


def _other_reading(
    config: Config, report: DataReport, tokenizer: PreTrainedTokenizerBase, scorer: Scorer | None
) -> str:
    """Return a line on the expert traces with the other data.expert_text."""
    other = "full" if config.data.expert_text == "thought" else "thought"
    where = f"  with data.expert_text: {other}"
    try:
        change = _load(config, config.data.model_copy(update={"expert_text": other}), tokenizer, scorer).report
    except DataError as error:
        return f"{where}: {error}"
    if change.fingerprint == report.fingerprint:
        return f"{where} the expert traces are the same"
    graded = f", {change.num_unverified} of {change.num_graded} do not verify" if change.num_graded else ""
    return (
        f"{where} there are {counted(change.num_traces, 'trace')}, "
        f"median {change.trace_lengths.get('median', 0)} tokens{graded}"
    )
