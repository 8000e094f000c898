"""Check Proposition 1 of TRAPO on random distributions: where the expected trust-region loss has its minimum.

    python benchmarks/proposition_1.py --out docs/pictures/proposition_1.svg
    python benchmarks/proposition_1.py --cases 50     # the table alone, in seconds

The proposition (arXiv:2512.17636): the minimum is p(c) = pE(c) / lambda for tokens with pE(c) > alpha lambda and 0 for
the others, where lambda is the expert's mass on the tokens that are kept. It has exceptions: often no set of tokens is
the one that its own lambda keeps (a fixed point). Then the next token in order, or all of its probability, gets what
the kept ones leave.

A case is softmax(s z) with standard normal z and s drawn evenly from 0.5 to 4. The minimum is computed from the loss
alone, by projected gradient descent with momentum; no closed form enters. The loss is convex in p, so the largest
decrease that its gradient allows over the simplex bounds how far the result is from the minimum (the gap).
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pictures import save_picture
from torch import Tensor

from trapo_lite.core.losses import trust_region_nll

TINY = 1e-300
"""Added before a logarithm: a probability of 0 then has a finite log-prob and the right gradient."""


def random_experts(*, num_cases: int, num_tokens: int, seed: int) -> Tensor:
    """Return distributions of the experts, (cases, tokens), in float64."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_cases, num_tokens, generator=generator, dtype=torch.float64)
    scale = 0.5 + 3.5 * torch.rand(num_cases, 1, generator=generator, dtype=torch.float64)
    return (scale * scores).softmax(-1)


# --- the minimum, from the loss alone ---


def gradient(probabilities: Tensor, expert: Tensor, *, alpha: float) -> Tensor:
    """Return the gradient of the expected loss in the probabilities; below 0 the loss continues as a straight line."""
    at = probabilities.detach().clamp(min=0.0).requires_grad_()
    loss = (expert * trust_region_nll((at + TINY).log(), alpha=alpha)).sum()
    return torch.autograd.grad(loss, at)[0]


def project(points: Tensor) -> Tensor:
    """Return the nearest distribution to each row: max(0, x - t) with the t that makes its sum 1."""
    ordered = points.sort(-1, descending=True).values
    counts = torch.arange(1, points.shape[-1] + 1, dtype=points.dtype)
    shifts = (ordered.cumsum(-1) - 1.0) / counts
    num_positive = (ordered > shifts).sum(-1, keepdim=True)
    return (points - shifts.gather(-1, num_positive - 1)).clamp(min=0.0)


def gaps(probabilities: Tensor, expert: Tensor, *, alpha: float) -> Tensor:
    """Return, per case, a bound on how far the loss is above its minimum over all distributions."""
    slope = gradient(probabilities, expert, alpha=alpha)
    return (slope * probabilities).sum(-1) - slope.amin(-1)


def minimize(expert: Tensor, *, alpha: float, tolerance: float = 1e-12, max_steps: int = 50_000) -> Tensor:
    """Return the distributions of least expected loss; RuntimeError if a gap stays above the tolerance.

    The step is 1 / L: along a token the gradient changes at most pE / alpha^2 times as fast as its probability. The
    momentum of a case starts again when it points uphill.
    """
    step_size = alpha**2 / expert.amax(-1, keepdim=True)
    now = ahead = torch.full_like(expert, 1.0 / expert.shape[-1])
    age = torch.ones_like(step_size)
    for step in range(max_steps):
        slope = gradient(ahead, expert, alpha=alpha)
        after = project(ahead - step_size * slope)
        is_uphill = ((ahead - after) * (after - now)).sum(-1, keepdim=True) > 0
        next_age = torch.where(is_uphill, 1.0, (1.0 + (1.0 + 4.0 * age**2).sqrt()) / 2.0)
        momentum = torch.where(is_uphill, 0.0, (age - 1.0) / next_age)
        now, ahead, age = after, after + momentum * (after - now), next_age
        if step % 100 == 99 and float(gaps(now, expert, alpha=alpha).max()) < tolerance:
            return now
    raise RuntimeError(
        f"proposition_1: after {max_steps} steps the largest gap is {float(gaps(now, expert, alpha=alpha).max()):.1e}, "
        f"more than {tolerance:.0e}; raise max_steps"
    )


