"""Build a training set row by row: add second traces, filter, grade, compare with evaluation sets.

    sources -> ids -> matching traces of the second source -> rows that fit, in OUT, and OUT.report.json

Traces are read when they are needed; only ids, problems and counts are held. OUT.work holds the finished part, so that
a killed build is resumed.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import Config, DataSection
from trapo_lite.config.paths import check_sources
from trapo_lite.core.errors import DataError
from trapo_lite.core.in_words import counted
from trapo_lite.core.types import Problem, Response
from trapo_lite.curation.build_report import BuildTally
from trapo_lite.curation.decontamination import Overlap
from trapo_lite.curation.second_traces import cut_to, find_second_traces, matching_key, places_of
from trapo_lite.data.chat import written_out
from trapo_lite.data.loading import Scorer, drop_long_prompts, read_examples, resolve_ids, with_traces
from trapo_lite.data.rows import Example
from trapo_lite.data.tally import Tally
from trapo_lite.data.template import open_turn_warnings, require_known_tags, template_warnings
from trapo_lite.data.tokens import end_of_text_id, expert_text
from trapo_lite.run.files import append_bytes, errors_named, lock, replace_text

ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Build:
    """A Build says what is built, and from what.

    second:     a source with more traces of the same problems, or None
    overlap:    evaluation sets; overlap_names names them with source and content
    remove_overlap: drop rows that share a run of words with them
    scorer:     grades every trace; None: no grading
    restart:    discard the finished part of a killed build
    """

    config: Config
    out: Path
    second: str | None = None
    overlap: Overlap | None = None
    overlap_names: tuple[str, ...] = ()
    remove_overlap: bool = False
    scorer: Scorer | None = None
    restart: bool = False

    def _local_sources(self) -> list[str]:
        sources = [*check_sources(self.config.data.train), *([self.second] if self.second else [])]
        return [source for source in sources if Path(source).expanduser().is_file()]

    def described(self) -> dict[str, Any]:
        """Return the settings that decide the output, by their names for users. A build resumes if all are equal."""
        return {
            **{f"data.{key}": value for key, value in self.config.data.model_dump(mode="json").items()},
            "model.name": self.config.model.name,
            "rollout.max_response_tokens": self.config.rollout.max_response_tokens,
            "--second": self.second,
            "--decontaminate": list(self.overlap_names),
            "--remove": self.remove_overlap,
            "--verify": self.scorer is not None,
            "contents of the files": {name: _content(Path(name).expanduser()) for name in self._local_sources()},
        }


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def build_training_set(build: Build, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]) -> BuildTally:
    """Write build.out and build.out.report.json, and return the content of the report.

    Raises DataError for unusable data, ConfigError if another process is writing to the same `out`.
    """
    work = build.out.with_suffix(".work")
    with errors_named(work):
        work.mkdir(parents=True, exist_ok=True)
    with lock(work, option="--out"):
        return _build(build, work, tokenizer, say)


def _build(build: Build, work: Path, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]) -> BuildTally:
    sources = check_sources(build.config.data.train)
    require_known_tags(written_out(build.config.data, tokenizer).prompt_template, tokenizer)
    state_file, kept_file, second_file = work / "state.json", work / "kept.jsonl", work / "second.jsonl"
    if build.restart:
        _clear(work)
    described = build.described()
    state = _open_work(work, state_file, described, say)
    tally = Tally(skip_bad_rows=build.config.data.on_bad_row == "skip")
    ids, keys = _name_rows(sources, build.config.data, tally)
    if build.second is not None:
        find_second_traces(build.second, build.config.data.columns, keys, second_file, state, state_file, say)
    more_traces = places_of(second_file) if build.second is not None else {}
    counts = BuildTally.from_row(state["counts"]) if "counts" in state else BuildTally()
    if "counts" not in state:
        counts.num_rows, counts.rows_dropped = tally.num_rows, Counter(tally.rows)
        counts.rows_dropped.update({f"data.filter: {column}": count for column, count in tally.filtered.items()})
        counts.num_second = None if build.second is None else 0
        counts.num_second_rows, counts.num_second_bad = state.get("second_rows"), state.get("second_bad")
    cut_to(kept_file, state.get("kept_bytes", 0))
    rows = islice(_examples(sources, build.config.data, ids), state.get("num_done", 0), None)
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        finished = _finished_rows(build, batch, tokenizer, more_traces, second_file, counts)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in finished)
        state["kept_bytes"] = append_bytes(kept_file, lines.encode())
        state |= {"num_done": state.get("num_done", 0) + len(batch), "counts": counts.to_row()}
        replace_text(state_file, json.dumps(state))
    if counts.num_kept == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.rows_dropped.items())
        shutil.rmtree(work)
        raise DataError(f"data {', '.join(sources)}: none of {counts.num_rows} rows is left ({reasons})")
    report = {**described, **counts.to_row()}
    replace_text(build.out.with_suffix(".report.json"), json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    state_file.unlink()  # if it is killed after this, the next build starts again and writes the same rows
    with errors_named(build.out):
        kept_file.rename(build.out)
    shutil.rmtree(work)
    return counts


def _open_work(work: Path, state_file: Path, described: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    if state_file.is_file():
        try:
            state = json.loads(state_file.read_text(encoding="utf-8"))
            before = state["described"]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{state_file}: cannot be read ({error!r}); give --restart to start again") from None
        is_begun = len(state) > 1  # otherwise only the settings are stored, perhaps mistaken ones
        for key, wanted in described.items():
            if is_begun and before.get(key) != wanted:
                raise DataError(
                    f"--out: {work} holds an unfinished build with {key} {before.get(key)!r:.200}, now it "
                    f"is {wanted!r:.200}; choose another --out, or give --restart to start again"
                )
        if is_begun:
            say(f"resuming {work}: {counted(state.get('num_done', 0), 'row')} done")
            return state
    _clear(work)
    state = {"described": described}
    replace_text(state_file, json.dumps(state))
    return state


def _clear(work: Path) -> None:
    for file in work.iterdir():
        file.unlink()


def _name_rows(sources: Sequence[str], data: DataSection, tally: Tally) -> tuple[dict[str, str], set[str]]:
    """Return the id of each readable row, by the row's key, and the keys of their problems."""
    keys: set[str] = set()

    def light() -> Iterator[Example]:
        for example in read_examples(sources, data, tally):
            keys.add(matching_key(example.problem))
            yield replace(example, problem="", solutions=())

    examples = resolve_ids(light(), tally)
    tally.require_good_rows()
    return {example.row_key: example.id for example in examples}, keys


