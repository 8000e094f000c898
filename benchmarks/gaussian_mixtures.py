"""Train mixtures of Gaussians by SFT and by trust-region SFT, and see where they put mass on the way.

    python benchmarks/gaussian_mixtures.py --out docs/pictures/gaussian_mixtures.svg
    python benchmarks/gaussian_mixtures.py --steps 300 --seeds 2     # the table alone, in seconds

The TRAPO paper (arXiv:2512.17636) says that SFT puts mass where neither the model nor the expert has any, before it
repairs this, and that trust-region SFT (TrSFT) does not. Here everything is one-dimensional, on a line of 161 bins of
width 0.2, so a distribution is a probability for each bin, as a policy's is for each token. The expert is a mixture of
equally likely modes of standard deviation 1. Both losses start from the same model and follow the exact gradient of the
expected loss over the expert's bins. Seeds move the starting means.

A bin's probability is at most 0.08 here. So alpha is given as a share of the largest probability of a bin at the start.

Outside: the bins that belong neither to the smallest set of bins with 99.9 % of the starting model's mass, nor to the
same set of the expert. A mass outside of more than 2 % counts.
"""

import argparse
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pictures import save_picture
from torch import Tensor

from trapo_lite.core.losses import nll, trust_region_nll

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # type: ignore[import-not-found]

BINS = torch.arange(-80, 81, dtype=torch.float64) * 0.2
"""Centres of the bins."""
MODE_WIDTH = 1.0
"""Standard deviation of the expert's modes."""
INSIDE = 0.999
COUNTS_FROM = 0.02
LOSSES = ("SFT", "TrSFT")


@dataclass(frozen=True)
class Setting:
    """A Setting is an expert, a starting model and how it is trained."""

    name: str
    expert: tuple[float, ...] = (-4.0, 4.0)
    """Means of the expert's modes."""
    start: float = -4.0
    start_width: float = MODE_WIDTH
    num_components: int | None = 2
    """Components of the model, all at the start; None: one free logit for each bin."""
    alpha: float = 0.1
    """Edge of the trust region, as a share of the largest probability of a bin at the start."""
    optimizer: str = "adam"


SETTINGS = (
    Setting("two modes, the start is one of them"),
    Setting("the same, 14 apart", expert=(-7.0, 7.0), start=-7.0),
    Setting("the same, 4 apart", expert=(-2.0, 2.0), start=-2.0),
    Setting("the same, one component", num_components=1),
    Setting("three modes, three components", expert=(-8.0, 0.0, 8.0), start=-8.0, num_components=3),
    Setting("two modes, plain gradient descent", optimizer="sgd"),
    Setting("two modes, alpha 1", alpha=1.0),
    Setting("two modes, alpha 0.001", alpha=1e-3),
    Setting("two modes, alpha 0.000001", alpha=1e-6),
    Setting("the start is 2 beside a mode", start=-6.0),
    Setting("the start is 4 beside a mode", start=-8.0),
    Setting("the start is wide, between the modes", expert=(-5.0, 5.0), start=0.0, start_width=2.0),
    Setting("two modes, one logit for each bin", num_components=None),
)
SHOWN = (SETTINGS[0], SETTINGS[10])
"""Settings in the picture: one in which the claim holds, one in which it fails."""


@dataclass(frozen=True)
class Course:
    """A Course is what a training did, for each seed."""

    outside: Tensor
    """(steps + 1, seeds): mass outside before each step and at the end."""
    covered: Tensor
    """(seeds,): share of the expert's modes that the model covers at the end."""
    at_peak: Tensor
    """(bins,): the first seed's distribution when its mass outside was largest."""
    at_end: Tensor
    """(bins,)"""

    @property
    def peaks(self) -> Tensor:
        return self.outside.amax(0)

    @property
    def ends(self) -> Tensor:
        return self.outside[-1]


def mixture_logprobs(means: Tensor, widths: Tensor, logits: Tensor) -> Tensor:
    """Return the log-probability of each bin under mixtures of Gaussians: (..., components) to (..., bins).

    A bin has the density at its centre, divided by the sum over all bins.
    """
    distances = (BINS[:, None] - means[..., None, :]) / widths[..., None, :]
    log_weights = logits.log_softmax(-1) - widths.log()
    return (log_weights[..., None, :] - 0.5 * distances**2).logsumexp(-1).log_softmax(-1)


def even_mixture(means: Sequence[float], width: float) -> Tensor:
    """Return the bins' probabilities under a mixture of equally likely modes."""
    at = torch.tensor(means, dtype=torch.float64)
    return mixture_logprobs(at, torch.full_like(at, width), torch.zeros_like(at)).exp()


