"""A choice is a part of the algorithm that a configuration names, with its parameters beside the name."""

from typing import Any

from pydantic import BeforeValidator

from trapo_lite.config.fields import Section

TRAINS_ALL = ("top_entropy", None)


class Choice(Section):
    """A Choice is one type of a part of the algorithm, with its parameters."""

    type: str

    def describe(self) -> str:
        """Return the name with its parameters, as text for people.

        >>> from trapo_lite.config.choices import Nll, TrustRegion
        >>> TrustRegion().describe(), Nll().describe()
        ('trust_region (alpha 0.1)', 'nll')
        """
        hidden = ("type", "weight", "times_advantage")
        parameters = [f"{key} {value}" for key, value in self if key not in hidden and (key, value) != TRAINS_ALL]
        return f"{self.type} ({', '.join(parameters)})" if parameters else self.type


def by_name(value: Any) -> Any:
    """Return the type that a name without parameters stands for; return anything else unchanged."""
    return {"type": value} if isinstance(value, str) else value


NAMED = BeforeValidator(by_name)