def _examples(sources: Sequence[str], data: DataSection, ids: Mapping[str, str]) -> Iterator[Example]:
    """Yield the rows that `_name_rows` gave an id, with that id."""
    for example in read_examples(sources, data, Tally(skip_bad_rows=True)):
        if example.row_key in ids:
            yield replace(example, id=ids[example.row_key])


def _finished_rows(
    build: Build,
    batch: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    more_traces: Mapping[str, int],
    second_file: Path,
    counts: BuildTally,
) -> list[dict[str, Any]]:
    """Return the kept rows of a batch in the simple form. Count all of its rows in `counts`."""
    data, limit = written_out(build.config.data, tokenizer), build.config.rollout.max_response_tokens
    num_read = counts.num_kept + counts.rows_dropped.total() + len(batch)
    tally = Tally(skip_bad_rows=data.on_bad_row == "skip", num_rows=num_read)
    batch = [example for example in batch if not _is_removed(build, example, counts)]
    joined = [_with_second(build, example, tokenizer, more_traces, second_file) for example in batch]
    fitting, prompts = drop_long_prompts(joined, data, tokenizer, tally)
    problems, kept = with_traces(
        fitting, prompts, data, tokenizer, end_of_text_id(tokenizer, data.eos_token), limit, tally
    )
    tally.require_good_rows()
    if counts.prompt_warnings is None and problems:
        is_chat = build.config.data.prompt_template == "chat"
        warnings = template_warnings(data.prompt_template, tokenizer, problems[0].prompt_ids, is_chat=is_chat)
        counts.prompt_warnings = [*open_turn_warnings(build.config.data, tokenizer), *warnings]
    counts.num_kept += len(kept)
    counts.num_boxed_answers += sum(example.answer_is_boxed for example in kept)
    counts.rows_dropped.update(tally.rows)
    counts.traces_dropped.update(tally.traces)
    _count_lengths(problems, counts)
    if counts.num_second is not None:
        added = {
            after.id: after.solutions[-1] for before, after in zip(batch, joined, strict=True) if before is not after
        }
        counts.num_second += sum(added.get(example.id) in example.solutions for example in kept)
    if build.scorer is not None:
        _grade(build.scorer, kept, counts)
    return [_simple_row(example, keep_system=data.system == "row") for example in kept]


