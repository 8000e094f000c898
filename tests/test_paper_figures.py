"""The figures of the paper: each quantity is computed again without the programs' own functions."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gaussian_mixtures
import proposition_1
import pytest
import torch
from gaussian_mixtures import SETTINGS, Course, Setting, even_mixture, runs, share_covered, smallest_set, train, verdict
from proposition_1 import check, gaps, minimize, random_experts, rule_of

RESULTS = Path(__file__).parents[1] / "docs/RESULTS.md"
ONE_COMPONENT = Setting("one component", num_components=1, optimizer="sgd")
CENTRES = [0.2 * index for index in range(-80, 81)]


def bins(mean: float, width: float) -> list[float]:
    """The bins' probabilities under one Gaussian."""
    heights = [math.exp(-0.5 * ((x - mean) / width) ** 2) for x in CENTRES]
    return [height / sum(heights) for height in heights]


def most_probable(probabilities: list[float], mass: float) -> set[int]:
    """The fewest bins with that mass."""
    chosen: set[int] = set()
    for index in sorted(range(len(probabilities)), key=lambda index: -probabilities[index]):
        if sum(probabilities[chosen_one] for chosen_one in chosen) >= mass:
            break
        chosen.add(index)
    return chosen


@pytest.mark.parametrize("loss", ["SFT", "TrSFT"])
def test_the_mass_outside_after_one_step_by_hand(loss: str) -> None:
    mean = float(gaussian_mixtures.start_model(ONE_COMPONENT, 1)[0][0])
    expert = [(left + right) / 2 for left, right in zip(bins(-4, 1), bins(4, 1), strict=True)]
    start = bins(-4, 1)
    outside = set(range(161)) - most_probable(start, 0.999) - most_probable(expert, 0.999)
    model = bins(mean, 1)
    alpha = 0.1 * max(start)
    pull = [e * (min(1.0, p / alpha) if loss == "TrSFT" else 1.0) for e, p in zip(expert, model, strict=True)]

    def ascent(direction: list[float]) -> float:
        """The gradient of the pull's log-likelihood along a change of the heights' logarithms."""
        average = sum(p * d for p, d in zip(model, direction, strict=True))
        return sum(w * (d - average) for w, d in zip(pull, direction, strict=True))

    after = bins(
        mean + 0.05 * ascent([x - mean for x in CENTRES]),
        math.exp(0.05 * ascent([(x - mean) ** 2 for x in CENTRES])),
    )
    course = train(ONE_COMPONENT, loss, num_steps=1, num_seeds=1)
    expected = [sum(distribution[index] for index in outside) for distribution in (model, after)]
    torch.testing.assert_close(course.outside[:, 0], torch.tensor(expected, dtype=torch.float64))
    assert (course.outside[1] > 0.2) == (loss == "SFT")


def test_the_smallest_set_holds_the_mass_with_the_fewest_bins() -> None:
    probabilities = torch.tensor([0.1, 0.6, 0.0, 0.3], dtype=torch.float64)
    assert smallest_set(probabilities, 0.55).tolist() == [False, True, False, False]
    assert smallest_set(probabilities, 0.65).tolist() == [False, True, False, True]
    assert smallest_set(probabilities, 0.95).tolist() == [True, True, False, True]


def test_runs_are_unbroken() -> None:
    assert runs(torch.tensor([False, True, True, False, True])) == [(1, 2), (4, 4)]


def test_a_mode_is_covered_by_a_mode_and_not_by_a_wide_model_over_both() -> None:
    setting = SETTINGS[0]
    for means, width, share in (((-4.0, 4.0), 1.0, 1.0), ((4.0,), 1.0, 0.5), ((0.0,), 4.1, 0.0), ((0.0,), 1.0, 0.0)):
        assert float(share_covered(even_mixture(means, width)[None], setting)[0]) == share


