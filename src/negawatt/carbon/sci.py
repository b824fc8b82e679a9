"""`Sci`: Software Carbon Intensity (ISO/IEC 21031:2024), and its form for AI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from negawatt.carbon.amount import Amount, Factor
from negawatt.carbon.emissions import location_based
from negawatt.energy import Energy
from negawatt.errors import UsageError

Persona = Literal["consumer", "provider"]
AI_UNITS: dict[str, tuple[str, ...]] = {
    "consumer": ("token",),
    "provider": ("FLOP", "training token", "parameter"),
}
"""Functional units of SCI for AI: who uses a model counts what comes out, who makes it what went in."""


@dataclass(frozen=True, slots=True)
class Sci:
    """(E · I + M) per R, a rate: offsets and certificates do not lower it.

    Attributes:
        operational: E · I, grams of CO₂ equivalent.
        embodied: M, grams of CO₂ equivalent.
        count: R, how many functional units were done.
        unit: of R, in the singular: ``token``, ``request``.
        persona: of SCI for AI, whose boundary it is; None for plain SCI.
    """

    operational: Amount
    embodied: Amount
    count: float
    unit: str
    persona: Persona | None = None

    @property
    def rate(self) -> Amount:
        """Grams of CO₂ equivalent a functional unit."""
        return (self.operational + self.embodied).per(self.count, self.unit)

    def to_json(self) -> dict[str, Any]:
        return {
            "rate": self.rate.to_json(),
            "operational": self.operational.to_json(),
            "embodied": self.embodied.to_json(),
            "count": self.count,
            "unit": self.unit,
            "persona": self.persona,
        }


def sci(energy: Energy, intensity: Factor, embodied: Amount, count: float, unit: str) -> Sci:
    """Software Carbon Intensity, ISO/IEC 21031.

    Args:
        energy: E, all the software draws, with the site's overhead.
        intensity: I, the grid's location-based average; the standard admits no market-based one.
        embodied: M, see `negawatt.carbon.embodied`; what is not known is `Amount.missing`, and then so
            is the rate.
        count: R, functional units done with that energy.
        unit: of R, in the singular.

    Raises:
        UsageError: the intensity is marginal, or `count` is not above 0.
    """
    if not 0 < count < float("inf"):
        raise UsageError(f"expected a number of {unit}s above 0, not {count}")
    return Sci(location_based(energy, intensity), embodied, count, unit)


def sci_for_ai(
    persona: Persona, energy: Energy, intensity: Factor, embodied: Amount, count: float, unit: str
) -> Sci:
    """SCI for AI (Green Software Foundation): the same rate with a boundary and a unit for each persona.

    A consumer counts running the model, per token. A provider counts data, training and evaluation, per
    FLOP, training token or parameter. The two are stated side by side and never added.

    Raises:
        UsageError: the unit is not one of the persona's, or see `sci`.
    """
    if unit not in AI_UNITS[persona]:
        raise UsageError(f"a {persona} counts by {' or '.join(AI_UNITS[persona])}, not by {unit}")
    plain = sci(energy, intensity, embodied, count, unit)
    return Sci(plain.operational, plain.embodied, count, unit, persona)
