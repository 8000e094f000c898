"""Read the problems of an evaluation, from benchmarks or a file, as tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trapo_lite.config import Config, RewardSection
from trapo_lite.config.rewards import without_folder
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.in_words import counted
from trapo_lite.core.types import Problem
from trapo_lite.data.chat import written_out
from trapo_lite.data.loading import load_problems
from trapo_lite.data.report import fingerprint
from trapo_lite.data.template import open_turn_warnings, require_known_tags, template_warnings
from trapo_lite.data.tokens import encode, prompt_text
from trapo_lite.evaluation.registry import Benchmark, read_benchmark, texts_fingerprint


@dataclass(frozen=True)
class ProblemSet:
    """A ProblemSet holds the problems of one benchmark or file.

    name: stem of its result files;  report: lines on what was read;  texts: problems and golds;
    is_part: it is not the whole benchmark or file;  rewards: what grades it: math alone in a benchmark
    """

    name: str
    title: str
    source: str
    problems: tuple[Problem, ...]
    num_samples: int
    report: tuple[str, ...]
    is_part: bool = False
    texts: tuple[tuple[str, str], ...] = ()
    rewards: RewardSection = field(default_factory=RewardSection)

    @property
    def longest_prompt(self) -> int:
        return max(len(problem.prompt_ids) for problem in self.problems)

    def noted(self) -> dict[str, Any]:
        """Return what the results say of the set's origin, which may be spelt in another way next time."""
        return {"benchmark": self.title, "data": self.source}

    def described(self) -> dict[str, Any]:
        """Return the settings in the results that distinguish this set from others: by its contents, not its path."""
        functions = [without_folder(each.model_dump(mode="json")) for each in self.rewards.functions]
        return {
            "is_part": self.is_part,
            "fingerprint": texts_fingerprint(self.texts),
            "prompts": fingerprint([Problem(p.id, p.prompt_ids, p.answer, row=p.row) for p in self.problems]),
            **({} if self.rewards.is_math else {"rewards": functions}),
        }


def read_sets(
    config: Config,
    benchmarks: Mapping[str, Benchmark],
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_samples: int | None,
    num_problems: int | None,
    allow_part: bool,
) -> list[ProblemSet]:
    """Return the benchmarks, or eval.data if there are none.

    num_samples:  draws for each problem, instead of the benchmark's own number
    num_problems: use the first ones of each benchmark; None: all (eval.num_problems limits eval.data)
    allow_part:   a benchmark's file may hold fewer problems than the benchmark
    Raises ConfigError or DataError if a set cannot be evaluated on.
    """
    data = written_out(config.data, tokenizer)
    require_known_tags(data.prompt_template, tokenizer)
    sets = [
        _read_benchmark(
            name,
            benchmark,
            config,
            tokenizer,
            num_samples=num_samples or benchmark.num_samples,
            num_problems=num_problems,
            allow_part=allow_part,
        )
        for name, benchmark in benchmarks.items()
    ] or [_read_data(config, tokenizer)]
    is_chat = config.data.prompt_template == "chat"
    warnings = template_warnings(data.prompt_template, tokenizer, sets[0].problems[0].prompt_ids, is_chat=is_chat)
    report = sets[0].report + open_turn_warnings(config.data, tokenizer) + warnings
    return [replace(sets[0], report=report), *sets[1:]]


def _read_data(config: Config, tokenizer: PreTrainedTokenizerBase) -> ProblemSet:
    """Read eval.data. Expert solutions are not needed."""
    source = config.eval.data
    if source is None:
        raise ConfigError(
            "eval.data: there is nothing to evaluate on; give --data FILE, --benchmarks NAME ..., or the --config that "
            "names it"
        )
    data = config.data.model_copy(update={"require_expert": False})
    limit = config.rollout.max_response_tokens
    loaded = load_problems(data, tokenizer, max_response_tokens=limit, rewards=config.reward, files=source)
    problems, report = loaded.problems, loaded.report
    lines = [report.lines()[0], *(line for line in report.lines() if "rows dropped" in line)]
    name = Path(source).stem.replace(":", "-")
    chosen = tuple(problems[: config.eval.num_problems])
    texts = tuple((example.problem, example.answer) for example in loaded.examples[: len(chosen)])
    whole = len(problems) + sum(report.rows_dropped.values())
    is_part = len(chosen) < whole
    title = source + (f", {len(chosen)} of {whole:,} problems" if is_part else "")
    return ProblemSet(name, title, source, chosen, config.eval.num_samples, tuple(lines), is_part, texts, config.reward)


def _read_benchmark(
    name: str,
    benchmark: Benchmark,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_samples: int,
    num_problems: int | None,
    allow_part: bool,
) -> ProblemSet:
    pairs, num_of_whole = read_benchmark(name, benchmark, allow_part=allow_part)
    chosen = pairs[:num_problems]
    template = written_out(config.data, tokenizer).prompt_template
    prompts = encode(tokenizer, [prompt_text(template, problem) for problem, _ in chosen])
    problems = tuple(
        Problem(f"{name}-{index}", prompt_ids, gold, source=name)
        for index, (prompt_ids, (_, gold)) in enumerate(zip(prompts, chosen, strict=True))
    )
    whole = num_of_whole or len(pairs)
    is_part = len(problems) < whole
    title = benchmark.title + (f", {len(problems)} of {whole:,} problems" if is_part else "")
    line = f"{name}: {title}; {benchmark.source}, {counted(len(problems), 'problem')} x {num_samples}"
    return ProblemSet(
        name,
        title,
        benchmark.source,
        problems,
        num_samples,
        (line,),
        is_part,
        tuple(chosen),
        config.reward.for_benchmarks,
    )


def require_positions(config: Config, sets: Sequence[ProblemSet], *, available: int) -> int:
    """Return the tokens of the longest prompt and answer. Raise ConfigError if the model has fewer positions."""
    longest = max(sets, key=lambda one: one.longest_prompt)
    prompt, answer = longest.longest_prompt, config.eval.max_response_tokens or config.rollout.max_response_tokens
    needed = prompt + answer
    if needed > available:
        raise ConfigError(
            f"eval.max_response_tokens: prompt and answer need {needed} tokens ({longest.name}), but "
            f"{config.model.name} has positions for {available}; "
            + (f"lower it to {available - prompt} or less, or give " if available > prompt else "give ")
            + "--config with the settings that the model was trained with, such as "
            f"'model.config_overrides={{max_position_embeddings: {needed}}}'"
        )
    return needed