# --- the proposition, and what holds where it has no solution ---


@dataclass(frozen=True)
class Rule:
    """A Rule is what the proposition says of each case, and the rule for the remainder where it says nothing."""

    has_fixed_point: Tensor
    """(cases,): whether some set of kept tokens is the one that its own lambda keeps."""
    kept_only: Tensor
    """(cases, tokens): the expert's probabilities of the kept tokens divided by their sum, 0 elsewhere."""
    with_remainder: Tensor
    """(cases, tokens): the same where there is a fixed point; otherwise the tokens at the jump share what is left."""


def rule_of(expert: Tensor, *, alpha: float) -> Rule:
    """Return what is kept in each case.

    Kept tokens are those more probable than some value v. Their own lambda is the expert's mass K on them. The set is a
    fixed point if v <= alpha K and every kept token is above alpha K. If no set is, one v has K alpha / v <= 1, and the
    tokens of probability v could get up to alpha each, which is more than is left. There lambda = v / alpha.
    """
    values = torch.cat([expert, torch.zeros_like(expert[:, :1])], -1)[:, :, None]  # 0 cuts no token
    others = expert[:, None, :]
    is_above, num_equal = others > values, (others == values).sum(-1)
    edge = alpha * (is_above * others).sum(-1)
    least_kept = torch.where(is_above, others, torch.inf).amin(-1)
    is_fixed = (values[:, :, 0] <= edge) & (least_kept > edge)
    filled = edge / values[:, :, 0]
    is_jump = (filled <= 1.0) & (filled + alpha * num_equal >= 1.0)

    has_fixed_point = is_fixed.any(-1)
    rows = torch.arange(len(expert))
    chosen = torch.where(has_fixed_point[:, None], is_fixed, is_jump).int().argmax(-1)
    kept = torch.where(is_above[rows, chosen], expert, 0.0)
    kept_only = kept / kept.sum(-1, keepdim=True).clamp(min=TINY)
    share = (1.0 - filled[rows, chosen]) / num_equal[rows, chosen]
    jump = alpha * kept / values[rows, chosen] + share[:, None] * (expert == values[rows, chosen])
    return Rule(has_fixed_point, kept_only, torch.where(has_fixed_point[:, None], kept_only, jump))


# --- what is printed and drawn ---


@dataclass(frozen=True)
class Check:
    """A Check compares the minimum with the rule for all cases of one alpha."""

    alpha: float
    expert: Tensor
    minimum: Tensor
    rule: Rule
    largest_gap: float

    def differences(self, predicted: Tensor, *, has_fixed_point: bool) -> Tensor:
        """Return the largest difference in probability of each case that has, or has not, a fixed point."""
        chosen = self.rule.has_fixed_point == has_fixed_point
        return (self.minimum - predicted)[chosen].abs().amax(-1)

    def num_partly_kept(self, *, has_fixed_point: bool) -> Tensor:
        """Return, for each such case, how many tokens are left below alpha but above 0."""
        chosen = self.minimum[self.rule.has_fixed_point == has_fixed_point]
        return ((chosen > 1e-9) & (chosen < self.alpha - 1e-9)).sum(-1)


def check(expert: Tensor, *, alpha: float) -> Check:
    minimum = minimize(expert, alpha=alpha)
    return Check(alpha, expert, minimum, rule_of(expert, alpha=alpha), float(gaps(minimum, expert, alpha=alpha).max()))


