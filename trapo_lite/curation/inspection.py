"""Show one problem with its prefixes and the losses on each of its tokens."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from trapo_lite.config import Config
from trapo_lite.config.over_steps import in_words
from trapo_lite.config.stage import StageSection
from trapo_lite.core.errors import DataError
from trapo_lite.core.in_words import counted
from trapo_lite.core.micro_groups import MicroGroup, cut_prefix
from trapo_lite.core.types import Problem
from trapo_lite.data.shown_prefix import prompt_maker
from trapo_lite.data.template import shown_tokens
from trapo_lite.data.tokens import is_boundary_fn, text_of

CUT_STYLES = ("green", "cyan", "magenta", "yellow", "blue")


def find_problem(problems: Sequence[Problem], key: str) -> Problem:
    """Return the problem with this id, or else at this index from 0. Raise DataError if there is neither."""
    for problem in problems:
        if problem.id == key:
            return problem
    if key.isdecimal() and int(key) < len(problems):
        return problems[int(key)]
    raise DataError(
        f"--inspect {key}: no such id among {counted(len(problems), 'problem')}; give an id such as {problems[0].id!r} "
        f"or an index from 0 to {len(problems) - 1}"
    )


def show_problem(
    console: Console,
    problem: Problem,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    stop_ids: Sequence[int],
) -> None:
    """Print prompt and stop tokens, help and losses of each micro-group, and the traces with prefixes' ends marked."""
    algorithm = config.algorithm
    is_boundary = is_boundary_fn(tokenizer)
    print_lines(console, [f"\nproblem {problem.id}, answer {problem.answer}"])
    _print_title(console, f"prompt, {len(problem.prompt_ids)} tokens")
    print_lines(console, [text_of(tokenizer, problem.prompt_ids, with_special=True)])
    print_lines(console, [f"    {shown_tokens(tokenizer, problem.prompt_ids, is_whole=True)}"])
    if problem.teacher_prompt_ids:
        teacher = algorithm.any_teacher
        is_control = teacher is not None and teacher.solution_of == "other"
        whose = ", with the solution of another problem" if is_control else ""
        _print_title(console, f"the teacher's prompt{whose}, {len(problem.teacher_prompt_ids)} tokens")
        print_lines(console, [text_of(tokenizer, problem.teacher_prompt_ids, with_special=True)])
    print_lines(console, [f"an answer ends at {shown_tokens(tokenizer, stop_ids, is_whole=True)}"])
    cuts: list[dict[int, int]] = [{} for _ in problem.expert_ids]
    groups = [(stage, group) for stage in algorithm.stages for group in stage.micro_groups]
    for group_index, (stage, micro_group) in enumerate(groups):
        help_lines = []
        for trace in _traces_for(micro_group, len(problem.expert_ids)):
            token_ids = problem.expert_ids[trace]
            for ratio in sorted(micro_group.drawn_from) or [micro_group.prefix_ratio]:
                keep = cut_prefix(token_ids, ratio, is_boundary)
                cuts[trace][group_index] = keep  # the longest one stays
                help_lines.append(f"    {keep} of the {len(token_ids)} tokens of trace {trace}")
        of_stage = f"stage {algorithm.stages.index(stage) + 1}, " if len(algorithm.stages) > 1 else ""
        described = _describe(group_index, micro_group, bool(help_lines))
        _print_title(console, of_stage + described, style=_style(group_index))
        print_lines(console, [*help_lines, f"    {_losses(stage, micro_group, bool(help_lines))}"])
        if help_lines and micro_group.prefix_in == "prompt":
            prompt_ids = prompt_maker(config.data, tokenizer, stage.prefix_instruction)(problem, token_ids[:keep])
            _print_title(console, f"the prompt with the last of these prefixes, {len(prompt_ids)} tokens")
            print_lines(console, [text_of(tokenizer, prompt_ids, with_special=True)])
    if marked := next((index + 1 for cut in cuts for index in cut), None):
        legend = f"in the traces below, <<{marked} stands where a prefix of micro-group {marked} ends"
        print_line(console, f"{legend}; it is no part of them")
    for trace, token_ids in enumerate(problem.expert_ids):
        _print_title(console, f"trace {trace}, {len(token_ids)} tokens")
        console.print(_marked_trace(token_ids, cuts[trace], tokenizer), soft_wrap=True)