def course_with(peaks: list[float]) -> Course:
    outside = torch.tensor([[0.001] * len(peaks), peaks, [0.001] * len(peaks)])
    return Course(outside, torch.ones(len(peaks)), torch.zeros(161), torch.zeros(161))


@pytest.mark.parametrize(
    ("sft", "trust_region", "expected"),
    [
        ([0.3, 0.1], [0.01, 0.0], "holds"),
        ([0.3, 0.1], [0.01, 0.2], "cannot be told: holds for 1 of 2 seeds"),
        ([0.3, 0.1], [0.1, 0.2], "fails: TrSFT leaves too"),
        ([0.01, 0.01], [0.01, 0.01], "fails: SFT stays inside too"),
        ([0.01, 0.01], [0.01, 0.1], "fails: only TrSFT leaves"),
    ],
)
def test_the_verdict_on_the_claim(sft: list[float], trust_region: list[float], expected: str) -> None:
    assert verdict(course_with(sft), course_with(trust_region)) == expected


def test_sft_leaves_and_comes_back_where_trust_region_sft_stays() -> None:
    sft, trust_region = (train(SETTINGS[0], name, num_steps=2000, num_seeds=1) for name in ("SFT", "TrSFT"))
    assert float(sft.peaks[0]) > 0.2 and float(sft.ends[0]) < 0.002 and float(sft.covered[0]) == 1.0
    assert float(trust_region.peaks[0]) < 0.002 and float(trust_region.covered[0]) == 0.5


def test_trust_region_sft_with_an_alpha_that_nothing_is_below_is_sft() -> None:
    setting = replace(SETTINGS[0], alpha=1e-100)
    sft, trust_region = (train(setting, name, num_steps=30, num_seeds=2) for name in ("SFT", "TrSFT"))
    torch.testing.assert_close(trust_region.outside, sft.outside)


# --- Proposition 1 ---


def loss_by_hand(expert: list[float], probabilities: list[float], alpha: float) -> float:
    total = 0.0
    for e, p in zip(expert, probabilities, strict=True):
        total += e * (-math.log(p) if p >= alpha else 1 - math.log(alpha) - p / alpha)
    return total


CASES = [
    # expert, alpha, minimum, whether the proposition says so
    ([0.5, 0.3, 0.2], 0.1, [0.5, 0.3, 0.2], True),  # nothing is cut
    ([0.5, 0.3, 0.2], 0.27, [0.625, 0.375, 0.0], True),  # 0.2 <= 0.27 * 0.8 < 0.3
    ([0.4, 0.35, 0.25], 0.3, [0.48, 0.42, 0.1], False),  # lambda = 0.25 / 0.3, and 0.1 is left
    ([0.25, 0.25, 0.25, 0.25], 0.5, [0.25, 0.25, 0.25, 0.25], False),  # tied tokens may all stay
    ([0.6, 0.4], 1.0, [1.0, 0.0], False),  # none exceeds alpha, so the first is at the jump
]


@pytest.mark.parametrize(("expert", "alpha", "minimum", "is_fixed"), CASES)
def test_minima_by_hand(expert: list[float], alpha: float, minimum: list[float], is_fixed: bool) -> None:
    experts = torch.tensor([expert], dtype=torch.float64)
    rule = rule_of(experts, alpha=alpha)
    assert rule.has_fixed_point.tolist() == [is_fixed]
    torch.testing.assert_close(rule.with_remainder, torch.tensor([minimum], dtype=torch.float64))
    torch.testing.assert_close(minimize(experts, alpha=alpha), torch.tensor([minimum], dtype=torch.float64))