def smallest_set(probabilities: Tensor, mass: float) -> Tensor:
    """Return, per bin, whether it belongs to the fewest bins that hold at least the given mass."""
    ordered, order = probabilities.sort(descending=True)
    num_before = torch.searchsorted(ordered.cumsum(0), mass)
    chosen = torch.zeros_like(probabilities, dtype=torch.bool)
    chosen[order[: int(num_before) + 1]] = True
    return chosen


def outside_bins(setting: Setting) -> Tensor:
    """Return, per bin, whether neither the starting model nor the expert has mass there."""
    start = even_mixture([setting.start], setting.start_width)
    expert = even_mixture(setting.expert, MODE_WIDTH)
    return ~(smallest_set(start, INSIDE) | smallest_set(expert, INSIDE))


def share_covered(probabilities: Tensor, setting: Setting) -> Tensor:
    """Return the share of the expert's modes near which the model has at least three quarters of the expert's mass.

    Near is within two standard deviations of the mode's mean. Bins are the last dimension.
    """
    expert = even_mixture(setting.expert, MODE_WIDTH)
    near = torch.stack([(BINS - mean).abs() <= 2 * MODE_WIDTH for mean in setting.expert]).double()
    return (probabilities @ near.T >= 0.75 * (near @ expert)).double().mean(-1)


def start_model(setting: Setting, num_seeds: int) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Return the parameters of the models of all seeds, and the function that gives their log-probs (seeds, bins)."""
    if setting.num_components is None:
        start = even_mixture([setting.start], setting.start_width)
        logits = (start + 1e-12).log().repeat(num_seeds, 1).requires_grad_()
        return [logits], lambda: logits.log_softmax(-1)
    shape = num_seeds, setting.num_components
    moved = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = (setting.start + moved).requires_grad_()
    log_widths = torch.full(shape, math.log(setting.start_width), dtype=torch.float64, requires_grad=True)
    logits = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    return [means, log_widths, logits], lambda: mixture_logprobs(means, log_widths.exp(), logits)


def train(setting: Setting, loss_name: str, *, num_steps: int, num_seeds: int) -> Course:
    """Train the models of all seeds by one of LOSSES; they share nothing but the call."""
    parameters, logprobs_of = start_model(setting, num_seeds)
    expert, outside = even_mixture(setting.expert, MODE_WIDTH), outside_bins(setting)
    alpha = setting.alpha * float(even_mixture([setting.start], setting.start_width).max())
    loss = nll if loss_name == "SFT" else functools.partial(trust_region_nll, alpha=alpha)
    kinds = {"adam": functools.partial(torch.optim.Adam, lr=0.02), "sgd": functools.partial(torch.optim.SGD, lr=0.05)}
    optimizer = kinds[setting.optimizer](parameters)
    masses, peak, at_peak = [], -1.0, expert
    for step in range(num_steps + 1):
        logprobs = logprobs_of()
        probabilities = logprobs.detach().exp()
        masses.append(probabilities[:, outside].sum(-1))
        if float(masses[-1][0]) > peak:
            peak, at_peak = float(masses[-1][0]), probabilities[0]
        if step < num_steps:
            optimizer.zero_grad()
            (expert * loss(logprobs)).sum().backward()
            optimizer.step()
    return Course(torch.stack(masses), share_covered(probabilities, setting), at_peak, probabilities[0])


def verdict(sft: Course, trust_region: Course) -> str:
    """Return whether the claim holds for every seed, for none, or for some.

    It holds for a seed if SFT's mass outside exceeds COUNTS_FROM on the way, and TrSFT's never does.
    """
    sft_leaves, trust_region_leaves = sft.peaks > COUNTS_FROM, trust_region.peaks > COUNTS_FROM
    holds = sft_leaves & ~trust_region_leaves
    if bool(holds.all()):
        return "holds"
    if bool(holds.any()):
        return f"cannot be told: holds for {int(holds.sum())} of {len(holds)} seeds"
    if not bool(sft_leaves.any()):
        return "fails: SFT stays inside too" if not bool(trust_region_leaves.any()) else "fails: only TrSFT leaves"
    return "fails: TrSFT leaves too"


def table(courses: dict[str, tuple[Course, Course]]) -> list[str]:
    """Return the lines of a Markdown table with the range over seeds of each figure."""
    lines = [
        "| setting | most outside: SFT | TrSFT | at the end: SFT | TrSFT | modes covered: SFT | TrSFT | the claim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, pair in courses.items():
        peaks = [_range(course.peaks, 3) for course in pair]
        ends = [_range(course.ends, 3) for course in pair]
        covered = [_range(course.covered, 2) for course in pair]
        lines.append(f"| {name} | {' | '.join([*peaks, *ends, *covered])} | {verdict(*pair)} |")
    return lines


def _range(values: Tensor, digits: int) -> str:
    low, high = (f"{float(value):.{digits}f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def draw(courses: dict[str, tuple[Course, Course]], file: Path) -> None:
    """Draw SHOWN, a row each: the first seed's distributions, and the mass outside over the steps."""
    from matplotlib.figure import Figure  # type: ignore[import-not-found]

    drawing = Figure(figsize=(11, 6.6), layout="constrained")
    for row, setting in zip(drawing.subplots(len(SHOWN), 2), SHOWN, strict=True):
        draw_distributions(row[0], setting, courses[setting.name])
        draw_course(row[1], courses[setting.name])
    save_picture(drawing, file)


