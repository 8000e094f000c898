"""The data job: what a data set holds as the trainer will see it, a cleaned copy, a closer look at one problem."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from trapo_lite.config import Config, DataSection
from trapo_lite.data import DataError, DataReport, check_sources, is_boundary_fn, load_tokenizer, text_of
from trapo_lite.data.loading import Grader, Loaded, load_with_rows
from trapo_lite.data.rows import Example
from trapo_lite.reward import MathVerifier
from trapo_lite.schedule import cut_prefix
from trapo_lite.types import MicroGroup, Problem

CUT_STYLES = ("green", "cyan", "magenta", "yellow", "blue")


def prepare(
    config: Config,
    console: Console | None = None,
    *,
    out: str | None = None,
    verify: bool = False,
    inspect: str | None = None,
) -> DataReport:
    """Print the report; write the kept rows to `out`; show the problem with the id or index `inspect`.

    Loads a tokenizer, never a model. verify: grade the expert traces, in both readings of data.expert_text.
    Raises DataError for anything wrong with data, tokenizer, `out` or `inspect`.
    """
    console = console or Console()
    sources = check_sources(config.data.train)
    if out is not None:
        _check_out(Path(out), sources)
    tokenizer = load_tokenizer(config.model.name)
    with MathVerifier.from_config(config.reward) if verify else nullcontext() as grader:
        loaded = _load(config, config.data, tokenizer, grader)
        _print_lines(console, loaded.report.lines())
        _print_lines(console, [_other_reading(config, loaded.report, tokenizer, grader)])
    if out is not None:
        write_rows(loaded, Path(out), keep_system=config.data.system == "row")
        _print_lines(console, [f"wrote {len(loaded.examples)} rows to {out}"])
    if inspect is not None:
        problem = find_problem(loaded.problems, inspect)
        show_problem(console, problem, config.algorithm.micro_groups, tokenizer)
    return loaded.report


def _check_out(path: Path, sources: Sequence[str]) -> None:
    if not path.parent.is_dir():
        raise DataError(f"--out {path}: there is no folder {path.parent}; make it or choose another place")
    if path.suffix != ".jsonl":
        raise DataError(f"--out {path}: is written as JSON lines; give it a name that ends in .jsonl")
    if any(path.resolve() == Path(source).expanduser().resolve() for source in sources):
        raise DataError(f"--out {path}: is also read by data.train; choose another place")


def write_rows(loaded: Loaded, path: Path, *, keep_system: bool) -> None:
    """Kept rows with their original texts, in the simple form; loading them gives the same problems again."""
    try:
        with path.open("w", encoding="utf-8") as file:
            for example in loaded.examples:
                file.write(json.dumps(_simple_row(example, keep_system), ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"--out {path}: cannot be written: {error.strerror}; choose another place") from None


def _simple_row(example: Example, keep_system: bool) -> dict[str, object]:
    row: dict[str, object] = {
        "id": example.id,
        "problem": example.problem,
        "answer": example.answer,
        "solutions": list(example.solutions),
        "source": example.source,
    }
    return row | {"system": example.system} if keep_system and example.system is not None else row


def find_problem(problems: Sequence[Problem], key: str) -> Problem:
    """The problem with this id or else at this index (from 0); DataError where there is neither."""
    for problem in problems:
        if problem.id == key:
            return problem
    if key.isdecimal() and int(key) < len(problems):
        return problems[int(key)]
    raise DataError(
        f"--inspect {key}: no such id among {len(problems)} problems; give an id such as {problems[0].id!r} or "
        f"an index from 0 to {len(problems) - 1}"
    )


def show_problem(
    console: Console, problem: Problem, micro_groups: Sequence[MicroGroup], tokenizer: PreTrainedTokenizerBase
) -> None:
    """The prompt, what each micro-group would be given, and the traces with the ends of the prefixes marked in them."""
    is_boundary = is_boundary_fn(tokenizer)
    _print_lines(console, [f"\nproblem {problem.id}, answer {problem.answer}"])
    _print_title(console, f"prompt, {len(problem.prompt_ids)} tokens")
    _print_lines(console, [text_of(tokenizer, problem.prompt_ids, with_special=True)])
    cuts: list[dict[int, int]] = [{} for _ in problem.expert_ids]
    for number, micro_group in enumerate(micro_groups):
        help_lines = []
        for trace in _traces_for(micro_group, len(problem.expert_ids)):
            token_ids = problem.expert_ids[trace]
            keep = cut_prefix(token_ids, micro_group.prefix_ratio, is_boundary)
            cuts[trace][number] = keep
            help_lines.append(f"    {keep} of the {len(token_ids)} tokens of trace {trace}")
        _print_title(console, _describe(number, micro_group, bool(help_lines)), style=_style(number))
        _print_lines(console, help_lines)
    for trace, token_ids in enumerate(problem.expert_ids):
        _print_title(console, f"trace {trace}, {len(token_ids)} tokens")
        console.print(_marked_trace(token_ids, cuts[trace], tokenizer), soft_wrap=True)


def _traces_for(micro_group: MicroGroup, num_traces: int) -> range:
    """The traces a micro-group may be given a prefix of: none, its own (or the first), or any."""
    if micro_group.prefix_ratio == 0.0 or num_traces == 0:
        return range(0)
    if micro_group.trace is None:
        return range(num_traces)
    own = micro_group.trace if micro_group.trace < num_traces else 0
    return range(own, own + 1)


def _describe(number: int, micro_group: MicroGroup, is_helped: bool) -> str:
    num = micro_group.num_rollouts
    text = f"micro-group {number + 1}: {num} rollout{'s' if num > 1 else ''}"
    if not is_helped:
        return f"{text}, no prefix"
    when = "always" if micro_group.help_below is None else f"if the mean return is below {micro_group.help_below:.3g}"
    which = "a trace at random" if micro_group.trace is None else "its trace"
    return f"{text}, ratio {micro_group.prefix_ratio:g} of {which} {when}"


def _marked_trace(token_ids: Sequence[int], cuts: dict[int, int], tokenizer: PreTrainedTokenizerBase) -> Text:
    """The trace's text; each stretch in the colour of the first micro-group to reach it, its end marked <<number."""
    text = Text()
    start = 0
    for number, keep in sorted(cuts.items(), key=lambda cut: cut[1]):
        text.append(text_of(tokenizer, token_ids[start:keep], with_special=True), style=_style(number))
        text.append(f"<<{number + 1}", style="bold reverse")
        start = keep
    return text.append(text_of(tokenizer, token_ids[start:], with_special=True), style="dim")


