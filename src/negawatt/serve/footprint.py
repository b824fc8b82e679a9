"""`Footprint`: what joules turn into where the server stands: grams, litres and money."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from negawatt.carbon import GRAMS, LITRES, Amount, Factor, IntensitySource, Tariff, cost, location_based, over
from negawatt.energy import Energy
from negawatt.errors import NegawattError

WINDOW = timedelta(minutes=15)
"""The intensity of a request is that of the quarter of an hour it ended in."""


@dataclass(slots=True)
class Footprint:
    """Attributes:
    intensity: grams a kWh, always or by time; None where it was not configured.
    litres: water that a kWh uses, at the site and where it is generated; None likewise.
    tariff: what a kWh costs; None likewise.
    """

    intensity: Factor | IntensitySource | None = None
    litres: Factor | None = None
    tariff: Tariff | None = None
    _quarter: datetime | None = None
    _factor: Factor | None = None

    def carbon(self, energy: Energy, end_s: float) -> Amount | None:
        """Grams of an energy used around a time, given in seconds since the epoch; missing where the source
        has no intensity for it."""
        if self.intensity is None:
            return None
        if isinstance(self.intensity, Factor):
            return location_based(energy, self.intensity)
        moment = datetime.fromtimestamp(end_s, UTC)
        start = moment.replace(minute=moment.minute // 15 * 15, second=0, microsecond=0)
        if start != self._quarter or self._factor is None:
            try:
                self._factor = over(self.intensity.steps(start, start + WINDOW), start, start + WINDOW)
            except NegawattError as exc:
                return Amount.missing(GRAMS, str(exc))
            self._quarter = start
        return location_based(energy, self._factor)

    def intensity_now(self) -> Factor | None:
        """Grams a kWh at this moment; None where no intensity was configured."""
        if self.intensity is None or isinstance(self.intensity, Factor):
            return self.intensity
        now = self.carbon(Energy.zero(), time.time())
        return None if now is None or now.is_missing else self._factor

    def water(self, energy: Energy) -> Amount | None:
        """Litres of an energy."""
        return None if self.litres is None else self.litres.of(energy)

    def cost(self, energy: Energy, start_s: float, end_s: float) -> Amount | None:
        """Price of an energy used between two times, given in seconds since the epoch."""
        if self.tariff is None:
            return None
        start, end = (datetime.fromtimestamp(s, UTC) for s in (start_s, end_s))
        return cost(energy, self.tariff, start, end)


def litres_a_kwh(value: float) -> Factor:
    """A stated water use."""
    return Factor.estimated(value, value, value, f"{LITRES}/kWh", f"{value:g} L/kWh as stated")