@pytest.mark.parametrize(("expert", "alpha"), [(case[0], case[1]) for case in CASES if len(case[0]) == 3])
def test_no_distribution_on_a_grid_has_less_loss(expert: list[float], alpha: float) -> None:
    [found] = minimize(torch.tensor([expert], dtype=torch.float64), alpha=alpha).tolist()
    least = loss_by_hand(expert, found, alpha)
    grid = [(a / 100, b / 100, (100 - a - b) / 100) for a in range(101) for b in range(101 - a)]
    losses = [loss_by_hand(expert, list(point), alpha) for point in grid]
    assert least - 1e-9 <= min(losses) < least + 1e-3
    bounds = gaps(torch.tensor(grid, dtype=torch.float64), torch.tensor([expert], dtype=torch.float64), alpha=alpha)
    assert all(loss - least <= bound + 1e-9 for loss, bound in zip(losses, bounds.tolist(), strict=True))


def by_definition(expert: list[float], alpha: float) -> bool:
    """Whether keeping the first tokens in order, for some number of them, keeps just these by their own lambda."""
    ordered = sorted(expert, reverse=True)
    sets = [ordered[: number + 1] for number in range(len(ordered))]
    return any(sum(token > alpha * sum(kept) for token in ordered) == len(kept) for kept in sets)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_random_minima_follow_the_rule(alpha: float) -> None:
    experts = random_experts(num_cases=60, num_tokens=20, seed=1)
    done = check(experts, alpha=alpha)
    assert done.rule.has_fixed_point.tolist() == [by_definition(expert, alpha) for expert in experts.tolist()]
    assert 0 < int(done.rule.has_fixed_point.sum()) < 60
    torch.testing.assert_close(done.minimum, done.rule.with_remainder, rtol=0, atol=1e-8)
    assert done.num_partly_kept(has_fixed_point=True).tolist() == [0] * int(done.rule.has_fixed_point.sum())
    assert set(done.num_partly_kept(has_fixed_point=False).tolist()) == {1}
    assert float(done.differences(done.rule.kept_only, has_fixed_point=False).min()) > 1e-6  # the proposition alone
    for minimum, expert in zip(done.minimum.tolist(), experts.tolist(), strict=True):
        in_order = [p for _, p in sorted(zip(expert, minimum, strict=True), reverse=True)]
        assert all(earlier >= later - 1e-9 for earlier, later in pairwise(in_order))


def test_a_minimum_that_is_not_reached_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"after 3 steps the largest gap is .*raise max_steps"):
        minimize(random_experts(num_cases=2, num_tokens=20, seed=0), alpha=0.02, max_steps=3)


# --- the programs and the page ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "small", "num_rows"),
    [
        (gaussian_mixtures, ["--steps", "30", "--seeds", "2"], len(SETTINGS)),
        (proposition_1, ["--cases", "30", "--alphas", "0.1", "0.3"], 2),
    ],
    ids=["gaussian_mixtures", "proposition_1"],
)
def test_a_program_prints_a_table_and_draws_the_same_file_again(
    program, small: list[str], num_rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first.svg", "second.svg"):
        program.main([*small, "--out", str(tmp_path / "new" / name)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (num_rows + 2) and len({line.count("|") for line in lines}) == 1
    first, second = (file.read_bytes() for file in sorted((tmp_path / "new").iterdir()))
    assert first == second and first.startswith(b"<?xml") and b"dc:date" not in first


@pytest.mark.parametrize(
    ("program", "wrong", "message"),
    [
        (gaussian_mixtures, ["--steps", "0"], "give at least 1 of both"),
        (proposition_1, ["--tokens", "1"], "give at least 1 case and 2 tokens"),
        (proposition_1, ["--alphas", "0.1", "2"], "each must be above 0 and at most 1"),
    ],
)
def test_impossible_options_are_errors(program, wrong: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        program.main(wrong)
    assert message in capsys.readouterr().err


def test_the_page_shows_every_setting_and_both_pictures() -> None:
    page = RESULTS.read_text(encoding="utf-8")
    assert all(f"| {setting.name} |" in page for setting in SETTINGS)
    for name in ("gaussian_mixtures", "proposition_1"):
        assert f"(pictures/{name}.svg)" in page
        assert (RESULTS.parent / f"pictures/{name}.svg").stat().st_size < 150_000
