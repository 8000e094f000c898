"""Some expert solutions are scored before a run; failures on them are told, and not counted later."""

from dataclasses import replace

import pytest
from reward_sections import PROBLEM, section_of, write

from trapo_lite.reward import Scorer
from trapo_lite.reward.expert_check import expert_lines

__all__ = ["write"]


@pytest.mark.parametrize("num_problems", [3, 64, 65])
def test_failures_are_a_warning_whatever_the_number_of_rows(write, num_problems: int) -> None:
    mine = write("def score(response): return 1 / (not response)\n")
    solution = tuple(map(ord, "x"))
    problems = [replace(PROBLEM, id=str(number), expert_ids=(solution,)) for number in range(num_problems)]
    with Scorer(section_of(mine("score"))) as scorer:
        first, failed, few = expert_lines(scorer, problems, lambda token_ids: "".join(map(chr, token_ids)))
        num = {3: 3, 64: 32, 65: 22}[num_problems]
        assert first == f"expert solutions: 0 of {num} looked at are correct"
        assert failed.startswith(f"warning: reward score: fails on {num} of these {num}")
        assert few.startswith("warning: most expert solutions get less than 1 from score")
        assert scorer.take_failures().num_judged.total() == 0


def test_without_expert_solutions_nothing_is_said() -> None:
    with Scorer(section_of("math")) as scorer:
        assert expert_lines(scorer, [PROBLEM], str) == []
