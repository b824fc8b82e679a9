"""`PowerSource`: anything that tells watts rather than joules, and `Integrated`, which makes it a sensor."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from negawatt.energy import Provenance
from negawatt.errors import SensorError
from negawatt.meter.sensor import Boundary, Counter, Reading, Sensor


@dataclass(frozen=True, slots=True)
class Power:
    """The power of one component at one moment.

    Attributes:
        power_w: watts, positive when drawn.
        accuracy: relative half-width the maker or the standard gives; 0.05 means within 5 %.
        refresh_s: longest time between two updates at the source.
        boundary, part_of, limit_w: as in `negawatt.meter.Counter`.
    """

    power_w: float
    accuracy: float = 0.0
    refresh_s: float = 0.0
    boundary: Boundary = "chip"
    part_of: str | None = None
    limit_w: float = 2000.0


class PowerSource(ABC):
    """A source of power readings; `name` and `polled_s` are as in `negawatt.meter.Sensor`."""

    name: str
    polled_s: float | None = 0.1

    @abstractmethod
    def read_power(self) -> Mapping[str, Power]:
        """Read the power of every component now; raises as `Sensor.read` does."""

    def close(self) -> None:  # noqa: B027  (most sources hold nothing open)
        """Free what the source holds open."""


class Integrated(Sensor):
    """A sensor that adds up power over time by trapezoids.

    Half the change between two samples, times the time between them, is the doubt that each step
    adds: whatever power did in between, if it stayed between the two, is covered.
    """

    integrates = True

    def __init__(self, source: PowerSource) -> None:
        self.source = source
        self.name = source.name
        self.polled_s = source.polled_s
        self._last: dict[str, tuple[float, float]] = {}  # component -> monotonic time, watts
        self._energy_j: dict[str, float] = {}
        self._doubt_j: dict[str, float] = {}

    def read(self) -> Reading:
        begun_s = time.monotonic()
        powers = self.source.read_power()
        at_s = (begun_s + time.monotonic()) / 2
        for name, power in powers.items():
            if not math.isfinite(power.power_w):  # one such step would spoil the sum for good
                raise SensorError(f"{self.name} says {power.power_w} W of {name}")
        return Reading(at_s, {name: self._add(name, at_s, power) for name, power in powers.items()})

    def close(self) -> None:
        self.source.close()

    def _add(self, name: str, at_s: float, power: Power) -> Counter:
        if name in self._last:
            last_s, last_w = self._last[name]
            step_s = at_s - last_s
            self._energy_j[name] += step_s * (power.power_w + last_w) / 2
            self._doubt_j[name] += step_s * abs(power.power_w - last_w) / 2
        else:
            self._energy_j[name] = self._doubt_j[name] = 0.0
        self._last[name] = (at_s, power.power_w)
        return Counter(
            energy_j=self._energy_j[name],
            refresh_s=power.refresh_s,
            boundary=power.boundary,
            part_of=power.part_of,
            band=(1 - power.accuracy, 1 + power.accuracy),
            doubt_j=self._doubt_j[name],
            limit_w=power.limit_w,
            provenance=Provenance.DERIVED,
        )
