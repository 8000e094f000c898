"""Describe the results of an evaluation in lines for the terminal."""

from collections.abc import Mapping, Sequence

from trapo_lite.config.rewards import described
from trapo_lite.core.in_words import counted
from trapo_lite.evaluation.problem_sets import ProblemSet
from trapo_lite.evaluation.results import EvalResult
from trapo_lite.evaluation.target import EvalTarget
from trapo_lite.run.calling import command


def report_lines(target: EvalTarget, sets: Sequence[ProblemSet], results: Mapping[str, EvalResult]) -> list[str]:
    """Return the whole report of one set, or a line for each of several."""
    if len(sets) == 1:
        return _table_lines(target, sets[0], results[sets[0].name])
    return [
        target.model_name,
        *(_brief_line(problem_set, results[problem_set.name]) for problem_set in sets),
        f"  results    {target.out}; {command('compare')} {target.out} [OTHERS ...] [--published]",
    ]


def _brief_line(problem_set: ProblemSet, result: EvalResult) -> str:
    """Return the line for one set among several."""
    low, high = result.interval_95
    drawn = f"{counted(len(result.groups), 'problem')} x {result.num_samples}"
    return (
        f"  {problem_set.title:<30} {result.accuracy:.3f}  (95 %: {low:.3f} to {high:.3f})  {drawn}, "
        f"no answer {result.no_answer_share:.1%}, truncated {result.truncated_share:.1%}"
    )


def _table_lines(target: EvalTarget, problem_set: ProblemSet, result: EvalResult) -> list[str]:
    """Return the lines of a set's report."""
    low, high = result.interval_95
    verdicts = ", ".join(f"{count} {kind}" for kind, count in result.verdicts.items())
    drawn = f"{counted(len(result.groups), 'problem')} x {result.num_samples}"
    summary = result.summary()
    lines = [
        f"{target.model_name} on {problem_set.title}",
        f"  accuracy   {result.accuracy:.3f}  (95 %: {low:.3f} to {high:.3f})",
    ]
    if result.num_samples > 1:
        passes = ", ".join(f"@{k} {estimate['value']:.3f}" for k, estimate in summary["pass_at_k"].items())
        majority = summary["majority"]
        votes = "" if majority is None else f"; majority of {result.num_samples}: {majority['value']:.3f}"
        lines.append(f"  pass       {passes}{votes}")
    if not problem_set.rewards.is_math:
        lines.append(f"  reward     {result.mean_reward:.3f}  ({described(problem_set.rewards.functions)})")
    lines += [
        f"  drawn      {drawn} at temperature {target.config.eval.temperature:g}",
        f"  verdicts   {verdicts}",
        f"  no answer  {result.no_answer_share:.1%}",
        f"  truncated  {result.truncated_share:.1%}",
        f"  tokens     {result.mean_tokens:.1f} an answer",
        f"  results    {target.out / problem_set.name}.json, {problem_set.name}.jsonl",
    ]
    if target.config.run.deterministic and result.verdicts.get("timeout"):
        lines.append("  a verdict timed out, so run.deterministic cannot promise the same numbers again")
    return lines
