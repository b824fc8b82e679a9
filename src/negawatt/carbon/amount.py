"""`Amount` and `Factor`: what energy turns into (grams, litres, money), and at which rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from negawatt.energy import Energy, Provenance

KWH_J = 3.6e6
"""Joules in a kilowatt-hour."""

GRAMS = "gCO2e"
MARGINAL_GRAMS = "gCO2e (marginal)"
"""Not the unit of an inventory: amounts of different units do not add, so no sum can mix the two."""
LITRES = "L"


@dataclass(frozen=True, slots=True)
class Amount:
    """A quantity in some unit, with an interval and a provenance, as `Energy` has them.

    Attributes:
        value: best single figure, in `unit`; None exactly when the provenance is missing.
        low: lower end of the interval. Of a missing amount: what is known at least, or None.
        high: upper end; None when the provenance is missing.
        unit: ``gCO2e``, ``L``, a currency's code, or one of these per something (``gCO2e/token``).
        provenance: the worst of all that went into it.
        reason: where the figures come from, or why it is missing.

    Amounts of the same unit add; intervals add as worst cases that occur together.
    """

    value: float | None
    low: float | None
    high: float | None
    unit: str
    provenance: Provenance
    reason: str = ""

    def __post_init__(self) -> None:
        _check(self.value, self.low, self.high, self.provenance, self.unit)

    @classmethod
    def missing(cls, unit: str, reason: str, *, low: float | None = None) -> Amount:
        """Not available, and why. Never the same as 0."""
        return cls(None, low, None, unit, Provenance.MISSING, reason)

    @classmethod
    def estimated(cls, value: float, low: float, high: float, unit: str, reason: str = "") -> Amount:
        """From a model or a table; the interval spans what is plausible."""
        return cls(value, low, high, unit, Provenance.ESTIMATED, reason)

    @classmethod
    def total(cls, parts: Iterable[Amount], unit: str) -> Amount:
        """Sum of any number of amounts of one unit; of none, exactly 0."""
        result = cls(0.0, 0.0, 0.0, unit, Provenance.MEASURED)
        for part in parts:
            result = result + part
        return result

    @property
    def is_missing(self) -> bool:
        return self.provenance is Provenance.MISSING

    def __add__(self, other: Amount) -> Amount:
        """
        Raises:
            ValueError: the units differ.
        """
        if not isinstance(other, Amount):
            return NotImplemented
        if self.unit != other.unit:
            raise ValueError(f"{self.unit} and {other.unit} do not add")
        reason = joined(self.reason, other.reason)
        if self.value is None or other.value is None:
            known = [a.low for a in (self, other) if a.low is not None]
            return Amount.missing(self.unit, reason, low=math.fsum(known) if known else None)
        ends = [(a.low, a.high) for a in (self, other) if a.low is not None and a.high is not None]
        low, high = math.fsum(e[0] for e in ends), math.fsum(e[1] for e in ends)
        value = self.value + other.value
        worst = max(self.provenance, other.provenance)
        return Amount(value, min(low, value), max(high, value), self.unit, worst, reason)

    def times(self, factor: Factor) -> Amount:
        """This amount times a pure number with an interval (a share, a reciprocal count)."""
        if factor.unit != "1":
            raise ValueError(f"expected a pure number, not {factor.unit}")
        return _product(self, factor, self.unit)

    def per(self, count: float, unit: str) -> Amount:
        """This amount a unit of work, for `count` of them (finite, above 0)."""
        if not 0 < count < math.inf:
            raise ValueError(f"expected a number of {unit}s above 0, not {count}")
        return _product(self, Factor.exact(1 / count, "1", ""), f"{self.unit}/{unit}")

    def __str__(self) -> str:
        if self.value is None:
            known = f" (at least {number(self.low)} {self.unit})" if self.low else ""
            return f"not known: {self.reason or 'no reason given'}{known}"
        if self.provenance is Provenance.ESTIMATED:
            return f"~{number(self.value)} {self.unit} ({number(self.low)}–{number(self.high)})"
        return f"{number(self.value)} {self.unit}"

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "provenance": str(self.provenance),
            "reason": self.reason or None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Amount:
        """Read back what `to_json` wrote.

        Raises:
            ValueError: a field is missing or contradicts another.
        """
        try:
            value, low, high = (None if data[n] is None else float(data[n]) for n in ("value", "low", "high"))
            provenance = Provenance[str(data["provenance"]).upper()]
            return cls(value, low, high, str(data["unit"]), provenance, str(data.get("reason") or ""))
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not an amount: {exc} is missing or unknown") from exc


@dataclass(frozen=True, slots=True)
class Factor:
    """What one unit of something turns into: a rate or a ratio, with an interval.

    Attributes:
        value, low, high: in `unit`; finite.
        unit: ``gCO2e/kWh``, ``L/kWh``, ``EUR/kWh``, or ``1`` for a pure number.
        provenance: how it was obtained; never missing.
        source: who says so, for which year or period.
    """

    value: float
    low: float
    high: float
    unit: str
    provenance: Provenance
    source: str

    def __post_init__(self) -> None:
        if self.provenance is Provenance.MISSING:
            raise ValueError("a factor that is missing is no factor; make the amount missing instead")
        _check(self.value, self.low, self.high, self.provenance, self.unit)

    @classmethod
    def exact(cls, value: float, unit: str, source: str) -> Factor:
        """Known without doubt: a contract's price, a count."""
        return cls(value, value, value, unit, Provenance.MEASURED, source)

    @classmethod
    def estimated(cls, value: float, low: float, high: float, unit: str, source: str) -> Factor:
        """From a table, a model or a service."""
        return cls(value, low, high, unit, Provenance.ESTIMATED, source)

    def of(self, energy: Energy) -> Amount:
        """What an energy turns into at this rate, which must be one per kWh.

        The interval spans all products of the two intervals; the provenance is the worse of the two.
        Of a missing energy the amount is missing, with what its known part comes to as lower end.
        """
        unit, _, per = self.unit.partition("/")
        if per != "kWh":
            raise ValueError(f"expected a rate per kWh, not {self.unit}")
        return _product(in_kwh(energy), self, unit)

    def __str__(self) -> str:
        unit = "" if self.unit == "1" else f" {self.unit}"
        if self.low == self.high:
            return f"{number(self.value)}{unit}"
        return f"{number(self.value)}{unit} ({number(self.low)}–{number(self.high)})"

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "provenance": str(self.provenance),
            "source": self.source or None,
        }


