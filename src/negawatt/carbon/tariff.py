"""`Tariff`: what a kilowatt-hour costs, always or by the time of use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from itertools import product
from zoneinfo import ZoneInfo

from negawatt.carbon.amount import Amount, Factor
from negawatt.carbon.steps import Step, over
from negawatt.energy import Energy
from negawatt.errors import UsageError

EVERY_DAY = frozenset(range(7))
WORKDAYS = frozenset(range(5))


@dataclass(frozen=True, slots=True)
class Band:
    """Hours of the day with a price of their own.

    Attributes:
        price: of a kWh.
        start, end: local times; a band that ends at or before its start runs past midnight, and its
            night belongs to the day it began on.
        days: weekdays on which it begins, Monday 0 to Sunday 6.
    """

    price: float
    start: time
    end: time
    days: frozenset[int] = EVERY_DAY

    def holds(self, local: datetime) -> bool:
        clock, today = local.time(), local.weekday()
        if self.start < self.end:
            return today in self.days and self.start <= clock < self.end
        return (today in self.days and clock >= self.start) or (
            (today - 1) % 7 in self.days and clock < self.end
        )


@dataclass(frozen=True, slots=True)
class Tariff:
    """What energy costs.

    Attributes:
        price: of a kWh outside all bands; may be negative, as on spot markets.
        currency: its code, such as ``EUR``.
        bands: hours with other prices; the first that holds counts.
        zone: time zone of the bands, such as ``Europe/Berlin``.
    """

    price: float
    currency: str
    bands: Sequence[Band] = field(default=())
    zone: str = "UTC"

    def rate(self, price: float) -> Factor:
        return Factor.exact(price, f"{self.currency}/kWh", "tariff")

    def steps(self, start: datetime, end: datetime) -> list[Step]:
        """The prices between two moments, a step whenever a band begins or ends.

        Raises:
            UsageError: the time zone is unknown.
        """
        try:
            zone = ZoneInfo(self.zone)
        except (KeyError, ValueError, OSError) as exc:
            raise UsageError(f"expected a time zone such as Europe/Berlin, not {self.zone!r}") from exc
        day = start.astimezone(zone).date() - timedelta(days=1)
        edges = {start}
        while day <= end.astimezone(zone).date():
            for band in self.bands:
                for clock, fold in product((band.start, band.end), (0, 1)):  # an hour may come twice
                    edge = datetime.combine(day, clock, zone).replace(fold=fold).astimezone(UTC)
                    if start < edge < end:
                        edges.add(edge)
            day += timedelta(days=1)
        # A change of the clocks moves bands that lie across it: local time jumps there, not at an edge.
        edges |= {moment for moment in _clock_changes(start, end, zone) if start < moment < end}
        ordered = sorted(edges)
        return [
            Step(a, b, self.rate(self._price(a.astimezone(zone))))
            for a, b in zip(ordered, [*ordered[1:], max(end, start + timedelta(seconds=1))], strict=True)
        ]

    def _price(self, local: datetime) -> float:
        return next((band.price for band in self.bands if band.holds(local)), self.price)


def cost(
    energy: Energy, tariff: Tariff, start: datetime | None = None, end: datetime | None = None
) -> Amount:
    """What an energy costs.

    The value takes the power as even between `start` and `end`; the interval reaches from the
    cheapest to the dearest band that the window touches.

    Args:
        energy: what the meter of the bill counts: at the wall, or of the site.
        tariff: its prices.
        start, end: when it was used, with time zones; needed by a tariff with bands.

    Raises:
        UsageError: the tariff has bands and the window is not given.
    """
    if not tariff.bands:
        return tariff.rate(tariff.price).of(energy)
    if start is None or end is None:
        raise UsageError("a tariff by time of use needs the times from when to when the energy was used")
    return over(tariff.steps(start, end), start, end).of(energy)


def _clock_changes(start: datetime, end: datetime, zone: ZoneInfo) -> list[datetime]:
    """Moments at which the zone's offset changes, to the minute."""
    found = []
    here = start.astimezone(UTC).replace(second=0, microsecond=0)
    while here < end:
        after = here + timedelta(days=1)
        if here.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset():
            low, high = here, after
            while high - low > timedelta(minutes=1):
                middle = low + timedelta(minutes=(high - low) // timedelta(minutes=2))
                same = middle.astimezone(zone).utcoffset() == here.astimezone(zone).utcoffset()
                low, high = (middle, high) if same else (low, middle)
            found.append(high)
        here = after
    return found
