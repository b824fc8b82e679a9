"""What a site adds to its machines: PUE, CUE, WUE and water (the ISO/IEC 30134 series)."""

from __future__ import annotations

from negawatt.carbon.amount import GRAMS, LITRES, Amount, Factor, in_kwh, joined
from negawatt.energy import Energy, Provenance
from negawatt.errors import UsageError


def given_pue(value: float, low: float | None = None, high: float | None = None) -> Factor:
    """A site's stated power usage effectiveness.

    Raises:
        UsageError: it is below 1: a site cannot use less than the machines in it.
    """
    low, high = value if low is None else low, value if high is None else high
    if not 1 <= low <= value <= high:
        raise UsageError(f"expected a PUE of at least 1 within its interval, not {value} ({low}–{high})")
    return Factor.estimated(value, low, high, "1", f"PUE {value:g} as stated")


def pue(facility: Energy, it: Energy) -> Factor:
    """Power usage effectiveness, ISO/IEC 30134-2: the site's energy over that of its IT equipment.

    Raises:
        UsageError: one is missing, the machines' is not above 0, or the ratio is below 1 (the two
            were swapped, or cover different times or places).
    """
    ratio = _ratio(in_kwh(facility), it, "1", "PUE")
    if ratio.high < 1:
        raise UsageError(
            f"the site's {facility} over its machines' {it} is a PUE below 1; "
            "they are swapped, or cover different times or places"
        )
    return ratio


def cue(emitted: Amount, it: Energy) -> Factor:
    """Carbon usage effectiveness, ISO/IEC 30134-8: grams emitted for the site a kWh of IT equipment.

    Where all of the site's energy is electricity, this is its PUE times the intensity.

    Raises:
        UsageError: one is missing, the unit is not grams, or the energy is not above 0.
    """
    if emitted.unit != GRAMS:
        raise UsageError(f"a CUE is made of {GRAMS}, not {emitted.unit}")
    return _ratio(emitted, it, f"{GRAMS}/kWh", "CUE")


def wue(water: Amount, it: Energy) -> Factor:
    """Water usage effectiveness, ISO/IEC 30134-9: litres the site used a kWh of IT equipment.

    Raises:
        UsageError: one is missing, the unit is not litres, or the energy is not above 0.
    """
    if water.unit != LITRES:
        raise UsageError(f"a WUE is made of {LITRES}, not {water.unit}")
    return _ratio(water, it, f"{LITRES}/kWh", "WUE")


def site_water(it: Energy, wue: Factor) -> Amount:
    """Litres used at the site, most of it for cooling: IT energy times WUE.

    The PUE has no part in it: a WUE already counts the whole site's water against IT energy.
    """
    return wue.of(it)


def source_water(facility: Energy, ewif: Factor) -> Amount:
    """Litres used to generate the electricity: the site's energy times its energy water intensity factor.

    `facility` is what the site drew, cooling included; the PUE is in it once and must not be applied again.
    """
    return ewif.of(facility)


def water(it: Energy, facility: Energy, wue: Factor, ewif: Factor) -> Amount:
    """All litres, at the site and where its electricity is made: E_IT · (WUE + PUE · EWIF)."""
    return site_water(it, wue) + source_water(facility, ewif)


def _ratio(part: Amount, it: Energy, unit: str, name: str) -> Factor:
    whole = in_kwh(it)
    if part.value is None or part.low is None or part.high is None:
        raise UsageError(f"there is no {name} without its numerator: {part}")
    if whole.value is None or whole.low is None or whole.high is None or whole.low <= 0:
        raise UsageError(f"there is no {name} without an IT energy above 0, and it is {it}")
    corners = [n / d for n in (part.low, part.high) for d in (whole.low, whole.high)]
    value = part.value / whole.value
    provenance = max(part.provenance, whole.provenance, Provenance.DERIVED)
    source = joined(part.reason, whole.reason)
    return Factor(value, min(*corners, value), max(*corners, value), unit, provenance, source)