def _with_second(
    build: Build, example: Example, tokenizer: PreTrainedTokenizerBase, places: Mapping[str, int], file: Path
) -> Example:
    """Return the example with a second trace, if it has fewer than two: the second source's first one that is usable.

    A usable trace differs from the example's own, fits the limit and, with a scorer, verifies.
    """
    start = places.get(matching_key(example.problem))
    if start is None or len(example.solutions) > 1:
        return example
    with file.open("rb") as lines:
        lines.seek(start)
        candidates = json.loads(lines.readline())["solutions"]
    own = {matching_key(solution) for solution in example.solutions}
    for candidate in candidates:
        text = expert_text(candidate, build.config.data.expert_text)
        fits = len(tokenizer(text, add_special_tokens=False)["input_ids"]) < build.config.rollout.max_response_tokens
        if matching_key(candidate) in own or not fits:
            continue
        if build.scorer is None or is_correct(build.scorer, [(example, candidate)])[0]:
            return replace(example, solutions=(*example.solutions, candidate))
    return example


def _is_removed(build: Build, example: Example, counts: BuildTally) -> bool:
    names = build.overlap.sets_with(example.problem) if build.overlap is not None else ()
    if names:
        counts.found_overlap.append([example.id, list(names)])
    if names and build.remove_overlap:
        counts.rows_dropped["shares words with a benchmark"] += 1
        return True
    return False


def _count_lengths(problems: Sequence[Problem], counts: BuildTally) -> None:
    for problem in problems:
        counts.problems_by_traces[str(len(problem.expert_ids))] += 1
        counts.prompt_lengths[str(len(problem.prompt_ids))] += 1
        counts.trace_lengths.update(str(len(trace)) for trace in problem.expert_ids)


def is_correct(scorer: Scorer, traces: Sequence[tuple[Example, str]]) -> list[bool]:
    """Return whether each text is correct for its example."""
    responses = [
        Response(Problem(example.id, (), example.answer, text=example.problem), text) for example, text in traces
    ]
    return [score.verdict.is_correct for score in scorer.score(responses)]


def _grade(scorer: Scorer, examples: Sequence[Example], counts: BuildTally) -> None:
    traces = [(example, solution) for example in examples for solution in example.solutions]
    thoughts = [(example, expert_text(solution, "thought")) for example, solution in traces]
    counts.num_graded = (counts.num_graded or 0) + len(traces)
    counts.num_wrong = (counts.num_wrong or 0) + is_correct(scorer, traces).count(False)
    counts.num_wrong_thoughts = (counts.num_wrong_thoughts or 0) + is_correct(scorer, thoughts).count(False)


def _simple_row(example: Example, *, keep_system: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": example.id,
        "problem": example.problem,
        "answer": example.answer,
        "solutions": list(example.solutions),
        "source": example.source,
    }
    return row | {"system": example.system} if keep_system and example.system is not None else row
