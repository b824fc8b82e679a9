"""Grams of CO₂ equivalent: of electricity by place, by contract and at the margin, and of hardware."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from negawatt.carbon.amount import GRAMS, MARGINAL_GRAMS, Amount, Factor
from negawatt.energy import Energy
from negawatt.errors import UsageError

YEAR_S = 365.25 * 86400


def location_based(energy: Energy, intensity: Factor) -> Amount:
    """What the grid emitted where and when the energy was used (GHG Protocol, Scope 2 Guidance).

    Args:
        energy: what was drawn from the grid: the site's, with its overhead.
        intensity: the grid's average, in ``gCO2e/kWh``.

    Raises:
        UsageError: the intensity is marginal, or no intensity.
    """
    _average(intensity)
    return intensity.of(energy)


@dataclass(frozen=True, slots=True)
class Contract:
    """A contractual instrument that covers a share of the energy.

    Attributes:
        share: of the energy, 0 to 1.
        intensity: what the instrument conveys, in ``gCO2e/kWh``.
        instrument: what it is: a certificate, a power purchase agreement, a supplier's rate.
    """

    share: float
    intensity: Factor
    instrument: str

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"expected a share from 0 to 1 for {self.instrument}, not {self.share}")


def market_based(energy: Energy, contracts: Sequence[Contract], residual: Factor) -> Amount:
    """What the contracts for the energy say was emitted (GHG Protocol, Scope 2 Guidance).

    To be stated beside the location-based figure, never in its place.

    Args:
        energy: what was drawn from the grid.
        contracts: instruments that meet the guidance's quality criteria, with their shares.
        residual: the residual mix of the grid, for what no contract covers; where none is
            published, its average.

    Raises:
        UsageError: the shares exceed 1, or an intensity is marginal.
    """
    covered = math.fsum(contract.share for contract in contracts)
    if covered > 1 + 1e-9:
        raise UsageError(f"the contracts cover {covered:.4g} times the energy; expected at most 1")
    rest = Contract(max(0.0, 1 - covered), residual, "residual mix")
    parts = []
    for contract in (*contracts, rest):
        _average(contract.intensity)
        if contract.share:
            parts.append(contract.intensity.of(energy.scaled(contract.share)))
    return Amount.total(parts, GRAMS)


def marginal(energy: Energy, intensity: Factor) -> Amount:
    """What the grid would have emitted less without this energy: a sensitivity, not an inventory.

    Its unit keeps it apart: it adds to no other figure.

    Raises:
        UsageError: the intensity is not marginal.
    """
    if intensity.unit != f"{MARGINAL_GRAMS}/kWh":
        raise UsageError(f"expected a marginal intensity, not one in {intensity.unit}")
    return intensity.of(energy)


def embodied(
    total: Amount, *, reserved_s: float, lifespan_s: float, resources: float = 1.0, of_resources: float = 1.0
) -> Amount:
    """The share of making the hardware that a piece of work bears, M of ISO/IEC 21031.

    M = TE · (time reserved / expected lifespan) · (resources reserved / total resources).

    Args:
        total: TE, what making and disposing of the device emits over its life.
        reserved_s: how long the device was reserved for the work, idle waiting included.
        lifespan_s: how long it is expected to serve.
        resources: how much of it was reserved, such as cores.
        of_resources: how much of it there is.

    Raises:
        UsageError: a time or a number is negative, none, or more than there is.
    """
    if total.unit != GRAMS:
        raise UsageError(f"embodied emissions are {GRAMS}, not {total.unit}")
    for part, whole, what in ((reserved_s, lifespan_s, "seconds"), (resources, of_resources, "resources")):
        if not 0 <= part <= whole < math.inf or whole == 0:
            raise UsageError(f"expected 0 to {whole:g} {what} reserved of {whole:g}, not {part:g}")
    share = reserved_s / lifespan_s * (resources / of_resources)
    return total.times(Factor.exact(share, "1", ""))


def _average(intensity: Factor) -> None:
    if intensity.unit == f"{MARGINAL_GRAMS}/kWh":
        raise UsageError("a marginal intensity is a sensitivity and enters no inventory; use an average one")
    if intensity.unit != f"{GRAMS}/kWh":
        raise UsageError(f"expected an intensity in {GRAMS}/kWh, not {intensity.unit}")