def _product(amount: Amount, factor: Factor, unit: str) -> Amount:
    reason = joined(amount.reason, factor.source)
    if amount.value is None or amount.low is None or amount.high is None:
        known = amount.low is not None and amount.low >= 0 and factor.low >= 0
        low = amount.low * factor.low if known and amount.low is not None else None
        return Amount.missing(unit, reason, low=low)
    corners = [a * f for a in (amount.low, amount.high) for f in (factor.low, factor.high)]
    value = amount.value * factor.value
    provenance = max(amount.provenance, factor.provenance, Provenance.DERIVED)
    return Amount(value, min(*corners, value), max(*corners, value), unit, provenance, reason)


def in_kwh(energy: Energy) -> Amount:
    """An energy as an amount of kilowatt-hours."""
    value, low, high = (
        None if j is None else j / KWH_J for j in (energy.value_j, energy.low_j, energy.high_j)
    )
    return Amount(value, low, high, "kWh", energy.provenance, energy.reason)


def scaled(energy: Energy, factor: Factor) -> Energy:
    """An energy times a pure number with an interval: a PUE, the reciprocal of an efficiency."""
    product = _product(
        Amount(energy.value_j, energy.low_j, energy.high_j, "J", energy.provenance, energy.reason),
        factor,
        "J",
    )
    return Energy(product.value, product.low, product.high, product.provenance, product.reason)


def joined(left: str, right: str) -> str:
    """Two lists of reasons, separated by semicolons, as one without repetitions."""
    return "; ".join(dict.fromkeys(part for part in (*left.split("; "), *right.split("; ")) if part))


def number(value: float | None) -> str:
    """Three digits, or a whole number with separators."""
    return "?" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _check(
    value: float | None, low: float | None, high: float | None, provenance: Provenance, unit: str
) -> None:
    if provenance is Provenance.MISSING:
        if value is not None or high is not None:
            raise ValueError("what is missing has neither a value nor an upper end")
        return
    if value is None or low is None or high is None or not all(map(math.isfinite, (value, low, high))):
        raise ValueError("expected three finite numbers: value, low and high")
    if not low <= value <= high:
        raise ValueError(f"the interval {low}..{high} {unit} does not contain {value}")
