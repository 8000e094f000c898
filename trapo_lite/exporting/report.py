"""Measure how far a merged checkpoint is from its policy, and how far it may be."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

ExportDtype = Literal["float32", "bfloat16"]

FLOAT32_MEAN_ERROR, FLOAT32_MAX_ERROR = 1e-4, 1e-3
"""Largest errors of a float32 checkpoint, in nats. Nothing is rounded, only the order of the sums differs. On random
tokens, which a trained model finds most unlikely, a million parameters gave a mean of 4e-6 and a max of 8e-5.
"""
ROUNDING_FACTOR = 3.0
"""Largest accepted error of a bfloat16 checkpoint, as a multiple of the error that random rounding causes. Measured:
0.1 to 1.
"""
SURVIVAL = (0.8, 1.2)
"""Allowed projection of the checkpoint's change on the adapter's change: 1 is all of it, 0 is lost in rounding."""


@dataclass(frozen=True)
class ExportReport:
    """Hold how the saved checkpoint's log-probs differ from those of base + adapter, in nats, computed in float32.

    mean_error, max_error: of |saved - policy|, over num_tokens tokens
    rounding_noise:        mean |change| if every saved weight is moved at random as far as rounding moved it; 0 for
                           float32
    effect:                mean |policy - base|: the effect of the adapter
    survival:              projection of (saved - base) on (policy - base); None if the error is too large to measure it
    """

    out: Path
    dtype: ExportDtype
    num_tokens: int
    mean_error: float
    max_error: float
    rounding_noise: float
    effect: float
    survival: float | None

    def refusal(self) -> str | None:
        """Return what is wrong with the checkpoint and what to do, or None."""
        cure = "; export with --dtype float32, or serve the adapter unmerged" if self.dtype == "bfloat16" else ""
        errors = f"mean |error| {self.mean_error:.3g}, max {self.max_error:.3g} nats over {self.num_tokens} tokens"
        if not math.isfinite(self.mean_error):
            return f"its log-probs are not finite: the adapter or the base is damaged{cure}"
        if self.survival is not None and not SURVIVAL[0] <= self.survival <= SURVIVAL[1]:
            return (
                f"{self.survival:.2f} times the adapter's effect is in it, allowed are {SURVIVAL[0]} to {SURVIVAL[1]} "
                f"({errors}; effect {self.effect:.3g}){cure}"
            )
        if self.dtype == "float32" and (self.mean_error > FLOAT32_MEAN_ERROR or self.max_error > FLOAT32_MAX_ERROR):
            allowed = f"a mean of {FLOAT32_MEAN_ERROR:g} and a max of {FLOAT32_MAX_ERROR:g}"
            return f"it differs from base + adapter by {errors}; allowed are {allowed}"
        if self.dtype == "bfloat16" and self.mean_error > ROUNDING_FACTOR * self.rounding_noise:
            return (
                f"it differs from base + adapter by {errors}; allowed is a mean of {ROUNDING_FACTOR:g} times what "
                f"rounding costs ({self.rounding_noise:.3g})"
            )
        return None

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        kept = "too small to tell from rounding" if self.survival is None else f"{self.survival:.3f} of it kept"
        return [
            f"{self.out}: merged checkpoint in {self.dtype}",
            f"  log-probs against base + adapter, {self.num_tokens} tokens: mean |error| {self.mean_error:.2g}, "
            f"max {self.max_error:.2g} nats",
            f"  rounding alone {self.rounding_noise:.2g}, the adapter's effect {self.effect:.2g} nats, {kept}",
        ]


def compare(
    saved: Tensor, policy: Tensor, base: Tensor, *, out: Path, dtype: ExportDtype, rounding_noise: float
) -> ExportReport:
    """Compare log-probs of the same tokens, each (n,), float64.

    The projection on the effect d has the standard error |r| / |d| / sqrt(n), where r is orthogonal to d. It is
    reported if four standard errors fit into the range that `SURVIVAL` allows.
    """
    error, effect, change = saved - policy, policy - base, saved - base
    survival = None
    if bool(effect.any()):
        projection = float(change @ effect / (effect @ effect))
        residual = change - projection * effect
        standard_error = float(residual.norm() / effect.norm()) / math.sqrt(len(effect))
        survival = projection if 4 * standard_error <= SURVIVAL[1] - 1 else None
    return ExportReport(
        out=out,
        dtype=dtype,
        num_tokens=len(error),
        mean_error=float(error.abs().mean()),
        max_error=float(error.abs().max()),
        rounding_noise=rounding_noise,
        effect=float(effect.abs().mean()),
        survival=survival,
    )
