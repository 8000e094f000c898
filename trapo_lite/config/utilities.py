"""How the algorithm section measures the use of help: not at all, or by comparing rollouts (core/utility.py)."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from trapo_lite.config.choice import Choice
from trapo_lite.config.fields import Number

if TYPE_CHECKING:
    from trapo_lite.core.utility import UtilityRule


class NoUtility(Choice):
    """Help wherever the schedule says so."""

    type: Literal["none"] = "none"

    def build(self) -> None:
        return None


class UtilityChoice(Choice):
    """A UtilityChoice gives and trains prefixes unless they are likelier to lower the reward (core/utility.py)."""

    keep: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.9
    """Share of the past that still counts after a step; 0.9 looks back over some ten steps."""
    explore: Annotated[Number, Field(gt=0.0, lt=0.5)] = 0.1
    """Least probability of help where the schedule asks for it, so that its use is measured further."""
    gates_help: bool = True
    """Whether help is given the less the likelier it is to harm."""
    weighs_loss: bool = True
    """Whether the prefix loss is lowered alike."""

    @model_validator(mode="after")
    def _acts(self) -> "UtilityChoice":
        if not self.gates_help and not self.weighs_loss:
            raise ValueError("gates_help, weighs_loss: without either, utility decides nothing; use utility: none")
        return self

    def build(self) -> "UtilityRule":
        from trapo_lite.core.utility import UtilityRule

        parameters = {key: value for key, value in self if key != "type"}
        return UtilityRule(compares=self.type, **parameters)  # type: ignore[arg-type]


class Control(UtilityChoice):
    """A Control compares helped rollouts with those of problems that help was withheld from at random."""

    type: Literal["control"] = "control"


class SameProblem(UtilityChoice):
    """A SameProblem compares helped rollouts with unguided ones of the same problem."""

    type: Literal["same_problem"] = "same_problem"
