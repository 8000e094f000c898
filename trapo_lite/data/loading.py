"""Turn rows into problems: read, tokenise, filter by length and count them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import DataSection, RewardSection
from trapo_lite.config.paths import check_sources
from trapo_lite.core.boxes import last_box
from trapo_lite.core.errors import DataError
from trapo_lite.core.in_words import counted
from trapo_lite.core.types import Problem, Response, Score
from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.cells import lookup
from trapo_lite.data.chat import written_out
from trapo_lite.data.expert_thoughts import how_to_close_the_thought
from trapo_lite.data.filter import column_outside
from trapo_lite.data.forms import SOLUTION_NAMES, has_columns
from trapo_lite.data.report import DataReport, fingerprint, length_quantiles
from trapo_lite.data.row_warnings import row_warnings
from trapo_lite.data.rows import Example, read_example
from trapo_lite.data.sources import read_rows, source_name
from trapo_lite.data.tally import Tally
from trapo_lite.data.template import open_turn_warnings, require_known_tags, template_warnings
from trapo_lite.data.tokens import encode, end_of_text_id, end_trace, expert_text, prompt_text, text_of


class Scorer(Protocol):
    """A Scorer is what loading needs of reward.Scorer."""

    def score(self, responses: Sequence[Response], /) -> list[Score]: ...


@dataclass(frozen=True)
class Loaded:
    """Hold problems and, in the same order, the texts behind them. `solutions` has those that became `expert_ids`."""

    problems: list[Problem]
    examples: list[Example]
    report: DataReport


def load_problems(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_response_tokens: int,
    rewards: RewardSection | None = None,
    files: str | list[str] | None = None,
    scorer: Scorer | None = None,
) -> Loaded:
    """Load the problems of `files` (default: data.train) that fit, with the texts behind them and a report on all rows.

    Prompts over data.max_prompt_tokens are dropped, and so are expert traces that exceed max_response_tokens with EOS.
    rewards decides whether a row must have an answer, and whether its columns are kept; None: as with math.
    With a scorer the expert traces are graded and the report says how many fail. A failing trace is kept.
    Raises DataError if a file, hub id, row, template or end-of-text token cannot be used, and if no row is left.
    """
    sources = check_sources(data.train if files is None else files)
    is_chat, open_turn = data.prompt_template == "chat", open_turn_warnings(data, tokenizer)
    closes_thought = how_to_close_the_thought(data, tokenizer)
    data = written_out(data, tokenizer)
    end_id = end_of_text_id(tokenizer, data.eos_token)
    require_known_tags(data.prompt_template, tokenizer)
    tally = Tally(skip_bad_rows=data.on_bad_row == "skip")
    examples = resolve_ids(read_examples(sources, data, tally, rewards), tally)
    tally.require_good_rows()
    examples, prompts = drop_long_prompts(examples, data, tokenizer, tally)
    tally.require_good_rows()
    problems, examples = with_traces(examples, prompts, data, tokenizer, end_id, max_response_tokens, tally)
    tally.require_good_rows()
    if not problems:
        raise _nothing_left(sources, tally)
    traces = [
        (solution, Response(problem, expert_text(solution, data.expert_text), num_tokens=len(token_ids)))
        for problem, example in zip(problems, examples, strict=True)
        for solution, token_ids in zip(example.solutions, problem.expert_ids, strict=True)
    ]
    num_lost_boxes = sum(
        trace.text != solution and last_box(trace.text) is None and last_box(solution) is not None
        for solution, trace in traces
    )
    scores = scorer.score([trace for _, trace in traces]) if scorer is not None else []
    unverified = [
        trace.problem.id for (_, trace), score in zip(traces, scores, strict=False) if not score.verdict.is_correct
    ]
    report = DataReport(
        files=tuple(sources),
        expert_text=data.expert_text,
        num_rows=tally.num_rows,
        num_problems=len(problems),
        rows_filtered=dict(tally.filtered),
        rows_dropped=dict(tally.rows),
        first_dropped=tuple(where for where, _ in tally.first_bad),
        traces_dropped=dict(tally.traces),
        num_boxed_answers=sum(example.answer_is_boxed for example in examples),
        num_lost_boxes=num_lost_boxes,
        problems_by_traces=dict(sorted(Counter(len(problem.expert_ids) for problem in problems).items())),
        prompt_lengths=length_quantiles(len(problem.prompt_ids) for problem in problems),
        trace_lengths=length_quantiles(len(trace) for problem in problems for trace in problem.expert_ids),
        num_graded=len(scores),
        unverified_ids=tuple(unverified),
        prompt_warnings=open_turn
        + row_warnings(
            problems,
            examples,
            tokenizer,
            end_id=end_id,
            cut_at_end=tally.cut_at_end,
            prompt_template=data.prompt_template,
            closes_thought=closes_thought,
        )
        + template_warnings(data.prompt_template, tokenizer, problems[0].prompt_ids, is_chat=is_chat),
        fingerprint=fingerprint(problems),
    )
    return Loaded(problems, examples, report)


def require_experts(report: DataReport) -> None:
    """Raise DataError if no problem has an expert trace."""
    if report.num_traces == 0:
        dropped = ", ".join(f"{count} {reason}" for reason, count in report.traces_dropped.items())
        cure = f"give the rows a solution in one of the columns {', '.join(SOLUTION_NAMES)}, or name its column in "
        cure = "raise rollout.max_response_tokens" if dropped else f"{cure}data.columns"
        raise DataError(
            f"data {', '.join(report.files)}: no expert trace in {counted(report.num_problems, 'problem')}"
            f"{f' ({dropped})' if dropped else ''}, but the algorithm learns from expert solutions; {cure}, or choose "
            "an algorithm without (grpo)"
        )


def _nothing_left(sources: Sequence[str], tally: Tally) -> DataError:
    names = ", ".join(sources)
    if tally.filtered:
        found = "; ".join(
            f"{column} leaves out {count}, the first with {', '.join(tally.filtered_values[column])}"
            for column, count in tally.filtered.items()
        )
        others = f"; of the others {tally.reasons()}{tally.listed()}" if tally.rows else ""
        return DataError(
            f"data {names}: data.filter and what else is checked leave none of the {tally.num_rows} rows ({found}); "
            f"allow more in data.filter{others}"
        )
    if tally.num_rows == 0:
        return DataError(f"data {names}: holds no rows; give a file or split that does")
    return DataError(
        f"data {names}: none of the {tally.num_rows} rows is left ({tally.reasons()}); correct the rows or raise the "
        f"limit named{tally.listed()}"
    )


def read_examples(
    sources: Sequence[str], data: DataSection, tally: Tally, rewards: RewardSection | None = None
) -> Iterator[Example]:
    """Yield the rows of all sources that can be read. Count the others in `tally`.

    data.columns names columns of data.train. Sources that are others are read by them if they have all of these
    columns, and by the known names otherwise. data.filter is about data.train only.
    """
    needs_answer = rewards is None or rewards.needs_answer
    keeps_row = rewards is not None and bool(rewards.own_functions)
    is_train = list(sources) == data.sources
    names = [source_name(source) for source in sources]
    for source_index, source in enumerate(sources):
        name = names[source_index] if names.count(names[source_index]) == 1 else f"{names[source_index]}-{source_index}"
        for row in read_rows(source, name=name):
            tally.num_rows += 1
            try:
                column = column_outside(row.fields, data.filter) if is_train and row.bad is None else None
                if column is not None:
                    tally.filtered_row(column, lookup(row.fields, column))
                    continue
                columns = data.columns
                if columns is not None and not is_train and not has_columns(row.fields, columns):
                    columns = None
                example = read_example(
                    row,
                    columns,
                    takes_box=data.answer_from == "box",
                    needs_answer=needs_answer,
                    keeps_row=keeps_row,
                )
                yield replace(example, source_index=source_index)
            except BadRow as bad:
                tally.bad_row(row.where, bad)


def resolve_ids(examples: Iterable[Example], tally: Tally) -> list[Example]:
    """Return the examples with unique ids.

    A repeated name is a bad row. A repeated index of extra_info is replaced by the row's own key.
    """
    examples = list(examples)
    uses = Counter(example.id for example in examples)
    unique: dict[str, Example] = {}
    for example in examples:
        if uses[example.id] > 1 and not example.id_is_given:
            example = replace(example, id=example.row_key)
        if example.id in unique:
            found = f"{example.id!r} is already the id of {unique[example.id].where}"
            tally.bad_row(example.where, BadRow("repeated id", field="id", found=found, fix="give every row its own"))
        else:
            unique[example.id] = example
    return list(unique.values())


def drop_long_prompts(
    examples: Sequence[Example], data: DataSection, tokenizer: PreTrainedTokenizerBase, tally: Tally
) -> tuple[list[Example], list[tuple[int, ...]]]:
    def prompt(example: Example) -> str:
        system = example.system if data.system == "row" else None
        return prompt_text(data.prompt_template, example.problem, system=system)

    kept, prompts = [], []
    for example, prompt_ids in zip(examples, encode(tokenizer, [prompt(e) for e in examples]), strict=True):
        if len(prompt_ids) > data.max_prompt_tokens:
            reason = f"prompt over {data.max_prompt_tokens} tokens"
            found = f"{len(prompt_ids)} tokens with the template, the limit is {data.max_prompt_tokens}"
            fix = "raise data.max_prompt_tokens"
            tally.bad_row(example.where, BadRow(reason, field="problem", found=found, fix=fix))
        else:
            kept.append(example)
            prompts.append(prompt_ids)
    return kept, prompts


def with_traces(
    examples: Sequence[Example],
    prompts: Sequence[tuple[int, ...]],
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    end_id: int,
    max_response_tokens: int,
    tally: Tally,
) -> tuple[list[Problem], list[Example]]:
    """Return the problems, each with those of its expert traces that have text and fit, and their examples."""
    texts = [expert_text(solution, data.expert_text) for example in examples for solution in example.solutions]
    encoded = encode(tokenizer, texts)
    problems, kept = [], []
    for example, prompt_ids in zip(examples, prompts, strict=True):
        usable = {}
        for index in range(len(example.solutions)):
            token_ids = next(encoded)
            trace = end_trace(token_ids, end_id)
            if len(trace) == 1:
                tally.traces["empty"] += 1
            elif len(trace) > max_response_tokens:
                tally.traces[f"over {max_response_tokens} tokens"] += 1
            else:
                usable[index] = trace
                if text_of(tokenizer, token_ids[len(trace) :]).strip():
                    tally.cut_at_end.append(example.where)
        if data.require_expert and not usable:
            found = f"{len(example.solutions)} in the row, none usable" if example.solutions else "found none"
            fix = (
                f"give a non-empty one of at most {max_response_tokens} tokens with EOS (rollout.max_response_tokens) "
                f"in one of the columns {', '.join(SOLUTION_NAMES)}"
            )
            tally.bad_row(example.where, BadRow("no expert trace", field="solutions", found=found, fix=fix))
            continue
        solutions = tuple(example.solutions[index] for index in usable)
        kept.append(replace(example, solutions=solutions))
        problems.append(
            Problem(
                example.id,
                prompt_ids,
                example.answer,
                tuple(usable.values()),
                example.source,
                text=example.problem,
                row=example.row or {},
                source_index=example.source_index,
                system=example.system,
            )
        )
    return problems, kept