def _traces_for(micro_group: MicroGroup, num_traces: int) -> range:
    """Return the traces whose prefix a micro-group may be given: none, its own (or the first), or any."""
    if micro_group.prefix_ratio == 0.0 or num_traces == 0:
        return range(0)
    if micro_group.trace is None:
        return range(num_traces)
    own = micro_group.trace if micro_group.trace < num_traces else 0
    return range(own, own + 1)


def _describe(group_index: int, micro_group: MicroGroup, is_helped: bool) -> str:
    num = micro_group.num_rollouts
    text = f"micro-group {group_index + 1}: {counted(num, 'rollout')}"
    if not is_helped:
        return f"{text}, no prefix"
    when = "always" if micro_group.help_below is None else f"if the mean reward is below {micro_group.help_below:.3g}"
    which = "a trace at random" if micro_group.trace is None else "its trace"
    ratios = " or ".join(f"{ratio:g}" for ratio in micro_group.drawn_from or [micro_group.prefix_ratio])
    otherwise = ", otherwise nothing is drawn" if micro_group.otherwise == "skip" else ""
    where = " in the prompt" if micro_group.prefix_in == "prompt" else ""
    otherwise = f"{where}{', instead of RL' if micro_group.replaces_rl else ''}{otherwise}"
    return f"{text}, ratio {ratios} of {which} {when}{otherwise}"


def _losses(algorithm: StageSection, micro_group: MicroGroup, is_helped: bool) -> str:
    """Return the names of the losses that train such a rollout."""
    parts = []
    entropy = [f"entropy x {algorithm.entropy_weight:g}"] if algorithm.entropy_weight else []
    if is_helped:
        which = "" if micro_group.num_trained is None else f" of the last {micro_group.num_trained}"
        prefix_loss = algorithm.prefix_loss
        is_trained = prefix_loss.type != "none"
        loss = f"{prefix_loss.describe()} x {in_words(prefix_loss.weight)}" if is_trained else "no prefix loss"
        parts.append(f"prefix{which}: " + ", ".join([loss, *entropy]))
    is_all_expert = micro_group.prefix_ratio == 1.0 and micro_group.help_below is None
    if not is_all_expert:
        kl = [f"KL to the base x {algorithm.kl_weight:g}"] if algorithm.kl_weight else []
        loss, teacher = algorithm.completion_loss, algorithm.teacher
        own = [part.describe() for part in (loss, teacher) if part.type != "none"]
        parts.append("own tokens: " + ", ".join([*(own or ["no loss"]), *entropy, *kl]))
    return "; ".join(parts)


def _marked_trace(token_ids: Sequence[int], cuts: dict[int, int], tokenizer: PreTrainedTokenizerBase) -> Text:
    """Return the text of a trace in the colours of the first micro-group to reach it; <<number marks a prefix's end."""
    text = Text()
    start = 0
    for group_index, keep in sorted(cuts.items(), key=lambda cut: cut[1]):
        text.append(text_of(tokenizer, token_ids[start:keep], with_special=True), style=_style(group_index))
        text.append(f"<<{group_index + 1}", style="bold reverse")
        start = keep
    return text.append(text_of(tokenizer, token_ids[start:], with_special=True), style="dim")


def _style(group_index: int) -> str:
    return CUT_STYLES[group_index % len(CUT_STYLES)]


def _print_title(console: Console, title: str, *, style: str = "") -> None:
    console.print(Text(title, style=f"bold {style}".strip()), soft_wrap=True)


def print_line(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        print_line(console, line)
