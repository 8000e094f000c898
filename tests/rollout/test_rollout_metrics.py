"""What a step's figures are means of, the lines of rollouts/, and the table that docs/metrics.md shows."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from builders import rollout
from scripted import ScriptedEngine, ScriptedVerifier, decode, is_boundary

from trapo_lite.core.micro_groups import PRESETS, MicroGroup
from trapo_lite.core.types import Group, Problem
from trapo_lite.rollout.metrics import describe, to_lines
from trapo_lite.rollout.sampler import sample_groups
from trapo_lite.rollout.settings import SamplingSettings
from trapo_lite.run.metrics import TABLE, to_row

ROOT = Path(__file__).parents[2]
TRAPO = PRESETS["reference_code"]
LUFFY = (MicroGroup(7, 0.0, 0.0), MicroGroup(1, 1.0, None))
SFT = (MicroGroup(1, 1.0, None),)


def group(problem_id: str, members: Sequence[tuple[str, float]]) -> Group:
    """(kind, reward) of each slot; kind: own, guided (one expert token, one own), or expert (no own token)."""
    prefixes = {"own": [], "guided": [7], "expert": [7, 8]}
    rollouts = [
        rollout([1], prefixes[kind], [] if kind == "expert" else [9], reward=reward, slot=slot, problem_id=problem_id)
        for slot, (kind, reward) in enumerate(members)
    ]
    return Group(tuple(rollouts), (0.0,) * len(rollouts), (1.0,) * len(rollouts))


EASY = group("easy", [("own", 1.0)] * 8)
HARD = group(
    "hard", [("own", 0.0)] * 4 + [("guided", 1.0), ("guided", 0.0), ("guided", 1.0), ("expert", 1.0)]
)  # fmt: skip


def row(groups: Sequence[Group], micro_groups: Sequence[MicroGroup]) -> dict[str, float | int | None]:
    return to_row(describe(groups, micro_groups))


def test_own_counts_an_easy_problem_as_often_as_a_hard_one() -> None:
    found = row([EASY, HARD], TRAPO)
    assert found["reward/own"] == 4 / 8  # over all twelve unguided rollouts it would be 8 / 12
    assert found["reward/guided"] == 2 / 3 and found["rollout/guided"] == 4 / 16


def test_help_and_returns_of_each_micro_group() -> None:
    found = row([EASY, HARD], TRAPO)
    by_group = {name: value for name, value in found.items() if name[-1].isdigit() and "ratio" not in name}
    assert by_group == {
        "reward/group_1": 4 / 8,
        "reward/group_2": 3 / 4,
        "reward/group_3": 2 / 2,
        "reward/group_4": 2 / 2,
        "reward/helped_2": 1 / 2,
        "reward/helped_3": 1 / 1,
        "reward/helped_4": 1 / 1,
        "rollout/helped_2": 2 / 4,
        "rollout/helped_3": 1 / 2,
        "rollout/helped_4": 1 / 2,
    }
    assert row([EASY], TRAPO)["reward/helped_2"] is None  # nobody got help: no data, not 0


def test_the_gain_by_help_compares_rollouts_of_the_same_problem() -> None:
    worse = group("w", [("own", 1.0), ("own", 0.0)] * 2 + [("guided", 0.0)] * 3 + [("expert", 1.0)])
    assert row([EASY, HARD], TRAPO)["reward/gain_by_help"] == 2 / 3
    assert row([EASY, HARD, worse], TRAPO)["reward/gain_by_help"] == (2 / 3 - 1 / 2) / 2
    assert row([EASY], TRAPO)["reward/gain_by_help"] is None


def test_own_where_the_whole_trace_is_always_shown() -> None:
    luffy = group("p", [("own", 1.0)] * 3 + [("own", 0.0)] * 4 + [("expert", 1.0)])
    found = row([luffy], LUFFY)
    assert found["reward/own"] == 3 / 7 and found["reward/helped_2"] == 1.0 and found["rollout/helped_2"] == 1.0
    found = row([group("p", [("expert", 1.0)])], SFT)
    assert found["reward/own"] is None and found["reward/group_1"] == 1.0


def test_own_is_null_where_the_first_micro_group_is_guided_even_if_a_problem_has_no_trace() -> None:
    guided_first = (MicroGroup(1, 0.5, None), MicroGroup(1, 0.0, 0.0))
    groups = [group("p", [("guided", 1.0), ("own", 0.0)]), group("without a trace", [("own", 1.0), ("own", 0.0)])]
    assert row(groups, guided_first)["reward/own"] is None


def sampled(micro_groups: Sequence[MicroGroup]) -> list[Group]:
    """Twenty problems' rollouts; an answer is right if its first token is below a bound that differs by problem."""
    rng = random.Random(0)
    problems = [
        Problem(str(bound), (bound,), str(bound), (tuple(rng.randrange(1, 50) for _ in range(12)),))
        for bound in range(1, 60, 3)
    ]
    verifier = ScriptedVerifier(lambda text, gold: int(text.split()[0]) < int(gold))
    settings = SamplingSettings(seed=3, max_response_tokens=30, stop_ids=(0,))
    sampler = partial(
        sample_groups,
        ScriptedEngine(),
        verifier,
        micro_groups=micro_groups,
        settings=settings,
        decode=decode,
        is_boundary=is_boundary,
    )
    rollouts, _ = sampler(problems, step=1)
    return [Group(tuple(members), (0.0,) * len(members), (1.0,) * len(members)) for members in rollouts]


