"""`Energy`: a quantity of energy that knows how it was obtained and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Provenance(IntEnum):
    """Where a figure comes from, ordered from best to worst. A sum takes its worst part's."""

    MEASURED = 0
    """A counter that was seen to move."""
    DERIVED = 1
    """Computed from measured figures (a share of a measured whole, a fit to measurements)."""
    ESTIMATED = 2
    """A model; the interval spans every model that applies."""
    MISSING = 3
    """Nothing could be obtained; `Energy.reason` says why."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy in joules, with an interval and a provenance.

    Attributes:
        value_j: best single figure in joules; None exactly when the provenance is missing.
        low_j: lower end of the interval. Of a missing quantity: what is known to have been spent
            at least (the measured parts of an incomplete sum), or None.
        high_j: upper end of the interval; None when the provenance is missing.
        provenance: see `Provenance`.
        reason: why it is missing, or which models the estimate spans; may be empty otherwise.

    Energies add, and multiply by numbers; both keep value, interval and provenance true.
    Adding treats the two intervals as worst cases that occur together (fully dependent errors),
    which is right for one meter's systematic error and conservative otherwise.
    """

    value_j: float | None
    low_j: float | None
    high_j: float | None
    provenance: Provenance
    reason: str = ""

    def __post_init__(self) -> None:
        if self.provenance is Provenance.MISSING:
            if self.value_j is not None or self.high_j is not None:
                raise ValueError("a missing energy has neither a value nor an upper bound")
            return
        if self.value_j is None or self.low_j is None or self.high_j is None:
            raise ValueError(f"an energy that is {self.provenance} needs value, low and high")
        if -math.inf < self.low_j <= self.value_j <= self.high_j < math.inf:
            return
        if not all(map(math.isfinite, (self.value_j, self.low_j, self.high_j))):
            raise ValueError("energies are finite numbers of joules")
        raise ValueError(f"the interval {self.low_j}..{self.high_j} J does not contain {self.value_j} J")

    # -- making one ------------------------------------------------------------------------------

    @classmethod
    def measured(cls, value_j: float, uncertainty_j: float = 0.0) -> Energy:
        """Read from a counter; `uncertainty_j` is its half-width (resolution, refresh)."""
        return cls(value_j, value_j - uncertainty_j, value_j + uncertainty_j, Provenance.MEASURED)

    @classmethod
    def estimated(cls, value_j: float, low_j: float, high_j: float, reason: str = "") -> Energy:
        """From a model; the interval spans every applicable model."""
        return cls(value_j, low_j, high_j, Provenance.ESTIMATED, reason)

    @classmethod
    def missing(cls, reason: str) -> Energy:
        """Not available, and why. Never the same as 0 J."""
        return cls(None, None, None, Provenance.MISSING, reason)

    @classmethod
    def zero(cls) -> Energy:
        """The neutral element of addition: exactly 0 J, known for certain."""
        return cls(0.0, 0.0, 0.0, Provenance.MEASURED)

    @classmethod
    def total(cls, parts: Iterable[Energy]) -> Energy:
        """Sum of any number of energies; of none, `Energy.zero()`."""
        left = iter(parts)
        result = next(left, None)
        if result is None:
            return cls.zero()
        for part in left:
            result = result + part
        return result

    # -- arithmetic ------------------------------------------------------------------------------

    @property
    def is_missing(self) -> bool:
        return self.provenance is Provenance.MISSING

    def __add__(self, other: Energy) -> Energy:
        if not isinstance(other, Energy):
            return NotImplemented
        reason = _join(self.reason, other.reason)
        if self.is_missing or other.is_missing:
            known = [e.low_j for e in (self, other) if e.low_j is not None]
            return Energy(None, sum(known) if known else None, None, Provenance.MISSING, reason)
        assert self.value_j is not None and self.low_j is not None and self.high_j is not None
        assert other.value_j is not None and other.low_j is not None and other.high_j is not None
        return _ordered(
            self.value_j + other.value_j,
            self.low_j + other.low_j,
            self.high_j + other.high_j,
            max(self.provenance, other.provenance),
            reason,
        )

    def __sub__(self, other: Energy) -> Energy:
        """Difference; may be negative and is never clamped (clamping would bias a mean).

        A whole minus an unknown part is unknown, with no lower bound either.
        """
        if not isinstance(other, Energy):
            return NotImplemented
        if other.is_missing:
            return Energy(None, None, None, Provenance.MISSING, _join(self.reason, other.reason))
        if self.is_missing:
            return self + other.scaled(-1.0)
        assert self.value_j is not None and self.low_j is not None and self.high_j is not None
        assert other.value_j is not None and other.low_j is not None and other.high_j is not None
        return _ordered(
            self.value_j - other.value_j,
            self.low_j - other.high_j,
            self.high_j - other.low_j,
            max(self.provenance, other.provenance),
            _join(self.reason, other.reason),
        )

    def scaled(self, factor: float) -> Energy:
        """This energy times a number (a share, a PUE, a sign)."""
        if not math.isfinite(factor):
            raise ValueError(f"cannot scale an energy by {factor}")
        if factor == 1.0:
            return self
        if self.is_missing:
            low = self.low_j * factor if self.low_j is not None and factor >= 0 else None
            return Energy(None, low, None, Provenance.MISSING, self.reason)
        assert self.value_j is not None and self.low_j is not None and self.high_j is not None
        low_j, high_j = sorted((self.low_j * factor, self.high_j * factor))
        provenance = self.provenance if factor in (1.0, -1.0) else max(self.provenance, Provenance.DERIVED)
        return _ordered(self.value_j * factor, low_j, high_j, provenance, self.reason)

    def split(self, weights: Sequence[float]) -> list[Energy]:
        """Divide into parts proportional to `weights` (non-negative, not all zero).

        The parts' values sum to this value to within rounding (1 part in 10⁹).

        Raises:
            ValueError: a weight is negative or not finite, or their sum is zero.
        """
        most = max(weights, default=0.0)
        if not all(0 <= w < math.inf for w in weights) or most == 0:
            raise ValueError("weights must be non-negative, finite, and not all zero")
        relative = [w / most for w in weights]  # keeps their sum finite
        whole = math.fsum(relative)
        return [self.scaled(w / whole) for w in relative]

    # -- showing ---------------------------------------------------------------------------------

    def __str__(self) -> str:
        if self.value_j is None:
            known = f" (at least {_joules(self.low_j)})" if self.low_j else ""
            return f"not measured: {self.reason or 'no reason given'}{known}"
        if self.provenance is Provenance.ESTIMATED:
            return f"~{_joules(self.value_j)} ({_number(self.low_j)}–{_number(self.high_j)})"
        return _joules(self.value_j)

    def to_json(self) -> dict[str, Any]:
        """The ENERGY object that other programs rely on (``value_j`` is null when missing)."""
        return {
            "value_j": self.value_j,
            "low_j": self.low_j,
            "high_j": self.high_j,
            "provenance": str(self.provenance),
            "reason": self.reason or None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Energy:
        """Read back what `to_json` wrote.

        Raises:
            ValueError: a field is missing or contradicts another.
        """
        try:
            provenance = Provenance[str(data["provenance"]).upper()]
            numbers = [data[field] for field in ("value_j", "low_j", "high_j")]
            reason = str(data.get("reason") or "")
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not an energy record: {exc} is missing or unknown") from exc
        for number in numbers:
            if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
                raise ValueError(f"not an energy record: {number!r} is no number of joules")
        value, low, high = (None if n is None else float(n) for n in numbers)
        return cls(value, low, high, provenance, reason)


def _ordered(value: float, low: float, high: float, provenance: Provenance, reason: str) -> Energy:
    """Rounding of a sum or product may push an end past the value by one ulp; put it back."""
    return Energy(value, value if low > value else low, value if high < value else high, provenance, reason)


def _join(left: str, right: str) -> str:
    if not right or left == right:
        return left
    if not left:
        return right
    parts = [*filter(None, left.split("; "))]
    parts += [p for p in right.split("; ") if p and p not in parts]
    return "; ".join(sorted(parts))


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _joules(value: float | None) -> str:
    return f"{_number(value)} J"