def _load(config: Config, data: DataSection, tokenizer: PreTrainedTokenizerBase, grader: Grader | None) -> Loaded:
    limit = config.rollout.max_response_tokens
    return load_with_rows(data, tokenizer, max_response_tokens=limit, verifier=grader)


def _other_reading(
    config: Config, report: DataReport, tokenizer: PreTrainedTokenizerBase, grader: Grader | None
) -> str:
    """One line: what the experts would be with the other data.expert_text."""
    other = "full" if config.data.expert_text == "thought" else "thought"
    where = f"  with data.expert_text: {other}"
    try:
        change = _load(config, config.data.model_copy(update={"expert_text": other}), tokenizer, grader).report
    except DataError as error:
        return f"{where}: {error}"
    if change.fingerprint == report.fingerprint:
        return f"{where} the same"
    graded = f", {change.num_unverified} of {change.num_graded} do not verify" if change.num_graded else ""
    return f"{where} {change.num_traces} traces, median {change.trace_lengths.get('median', 0)} tokens{graded}"


def _style(number: int) -> str:
    return CUT_STYLES[number % len(CUT_STYLES)]


def _print_title(console: Console, title: str, *, style: str = "") -> None:
    console.print(Text(title, style=f"bold {style}".strip()), soft_wrap=True)


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
