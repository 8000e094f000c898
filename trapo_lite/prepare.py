"""The data job: what a data set holds as the trainer will see it, a cleaned copy, a closer look at one problem."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from trapo_lite.benchmarks import Benchmark, read_benchmark, texts_fingerprint
from trapo_lite.config import AlgorithmSection, Config, ConfigError, DataSection
from trapo_lite.data import DataError, DataReport, check_sources, is_boundary_fn, load_tokenizer, text_of
from trapo_lite.data.loading import Grader, Loaded, load_with_rows
from trapo_lite.data.overlap import Overlap
from trapo_lite.reward import MathVerifier
from trapo_lite.schedule import cut_prefix
from trapo_lite.training_set import Build, build_training_set
from trapo_lite.types import MicroGroup, Problem

CUT_STYLES = ("green", "cyan", "magenta", "yellow", "blue")


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
    """Print what the data holds, or with `out` build a training set of it; show the problem `inspect` (id or index).

    second, overlap, remove_overlap, restart: as in training_set.Build;  allow_part: as in benchmarks.read_benchmark
    verify: grade the expert traces, in both readings of data.expert_text

    Loads a tokenizer, never a model. Raises ConfigError, DataError for anything wrong with what it is given.
    """
    console = console or Console()
    sources = check_sources(config.data.train)
    if out is None and (second is not None or overlap or restart):
        raise ConfigError(
            "--second, --decontaminate, --restart: are about the set that is written; give --out FILE.jsonl"
        )
    if out is not None and inspect is not None:
        raise ConfigError(f"--inspect: shows a row of data.train, not of what is built; then give data.train={out}")
    if second is not None:
        check_sources(second, option="--second")
    if out is not None:
        _check_out(Path(out), [*sources, *([second] if second else [])], restart=restart)
    tokenizer = load_tokenizer(config.model.name)
    with MathVerifier.from_config(config.reward) if verify else nullcontext() as grader:
        if out is not None:
            problems = {name: _texts(name, one, allow_part=allow_part) for name, one in (overlap or {}).items()}
            build = Build(
                config,
                Path(out),
                second=second,
                overlap=Overlap(problems) if problems else None,
                overlap_names=tuple(
                    f"{name}={one.source} {texts_fingerprint(problems[name])[:12]}"
                    for name, one in (overlap or {}).items()
                ),
                remove_overlap=remove_overlap,
                verifier=grader,
                restart=restart,
            )
            counts = build_training_set(build, tokenizer, partial(_print_line, console))
            _print_lines(console, [*counts.lines(), f"wrote {counts.num_kept} rows to {out}"])
        else:
            loaded = _load(config, config.data, tokenizer, grader)
            shown = None if inspect is None else find_problem(loaded.problems, inspect)
            _print_lines(console, loaded.report.lines())
            _print_lines(console, [_other_reading(config, loaded.report, tokenizer, grader)])
            if shown is not None:
                show_problem(console, shown, config.algorithm, tokenizer)


def _texts(name: str, benchmark: Benchmark, *, allow_part: bool) -> list[str]:
    """A benchmark's problems without what is put around them."""
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
        raise DataError(f"--out {path}: is there already; choose another name, or give --restart to build it anew")


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
    console: Console, problem: Problem, algorithm: AlgorithmSection, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The prompt, what each micro-group would be given and which loss trains it, and the traces with the ends of the
    prefixes marked in them."""
    micro_groups = algorithm.micro_groups
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
        _print_lines(console, [*help_lines, f"    {_losses(algorithm, micro_group, bool(help_lines))}"])
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


def _losses(algorithm: AlgorithmSection, micro_group: MicroGroup, is_helped: bool) -> str:
    """What trains the tokens of such a rollout."""
    parts = []
    entropy = [f"entropy x {algorithm.entropy_weight:g}"] if algorithm.entropy_weight else []
    if is_helped:
        which = "" if micro_group.num_trained is None else f" of the last {micro_group.num_trained}"
        loss = f"{algorithm.prefix_loss} x {algorithm.prefix_weight:g}" if algorithm.has_prefix_loss else "no SFT loss"
        parts.append(f"prefix{which}: " + ", ".join([loss, *entropy]))
    is_all_expert = micro_group.prefix_ratio == 1.0 and micro_group.help_below is None
    if not is_all_expert:
        kl = [f"KL to the base x {algorithm.kl_weight:g}"] if algorithm.kl_weight else []
        parts.append("own tokens: " + ", ".join(["policy gradient", *entropy, *kl]))
    return "; ".join(parts)


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


def _print_line(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        _print_line(console, line)