def table(checks: Sequence[Check]) -> list[str]:
    """Return the lines of a Markdown table, one for each alpha."""
    lines = [
        "| alpha | cases | without a fixed point | largest gap | largest difference: with a fixed point | without one "
        "| kept below alpha: with a fixed point | without one | most tokens above alpha | 1 / alpha |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for done in checks:
        differences = [
            _largest(done.differences(done.rule.with_remainder, has_fixed_point=has)) for has in (True, False)
        ]
        partly = [_span(done.num_partly_kept(has_fixed_point=has)) for has in (True, False)]
        most = int((done.minimum > done.alpha + 1e-9).sum(-1).max())
        num_without = int((~done.rule.has_fixed_point).sum())
        cells = [f"{done.alpha:g}", len(done.expert), num_without, f"{done.largest_gap:.0e}", *differences, *partly]
        lines.append(f"| {' | '.join(map(str, cells))} | {most} | {1 / done.alpha:.4g} |")
    return lines


def _largest(values: Tensor) -> str:
    return f"{float(values.max()):.0e}" if len(values) else "-"


def _span(counts: Tensor) -> str:
    if not len(counts):
        return "-"
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"


def draw(done: Check, file: Path) -> None:
    """Draw an example with and one without a fixed point, and the differences of all cases."""
    from matplotlib.figure import Figure  # type: ignore[import-not-found]

    drawing = Figure(figsize=(12, 3.8), layout="constrained")
    panels = drawing.subplots(1, 3)
    for axes, has, title in zip(panels, (True, False), ("with a fixed point", "without one"), strict=False):
        case = _example(done, has_fixed_point=has)
        order = done.expert[case].argsort(descending=True)[:12]
        places = torch.arange(1, len(order) + 1)
        axes.bar(places - 0.2, done.expert[case][order], 0.4, color="0.6", label="expert")
        axes.bar(places + 0.2, done.minimum[case][order], 0.4, color="tab:blue", label="minimum of the loss")
        axes.plot(places + 0.2, done.rule.kept_only[case][order], "x", color="tab:red", label="the proposition")
        axes.axhline(done.alpha, color="black", ls="--", lw=0.8, label=f"alpha = {done.alpha:g}")
        axes.set(title=f"a case {title}", xlabel="token, the most probable first", ylabel="probability")
        axes.legend(fontsize=8)
    kinds = (
        ("with a fixed point", done.rule.kept_only, True, "tab:blue"),
        ("without: the proposition", done.rule.kept_only, False, "tab:red"),
        ("without: the rest to the jump", done.rule.with_remainder, False, "tab:green"),
    )
    bins = [exponent / 2 for exponent in range(-34, 1)]
    for label, predicted, has, color in kinds:
        differences = done.differences(predicted, has_fixed_point=has).clamp(min=1e-17).log10()
        panels[2].hist(differences, bins=bins, color=color, alpha=0.5, label=label)
    panels[2].set(title="all cases", xlabel="log10 of the largest difference in probability", ylabel="cases")
    panels[2].legend(fontsize=8)
    save_picture(drawing, file)


def _example(done: Check, *, has_fixed_point: bool) -> int:
    """Return the case, of those that have a fixed point or not, that keeps the most tokens above 0.01."""
    num_kept = (done.minimum > 0.01).sum(-1)
    return int(torch.where(done.rule.has_fixed_point == has_fixed_point, num_kept, -1).argmax())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.02, 0.1, 0.3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="SVG file to draw, of the alpha nearest to 0.1")
    args = parser.parse_args(arguments)
    if args.cases < 1 or args.tokens < 2:
        parser.error(f"--cases, --tokens: found {args.cases} and {args.tokens}; give at least 1 case and 2 tokens")
    if not all(0 < alpha <= 1 for alpha in args.alphas):
        parser.error(f"--alphas: found {args.alphas}; each must be above 0 and at most 1")
    torch.set_num_threads(1)  # these tensors are too small for two
    expert = random_experts(num_cases=args.cases, num_tokens=args.tokens, seed=args.seed)
    checks = [check(expert, alpha=alpha) for alpha in args.alphas]
    print("\n".join(table(checks)))
    if args.out is not None:
        draw(min(checks, key=lambda done: abs(done.alpha - 0.1)), args.out)


if __name__ == "__main__":
    main()
