"""An evaluation says what graded answers are worth; the answers here are written by hand."""

import pytest

from trapo_lite.core.types import VerdictKind
from trapo_lite.evaluation.results import Answer, EvalResult


def result_of(*groups: list[tuple[VerdictKind, str | None]]) -> EvalResult:
    answers = (
        tuple(Answer(f"p{index}", sample, "", kind, text, "stop", 1, "7") for sample, (kind, text) in enumerate(group))
        for index, group in enumerate(groups)
    )
    return EvalResult(tuple(answers), seed=0)


def test_majority_is_the_mean_over_problems() -> None:
    """The votes are two for the right 7, two for the wrong 8, and none."""
    summary = result_of(
        [("correct", "7"), ("correct", "7"), ("wrong", "8")],
        [("wrong", "8"), ("wrong", "8"), ("correct", "7")],
        [("no_answer", None), ("no_answer", None), ("timeout", None)],
    ).summary()
    assert summary["majority"]["value"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", ["correct", "wrong", "unjudged", "failed"])
def test_there_is_no_majority_where_verdicts_are_not_about_answers(kind: VerdictKind) -> None:
    summary = result_of([(kind, None), ("correct", None)]).summary()
    assert summary["majority"] is None and summary["pass_at_k"]["2"]["value"] == 1.0


def test_without_any_answer_the_majority_is_wrong() -> None:
    assert result_of([("no_answer", None), ("no_answer", None)]).summary()["majority"]["value"] == 0.0