def test_trapo_and_grpo_have_one_curve_while_they_are_one_policy() -> None:
    """The first rollouts of both have the same seeds, so under the same weights `own` is the same number."""
    trapo, grpo = sampled(TRAPO), sampled((MicroGroup(4, 0.0, 0.0),))
    found = row(trapo, TRAPO)
    assert found["reward/own"] == row(grpo, (MicroGroup(4, 0.0, 0.0),))["reward/own"]
    assert 0.2 < found["reward/own"] < 0.8 and 0.1 < found["rollout/helped_2"] < 0.9  # type: ignore[operator]
    unguided = [member.reward for group in trapo for member in group.rollouts if not member.is_guided]
    assert sum(unguided) / len(unguided) > found["reward/own"] + 0.02  # type: ignore[operator]


def test_a_line_says_which_micro_group_which_ratio_and_the_gold_answer() -> None:
    ratios = [0.0, 0.0, 0.0, 0.0, 0.25, 0.25, 0.5, 1.0]
    cut = tuple(replace(r, prefix_ratio=ratio) for r, ratio in zip(HARD.rollouts, ratios, strict=True))
    lines = to_lines(replace(HARD, rollouts=cut), decode, gold="42", micro_groups=TRAPO)
    assert [line["micro_group"] for line in lines] == [1, 1, 1, 1, 2, 2, 3, 4]
    assert [line["ratio"] for line in lines] == ratios
    assert {line["gold"] for line in lines} == {"42"}
    assert [line["ratio"] for line in to_lines(EASY, decode, gold="", micro_groups=TRAPO)] == [0.0] * 8


# ----- the table


def test_a_row_is_in_the_tables_order_and_numbers_belong_to_micro_groups_only() -> None:
    assert list(to_row({"rollout/helped_11": 0.5, "step": 1, "reward/group_2": 1.0})) == [
        "step", "reward/group_2", "rollout/helped_11",
    ]  # fmt: skip
    for name in ("reward/own_2", "reward/group_", "reward/group_x", "mismatch/p_99"):
        with pytest.raises(KeyError, match="add them there"):
            to_row({name: 1.0})


def test_the_documentation_lists_every_metric_and_every_field_of_a_line() -> None:
    metrics, lines = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").split("## rollouts/")
    shown = [line for line in metrics.splitlines() if line.startswith("| `")]
    expected = ["| `{}` | {} |".format(name, text.replace("|", r"\|")) for name, text in TABLE.items()]
    assert shown == expected, "docs/metrics.md: replace the rows of the table by\n" + "\n".join(expected)
    fields = {name for line in lines.splitlines() if line.startswith("| `") for name in line.split("`")[1:-1:2]}
    fields = {name for name in fields if name.replace("_", "").isalpha()}
    missing = set(to_lines(HARD, decode, gold="", micro_groups=TRAPO)[0]) - fields
    assert not missing, f"docs/metrics.md: says nothing of {missing}"