def draw_distributions(axes: "Axes", setting: Setting, pair: tuple[Course, Course]) -> None:
    sft, trust_region = pair
    top = 0.09
    axes.axvspan(-14, 10, color="0.92", lw=0, label="outside")
    for first, last in runs(~outside_bins(setting)):
        axes.axvspan(float(BINS[first]) - 0.1, float(BINS[last]) + 0.1, color="white", lw=0)
    axes.plot(BINS, even_mixture(setting.expert, MODE_WIDTH), color="black", lw=2.5, label="expert")
    axes.plot(BINS, even_mixture([setting.start], setting.start_width), color="0.5", ls="--", label="start")
    axes.plot(BINS, sft.at_peak, color="tab:red", ls=":", label="SFT, when most is outside")
    axes.plot(BINS, sft.at_end, color="tab:red", label="SFT, at the end")
    if bool(trust_region.peaks[0] > COUNTS_FROM):
        axes.plot(BINS, trust_region.at_peak, color="tab:blue", ls=":", label="TrSFT, when most is outside")
    axes.plot(BINS, trust_region.at_end, color="tab:blue", label="TrSFT, at the end")
    axes.set(title=setting.name, xlabel="position", ylabel="probability of a bin", xlim=(-14, 10), ylim=(0, top))
    axes.legend(fontsize=8)


def runs(chosen: Tensor) -> list[tuple[int, int]]:
    """Return the first and the last index of each unbroken run of chosen bins.

    >>> runs(torch.tensor([True, True, False, True]))
    [(0, 1), (3, 3)]
    """
    ends = torch.cat([torch.tensor([0]), chosen.int(), torch.tensor([0])]).diff()
    first, last = (ends == 1).nonzero()[:, 0], (ends == -1).nonzero()[:, 0] - 1
    return list(zip(first.tolist(), last.tolist(), strict=True))


def draw_course(axes: "Axes", pair: tuple[Course, Course]) -> None:
    for course, color, name in zip(pair, ("tab:red", "tab:blue"), LOSSES, strict=True):
        shown = torch.unique(torch.logspace(0, math.log10(len(course.outside)), 60).long()) - 1
        low, high = course.outside[shown].amin(1), course.outside[shown].amax(1)
        axes.fill_between(shown + 1, low, high, color=color, alpha=0.3, lw=0)
        axes.plot(shown + 1, course.outside[shown].median(1).values, color=color, label=name)
    axes.axhline(COUNTS_FROM, color="0.5", ls="--", lw=0.8, label="counts from here")
    axes.set(title="median and range of the seeds", xlabel="step + 1", ylabel="mass outside", xscale="log")
    axes.set_ylim(0, 0.3)
    axes.legend(fontsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=10, help="number of starting models, moved at random")
    parser.add_argument("--out", type=Path, help="SVG file to draw")
    args = parser.parse_args(arguments)
    if min(args.steps, args.seeds) < 1:
        parser.error(f"--steps, --seeds: found {args.steps} and {args.seeds}; give at least 1 of both")
    torch.set_num_threads(1)  # these tensors are too small for two
    courses = {}
    for setting in SETTINGS:
        sft, trust_region = (train(setting, name, num_steps=args.steps, num_seeds=args.seeds) for name in LOSSES)
        courses[setting.name] = sft, trust_region
    print("\n".join(table(courses)))
    if args.out is not None:
        draw(courses, args.out)


if __name__ == "__main__":
    main()
