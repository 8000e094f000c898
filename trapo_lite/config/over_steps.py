"""A number of the algorithm may change over the steps: it then has values at some steps, and a curve between them."""

import math
from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from trapo_lite.config.fields import Fraction, NonNegative, Number, Positive, Section, Whole


class OverSteps(Section):
    """An OverSteps has a value at each of some steps, half a cosine between them, and is constant before and after.

    >>> falling = OverSteps(steps=[0, 100], values=[0.9, 0.1])
    >>> [round(falling.at(step), 3) for step in (0, 50, 100, 200)]
    [0.9, 0.5, 0.1, 0.1]
    """

    steps: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=2)]
    """Numbers of updates that are done, rising: 0 is the first step, which the log calls step 1."""
    values: Annotated[list[NonNegative], Field(min_length=2)]

    @model_validator(mode="after")
    def _is_a_curve(self) -> "OverSteps":
        if len(self.steps) != len(self.values):
            raise ValueError(f"steps, values: found {len(self.steps)} and {len(self.values)}; give as many of each")
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"steps: found {self.steps}; give rising numbers")
        if max(self.values) == 0.0:
            raise ValueError("values: all are 0; leave the part out instead")
        return self

    def at(self, step: int) -> float:
        if step <= self.steps[0]:
            return self.values[0]
        for index, end in enumerate(self.steps[1:]):
            if step <= end:
                start, low, high = self.steps[index], self.values[index], self.values[index + 1]
                share = 0.5 - 0.5 * math.cos(math.pi * (step - start) / (end - start))
                return low + (high - low) * share
        return self.values[-1]


def at_step(value: float | OverSteps, step: int) -> float:
    """Return the value of a number that may change over the steps; step: how many updates are done."""
    return value.at(step) if isinstance(value, OverSteps) else value


def in_words(value: float | OverSteps) -> str:
    """Return a number or the course of one.

    >>> in_words(0.5), in_words(OverSteps(steps=[0, 20, 200], values=[0, 0.9, 0.05]))
    ('0.5', '0, then 0.9 (step 20), then 0.05 (step 200)')
    """
    if not isinstance(value, OverSteps):
        return f"{value:g}"
    later = [f"{value:g} (step {step})" for step, value in zip(value.steps[1:], value.values[1:], strict=True)]
    return ", then ".join([f"{value.values[0]:g}", *later])


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "list"
    return "over_steps" if isinstance(value, dict | OverSteps) else "number"


Weight = Annotated[
    Annotated[Positive, Tag("number")] | Annotated[OverSteps, Tag("over_steps")],
    Discriminator(lambda value: "over_steps" if isinstance(value, dict | OverSteps) else "number"),
]
"""A factor of a loss, or its course."""
Ratio = Annotated[
    Annotated[Fraction, Tag("number")]
    | Annotated[list[Annotated[Number, Field(gt=0.0, lt=1.0)]], Field(min_length=1), Tag("list")]
    | Annotated[OverSteps, Tag("over_steps")],
    Discriminator(_kind),
]
"""A share of an expert solution, several of which one is drawn, or the course of one."""
